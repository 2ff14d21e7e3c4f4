from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from unet_core.border import REACH_SIGMAS, BorderWeight, border_weights
from unet_core.errors import RecipeError
from unet_core.samples import IGNORE_INDEX, Array, ClassMap

CELLS = ClassMap(kind="instances", classes={"background": 0, "cell": 1}, background="background")
TYPES = ClassMap(kind="multiclass", classes={"ground": 0, "cell": 1, "nucleus": 2}, ignore=255, background="ground")
PAPER = BorderWeight(w0=10, sigma_px=5)


def row(*ids: int) -> Array:
    return np.array([ids], dtype=np.uint16)


def formula(distance: float, weight: BorderWeight = PAPER) -> float:
    return float(weight.w0 * np.exp(-(distance**2) / (2 * weight.sigma_px**2)))


def test_a_gap_between_two_cells_by_hand() -> None:
    # In a gap of three pixels d1 + d2 is 4 everywhere: 1 + 3, 2 + 2, 3 + 1; left of both cells it is 1 + 6.
    found = border_weights(row(0, 3, 3, 0, 0, 0, 9), CELLS, PAPER)
    expected = [[formula(1 + 6), 0, 0, formula(4), formula(4), formula(4), 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.dtype == np.float32


def test_distances_are_euclidean_and_to_the_two_nearest_of_many_cells() -> None:
    mask = np.zeros((9, 9), dtype=np.uint16)
    mask[0, 0], mask[4, 7], mask[8, 8] = 5, 600, 2
    # From (4, 4): 3 to cell 600; sqrt(32) to both of the others.
    assert border_weights(mask, CELLS, PAPER)[4, 4] == pytest.approx(formula(3 + 32**0.5), rel=1e-5)


def test_one_cell_or_none_has_no_border() -> None:
    assert not border_weights(row(0, 4, 4, 0), CELLS, PAPER).any()
    assert not border_weights(row(0, 0), CELLS, PAPER).any()


def test_cells_that_touch_have_no_border_between_them() -> None:
    assert not border_weights(row(1, 1, 2, 2), CELLS, PAPER).any()


def test_of_classes_each_connected_region_is_a_cell() -> None:
    mask = np.zeros((3, 7), dtype=np.uint8)
    mask[:, 0], mask[:, 2], mask[1, 4], mask[0, 6] = 1, 1, 2, IGNORE_INDEX
    found = border_weights(mask, TYPES, PAPER)
    assert found[1, 1] == pytest.approx(formula(1 + 1), rel=1e-5)
    assert found[1, 3] == pytest.approx(formula(1 + 1), rel=1e-5)
    assert found[0, 6] == 0
    # Regions that touch at a corner only are two.
    assert border_weights(np.array([[1, 0], [0, 1]], np.uint8), TYPES, PAPER)[0, 1] == pytest.approx(formula(2))


@given(
    arrays.arrays(np.uint16, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 4)),
    st.sampled_from([1.0, 2.5, 5.0]),
)
def test_every_pixel_has_the_weight_of_the_formula(mask: Array, sigma_px: float) -> None:
    weight = BorderWeight(w0=10, sigma_px=sigma_px)
    found = border_weights(mask, CELLS, weight)
    rows, columns = np.indices(mask.shape)
    distances = np.stack(
        [
            np.hypot(rows[..., None, None] - rows, columns[..., None, None] - columns)[:, :, mask == label].min(axis=2)
            for label in np.unique(mask[mask > 0])
        ]
        or [np.full(mask.shape, np.inf)]
    )
    distances = np.sort(np.concatenate([distances, np.full((1, *mask.shape), np.inf)]), axis=0)
    expected = 10 * np.exp(-np.square(distances[0] + distances[1]) / (2 * sigma_px**2)) * (mask == 0)
    # What lies further off than the reach is taken as 0.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=10 * np.exp(-(REACH_SIGMAS**2) / 2))


def test_weights_follow_the_mask_when_it_is_turned() -> None:
    mask = np.random.default_rng(0).integers(0, 4, (12, 17)).astype(np.uint16)
    turned = border_weights(np.rot90(mask), CELLS, PAPER)
    np.testing.assert_array_equal(turned, np.rot90(border_weights(mask, CELLS, PAPER)))


@pytest.mark.parametrize(
    ("told", "class_map", "message"),
    [
        (
            {"w0": 10.0},
            CELLS,
            "train.border_weight: w0 given. Give w0 and sigma_px; the paper has {w0: 10, sigma_px: 5}.",
        ),
        ({"w0": 10.0, "sigma_px": 0.0}, CELLS, "train.border_weight: sigma_px: 0.0: must be above 0."),
        (
            {"w0": 10.0, "sigma_px": 5.0},
            ClassMap(kind="multilabel", classes={"cell": 255}),
            "train.border_weight: masks.kind: multilabel: borders are the background between cells. Name "
            "masks.background (kind multiclass or instances), or remove the weight.",
        ),
        (
            {"w0": 10.0, "sigma_px": 5.0},
            ClassMap(kind="multiclass", classes={"membrane": 0, "interior": 255}),
            "train.border_weight: masks.kind: multiclass: borders are the background between cells. Name "
            "masks.background (kind multiclass or instances), or remove the weight.",
        ),
    ],
)
def test_weights_that_do_not_suit_are_refused(told: dict[str, Any], class_map: ClassMap, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        BorderWeight.of_recipe(told, class_map)
    assert str(caught.value) == message
