from typing import Any

import numpy as np
import pytest

from unet_core.samples import Array
from unet_core.synthetic import SHAPE_NAMES, draw_shapes

#: Size factor of each shape, from the tutorial; for circles the size is the radius, else the side.
FACTORS = {"filled_square": 0.8, "filled_circle": 0.5, "triangle": 1.0, "ring": 0.7, "mesh_square": 1.0, "plus": 1.2}
SIDE = 192


@pytest.fixture(scope="module")
def pictures() -> list[tuple[Array, Array]]:
    """100 pictures of the tutorial's size."""
    return [draw_shapes(seed=3, number=number) for number in range(100)]


def plane(masks: Array, name: str) -> Array:
    return masks[..., SHAPE_NAMES.index(name)]


def boxes(pictures: list[tuple[Array, Array]], name: str) -> list[Any]:
    """Top, left, height and width of a shape in the pictures whose border it does not touch."""
    found = []
    for _, masks in pictures:
        rows, columns = np.nonzero(plane(masks, name))
        inside = min(rows.min(), columns.min()) > 0 and max(rows.max(), columns.max()) < SIDE - 1
        if inside:
            found.append((rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1))
    return found


def test_same_seed_and_number_give_the_same_picture() -> None:
    for first, second in zip(draw_shapes(seed=1, number=2), draw_shapes(seed=1, number=2), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("seed", "number"), [(1, 3), (2, 2), (2, 1)], ids=["number", "seed", "both swapped"])
def test_another_seed_or_number_gives_another_picture(seed: int, number: int) -> None:
    image, masks = draw_shapes(seed=1, number=2)
    other_image, other_masks = draw_shapes(seed=seed, number=number)
    assert (image != other_image).any()
    assert (masks != other_masks).any()


def test_picture_does_not_depend_on_what_was_drawn_before() -> None:
    alone, _ = draw_shapes(seed=0, number=5)
    for number in range(6):
        last, _ = draw_shapes(seed=0, number=number)
    np.testing.assert_array_equal(last, alone)


def test_picture_is_black_and_white_with_six_planes() -> None:
    image, masks = draw_shapes(seed=0, number=0)
    assert image.shape == (192, 192)
    assert masks.shape == (192, 192, 6)
    assert image.dtype == masks.dtype == np.uint8
    assert set(np.unique(image)) == {0, 255}
    assert set(np.unique(masks)) == {0, 1}


def test_planes_come_in_the_order_of_the_tutorial() -> None:
    assert SHAPE_NAMES == ("filled_square", "filled_circle", "triangle", "ring", "mesh_square", "plus")


def test_picture_has_the_height_and_width_that_were_asked() -> None:
    image, masks = draw_shapes(seed=0, number=0, height=40, width=56)
    assert image.shape == (40, 56)
    assert masks.shape == (40, 56, 6)


def test_every_shape_is_in_every_picture(pictures: list[tuple[Array, Array]]) -> None:
    assert all(masks.any(axis=(0, 1)).all() for _, masks in pictures)


def test_image_is_white_where_a_shape_is_drawn_and_black_elsewhere(pictures: list[tuple[Array, Array]]) -> None:
    odd = np.arange(SIDE) % 2 == 1
    for image, masks in pictures:
        drawn = masks.astype(bool)
        drawn[..., SHAPE_NAMES.index("mesh_square")] &= odd[:, None] & odd[None, :]
        np.testing.assert_array_equal(image == 255, drawn.any(axis=-1))


def test_mesh_square_is_drawn_on_odd_rows_and_columns_only_and_labelled_whole(
    pictures: list[tuple[Array, Array]],
) -> None:
    num_alone = 0
    for image, masks in pictures:
        mesh = plane(masks, "mesh_square").astype(bool)
        alone = mesh & ~np.delete(masks, SHAPE_NAMES.index("mesh_square"), axis=-1).any(axis=-1)
        rows, columns = np.nonzero(alone)
        np.testing.assert_array_equal(image[alone] == 255, (rows % 2 == 1) & (columns % 2 == 1))
        num_alone += alone.sum()
        box = mesh[mesh.any(axis=1)][:, mesh.any(axis=0)]
        assert box.all()
    assert num_alone > 1000


