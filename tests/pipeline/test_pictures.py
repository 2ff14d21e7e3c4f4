from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures import (
    GAP_PX,
    IGNORE_COLOUR,
    PALETTE,
    TILE_PX,
    as_rgb,
    class_colours,
    contact_sheet,
    fit,
    grid,
    overlay,
    paint_mask,
    write_picture,
)
from unet_core.samples import ClassMap, Sample

INDEXED = ClassMap(kind="multiclass", classes={"soil": 0, "crop": 1, "weed": 2}, ignore=255, background="soil")
PLANES = ClassMap(kind="multilabel", classes={"ring": 255, "plus": 255})


def test_the_background_is_black_and_others_have_colours_of_their_own() -> None:
    colours = class_colours(INDEXED)
    assert colours.tolist() == [[0, 0, 0], PALETTE[1].tolist(), PALETTE[2].tolist()]


def test_asking_for_colours_leaves_the_palette_alone() -> None:
    before = PALETTE.copy()
    class_colours(INDEXED)[:] = 7
    assert (before == PALETTE).all()


def test_an_index_mask_is_painted_in_the_colours_of_its_classes() -> None:
    painted = paint_mask(np.array([[0, 1], [2, 255]], dtype=np.uint8), INDEXED)
    assert painted.shape == (2, 2, 3)
    assert painted.tolist() == [
        [[0, 0, 0], PALETTE[1].tolist()],
        [PALETTE[2].tolist(), IGNORE_COLOUR.tolist()],
    ]


def test_where_classes_overlap_their_colours_mix() -> None:
    mask = np.array([[[0, 0], [1, 0], [1, 1]]], dtype=np.uint8)
    painted = paint_mask(mask, PLANES)
    middle = (PALETTE[0].astype(int) + PALETTE[1].astype(int)) // 2
    assert painted.tolist() == [[[0, 0, 0], PALETTE[0].tolist(), middle.tolist()]]


def test_more_classes_than_colours_begin_the_palette_anew() -> None:
    classes = ClassMap(kind="multilabel", classes={f"c{number}": 1 for number in range(len(PALETTE) + 1)})
    assert (class_colours(classes)[-1] == PALETTE[0]).all()


def test_an_overlay_shows_the_image_where_nothing_is_and_half_the_colour_elsewhere() -> None:
    image = np.full((1, 2, 1), 100, dtype=np.uint8)
    shown = overlay(image, np.array([[0, 1]], dtype=np.uint8), INDEXED)
    assert shown[0, 0].tolist() == [100, 100, 100]
    assert shown[0, 1].tolist() == [(100 + int(level)) // 2 for level in PALETTE[1]]


def test_a_gray_image_becomes_three_equal_channels_and_rgb_stays() -> None:
    gray = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    assert as_rgb(gray).tolist() == np.stack([gray[..., 0]] * 3, axis=-1).tolist()
    colour = np.zeros((2, 2, 3), dtype=np.uint8)
    assert as_rgb(colour) is colour


@pytest.mark.parametrize("shape", [(10, 20), (1000, 300), (1, 999), (TILE_PX, TILE_PX)])
def test_a_picture_of_any_size_fits_its_tile(shape: tuple[int, int]) -> None:
    tile = fit(np.zeros((*shape, 3), dtype=np.uint8))
    assert tile.shape == (TILE_PX, TILE_PX, 3)
    dark = (tile == 0).all(axis=-1)
    # The longer side fills the tile; what is left is white.
    assert dark.any(axis=int(shape[0] > shape[1])).all()
    assert set(np.unique(tile)) <= {0, 255}


def test_enlarging_keeps_pixels_and_shrinking_averages_them() -> None:
    checks = (np.indices((2, 2)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=-1)
    assert fit(checks, 4)[:2, :2, 0].tolist() == [[0, 0], [0, 0]]
    assert fit(checks, 1)[0, 0, 0] in (127, 128)


def test_rows_of_a_sheet_are_as_wide_as_the_widest() -> None:
    tile = np.zeros((8, 8, 3), dtype=np.uint8)
    sheet = grid([[tile, tile, tile], [tile]])
    assert sheet.shape == (2 * (8 + GAP_PX), 3 * (8 + GAP_PX), 3)
    assert (sheet[8 + GAP_PX :, 8:] == 255).all()


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 2, 1), (4, 2, 4), (5, 4, 4)])
def test_a_contact_sheet_has_images_above_their_masks_four_in_a_row(count: int, rows: int, columns: int) -> None:
    sample = Sample(key="a", image=np.full((6, 6, 1), 77, dtype=np.uint8), mask=np.ones((6, 6), dtype=np.uint8))
    sheet = contact_sheet([sample] * count, INDEXED)
    side = TILE_PX + GAP_PX
    assert sheet.shape == (rows * side, columns * side, 3)
    assert sheet[10, 10].tolist() == [77, 77, 77]
    assert sheet[side + 10, 10].tolist() == PALETTE[1].tolist()


def test_equal_pictures_are_equal_bytes_and_are_read_as_drawn(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, size=(9, 7, 3), dtype=np.uint8)
    for name in ("plots/1.png", "plots/2.png"):
        write_picture(tmp_path / name, picture)
    assert (tmp_path / "plots/1.png").read_bytes() == (tmp_path / "plots/2.png").read_bytes()
    with Image.open(tmp_path / "plots/1.png") as read:
        assert (np.asarray(read) == picture).all()


def test_every_object_has_a_colour_of_its_own() -> None:
    class_map = ClassMap(kind="instances", classes={"background": 0, "cell": 1})
    painted = paint_mask(np.arange(29, dtype=np.uint16).reshape(1, 29), class_map)
    assert painted[0, 0].tolist() == [0, 0, 0]
    assert painted[0, 1].tolist() == PALETTE[0].tolist()
    # Neighbouring numbers differ, and few share a colour.
    assert (painted[0, 1:-1] != painted[0, 2:]).any(axis=1).all()
    assert len(np.unique(painted[0], axis=0)) > 20


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_deep_images_and_many_channels_are_shown_by_their_upper_bits(channels: int) -> None:
    image = np.full((1, 1, channels), 0x80FF, dtype=np.uint16)
    shown = as_rgb(image)
    assert shown.dtype == np.uint8
    assert shown[0, 0].tolist() == ([128, 128, 0] if channels == 2 else [128] * 3)
