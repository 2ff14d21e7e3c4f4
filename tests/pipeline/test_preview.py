"""The sheet of what the network will see."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures import GAP_PX, TILE_PX
from pipeline.preview import preview
from unet_core.errors import DataError, RecipeError

SHARDS, OUT = Path("data/shards"), Path("reports/preview.png")


def draw(count: int = 4, epoch: int = 0) -> np.ndarray:
    preview(shards=SHARDS, out=OUT, count=count, epoch=epoch)
    with Image.open(OUT) as picture:
        return np.asarray(picture)


@pytest.fixture
def sharded(small_data):
    small_data.run("ingest", "validate", "split", "shard")
    return small_data


def test_the_sheet_has_a_row_for_two_samples_and_the_odd_one_is_not_lost(sharded) -> None:
    side = TILE_PX + GAP_PX
    assert draw(count=4).shape == (2 * side, 6 * side, 3)
    sheet = draw(count=3)
    assert sheet.shape == (2 * side, 6 * side, 3)
    assert (sheet[side:, 3 * side :] == 255).all()
    assert (sheet[side : 2 * side - GAP_PX, : 3 * side] != 255).any()


def test_another_epoch_is_another_draw_and_the_same_one_the_same(sharded) -> None:
    first = draw()
    assert (draw() == first).all()
    assert (draw(epoch=1) != first).any()


def test_what_cannot_be_drawn_is_refused(sharded) -> None:
    with pytest.raises(DataError, match="--count 0 --epoch 0: the count is at least 1"):
        draw(count=0)
    sharded.write_recipe(augment={"transforms": [{"name": "HorizontalFlop"}]})
    with pytest.raises(
        RecipeError, match=r"unknown transform: augment.transforms\[0\]: 'HorizontalFlop'. Did you mean"
    ):
        draw()


def tile(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    side = TILE_PX + GAP_PX
    return sheet[row * side : row * side + TILE_PX, column * side : column * side + TILE_PX]


def test_without_transforms_the_network_sees_the_image_itself_and_the_mask_is_in_colour(sharded) -> None:
    sharded.write_recipe(augment={"crop_px": None, "transforms": []})
    sheet = draw(count=4)
    for row in range(2):
        for first in (0, 3):
            plain, seen, painted = (tile(sheet, row, first + place) for place in range(3))
            assert (plain == seen).all()
            # The images are gray.
            assert np.ptp(plain.astype(int), axis=-1).max() == 0
            assert np.ptp(painted.astype(int), axis=-1).max() > 50


def test_the_sheet_is_the_same_with_any_number_of_threads(sharded, monkeypatch: pytest.MonkeyPatch) -> None:
    transforms = [{"name": "D4", "p": 1.0}, {"name": "RandomBrightnessContrast", "p": 1.0}]
    sharded.write_recipe(augment={"crop_px": 8, "transforms": transforms})
    first = draw(epoch=3)
    monkeypatch.setenv("UNET_LOADER_THREADS", "4")
    assert (draw(epoch=3) == first).all()


def test_overlapping_classes_are_shown(tree) -> None:
    tree.add_pairs([f"s{number:02d}" for number in range(12)])
    masks = tree.source / "masks"
    masks.rename(tree.root / "plane")
    for name in ("plus", "ring"):
        shutil.copytree(tree.root / "plane", masks / name)
    about = {"kind": "multilabel", "classes": {"ring": 255, "plus": 255}, "background": None}
    tree.write_recipe(masks=about)
    tree.record()
    tree.run("ingest", "validate", "split", "shard")
    assert np.ptp(tile(draw(), 0, 2).astype(int), axis=-1).max() > 20


def test_objects_with_ids_above_255_are_shown(tree) -> None:
    for number in range(12):
        tree.add_pair(f"s{number:02d}", size=(32, 24))
        # Cut to 8 bits, the object that fills most of the picture would be background.
        ids = np.full((24, 32), 256, dtype=np.uint16)
        ids.flat[:300] = np.arange(1, 301)
        Image.fromarray(ids).save(tree.source / "masks" / f"s{number:02d}.png")
    tree.write_recipe(masks={"kind": "instances", "classes": {"background": 0, "cell": 1}, "background": "background"})
    tree.record()
    tree.run("ingest", "validate", "split", "shard")
    below = tile(draw(), 0, 2)[140:190].astype(int)
    assert np.ptp(below, axis=-1).min() > 0