def test_shapes_overlap_somewhere(pictures: list[tuple[Array, Array]]) -> None:
    assert any((masks.sum(axis=-1) > 1).any() for _, masks in pictures)


@pytest.mark.parametrize("name", ["filled_circle", "ring"])
def test_radius_is_6_to_12_percent_of_the_side_times_its_factor(pictures: list[tuple[Array, Array]], name: str) -> None:
    smallest, largest = int(SIDE * 0.06 * FACTORS[name]), int(SIDE * 0.12 * FACTORS[name])
    radii = [(height - 1) / 2 for _, _, height, _ in boxes(pictures, name)]
    # A circle's last row may be open or closed: one pixel of freedom.
    assert smallest - 1 <= min(radii) <= smallest + 1
    assert largest - 1 <= max(radii) <= largest + 1


@pytest.mark.parametrize("name", ["filled_square", "triangle", "mesh_square", "plus"])
def test_side_is_6_to_12_percent_of_the_side_times_its_factor(pictures: list[tuple[Array, Array]], name: str) -> None:
    smallest, largest = int(SIDE * 0.06 * FACTORS[name]), int(SIDE * 0.12 * FACTORS[name])
    sides = [height for _, _, height, _ in boxes(pictures, name)]
    # Half a side is rounded to pixels, the ends may be open or closed: two pixels of freedom.
    assert smallest - 2 <= min(sides) <= smallest + 2
    assert largest - 2 <= max(sides) <= largest + 2


@pytest.mark.parametrize("name", SHAPE_NAMES)
def test_shape_is_as_high_as_wide(pictures: list[tuple[Array, Array]], name: str) -> None:
    assert all(height == width for _, _, height, width in boxes(pictures, name))


@pytest.mark.parametrize("name", ["filled_circle", "ring", "filled_square"])
def test_centres_lie_in_10_to_90_percent_of_the_picture(pictures: list[tuple[Array, Array]], name: str) -> None:
    found = boxes(pictures, name)
    centres = np.array([(top + (height - 1) / 2, left + (width - 1) / 2) for top, left, height, width in found])
    assert centres.min() >= int(0.1 * SIDE)
    assert centres.max() <= int(0.9 * SIDE)
    assert (centres.min(axis=0) < 0.25 * SIDE).all()
    assert (centres.max(axis=0) > 0.75 * SIDE).all()


def test_inner_radius_of_the_ring_is_0_7_of_the_outer(pictures: list[tuple[Array, Array]]) -> None:
    ratios = []
    for (_, masks), _ in zip(pictures, range(60), strict=False):
        ring = plane(masks, "ring")
        rows, columns = np.nonzero(ring)
        if rows.min() == 0 or columns.min() == 0 or rows.max() == SIDE - 1 or columns.max() == SIDE - 1:
            continue
        outer = np.ptp(rows) / 2
        middle = ring[(rows.min() + rows.max()) // 2, columns.min() : columns.max() + 1]
        ratios.append((middle == 0).sum() / 2 / outer)
    assert np.mean(ratios) == pytest.approx(0.7, abs=0.04)


def test_triangle_is_the_lower_left_half_of_a_square(pictures: list[tuple[Array, Array]]) -> None:
    for (_, masks), _ in zip(pictures, range(30), strict=False):
        triangle = plane(masks, "triangle").astype(bool)
        box = triangle[triangle.any(axis=1)][:, triangle.any(axis=0)]
        if box.shape[0] != box.shape[1] or triangle[0].any() or triangle[:, 0].any():
            continue
        np.testing.assert_array_equal(box, np.tril(np.ones_like(box)))


def test_strokes_of_the_plus_are_2_pixels_wide(pictures: list[tuple[Array, Array]]) -> None:
    for (_, masks), _ in zip(pictures, range(30), strict=False):
        plus = plane(masks, "plus").astype(bool)
        box = plus[plus.any(axis=1)][:, plus.any(axis=0)]
        assert box.all(axis=0).sum() == 2
        assert box.all(axis=1).sum() == 2
        assert box.sum() == 2 * (sum(box.shape) - 2)
