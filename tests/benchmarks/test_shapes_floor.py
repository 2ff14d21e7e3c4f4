import numpy as np
import pytest
import torch

from benchmarks.shapes_floor import SIDE, best_losses, expected_bce, expected_dice, find_candidates, whole_numbers
from unet_core.losses import binary_cross_entropy, soft_dice
from unet_core.synthetic import Place, Plane, shape_plane, visible_part


def plane(name: str, x: int, y: int, size: int) -> Plane:
    return shape_plane(name, Place(x=x, y=y, size=size), SIDE, SIDE)


NOTHING: Plane = np.zeros((SIDE, SIDE), dtype=bool)


def test_numbers_that_the_range_cuts_are_less_probable() -> None:
    assert whole_numbers(2.5, 5.0) == pytest.approx({2: 0.2, 3: 0.4, 4: 0.4})


@pytest.mark.parametrize("name", ["filled_square", "filled_circle", "triangle", "ring", "plus"])
def test_a_shape_in_the_open_is_certain(name: str) -> None:
    # Of a size that each of them can have.
    mask = plane(name, 60, 80, 11 if name == "filled_circle" else 16)
    found = find_candidates(name, mask, NOTHING)
    assert len(found.probabilities) == 1
    assert found.masks.sum() == mask.sum()
    assert best_losses(found) == (0.0, 0.0)


def test_edges_of_a_mesh_with_as_many_rows_as_columns_are_uncertain() -> None:
    """8 rows and 8 columns of dots: side 15 in one place, 16 in four, 17 in one, all alike probable."""
    found = find_candidates("mesh_square", visible_part("mesh_square", plane("mesh_square", 60, 80, 16)), NOTHING)
    assert sorted(found.masks.sum(axis=1)) == [15**2, *[16**2] * 4, 17**2]
    assert found.probabilities == pytest.approx([1 / 6] * 6)


def test_a_mesh_with_one_row_more_than_columns_is_certain() -> None:
    # Rows 73 to 89, columns 52 to 68: nine odd rows, eight odd columns.
    found = find_candidates("mesh_square", visible_part("mesh_square", plane("mesh_square", 60, 81, 17)), NOTHING)
    assert len(found.probabilities) == 1


def test_a_plus_that_is_wholly_covered_may_lie_anywhere_below() -> None:
    cover = np.zeros_like(NOTHING)
    cover[60:80, 60:80] = True
    found = find_candidates("plus", cover, cover)
    # Sides 13 to 20, each in (21 - side)^2 places.
    assert len(found.probabilities) == sum(places**2 for places in range(1, 9))
    assert found.probabilities.sum() == pytest.approx(1)
    bce, dice = best_losses(found)
    assert bce > 0
    assert 0.4 < dice < 1


def test_losses_and_slopes_are_those_that_networks_are_judged_by() -> None:
    rng = np.random.default_rng(0)
    masks = (rng.random((3, 5)) > 0.5).astype(np.float64)
    probabilities, p = np.array([0.5, 0.3, 0.2]), rng.uniform(0.1, 0.9, 5)
    variable = torch.tensor(p, requires_grad=True)
    # Two pixels that all masks have and p knows, and all others black.
    logits = torch.full((1, 1, SIDE * SIDE), -100.0, dtype=torch.float64)
    logits[..., 5:7] = 100.0
    logits = torch.cat([variable.logit()[None, None], logits[..., 5:]], dim=2).reshape(1, 1, SIDE, SIDE)
    bce = dice = torch.zeros((), dtype=torch.float64)
    for mask, weight in zip(masks, probabilities, strict=True):
        target = torch.zeros(SIDE * SIDE, dtype=torch.float64)
        target[:5], target[5:7] = torch.from_numpy(mask), 1
        target = target.reshape(1, 1, SIDE, SIDE)
        bce = bce + weight * binary_cross_entropy(logits, target)
        dice = dice + weight * soft_dice(logits, target)
    for loss, (value, slope) in (
        (bce, expected_bce(p, probabilities @ masks)),
        (dice, expected_dice(p, masks, probabilities, 2.0)),
    ):
        (expected,) = torch.autograd.grad(loss, variable, retain_graph=True)
        assert value == pytest.approx(float(loss.detach()), abs=1e-12)
        assert slope == pytest.approx(expected.numpy(), abs=1e-12)
