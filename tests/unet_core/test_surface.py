import numpy as np
import pytest

from unet_core.surface import SurfaceScores, compare_surfaces


def square(top: int, left: int, side: int, *, size: int = 16) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_equal_masks_have_distance_zero_and_surface_dice_one() -> None:
    found = compare_surfaces(square(4, 4, 5), square(4, 4, 5), tolerance_px=0)
    # The outline of a square of 5 is 16 pixels, counted in both masks.
    assert found == SurfaceScores(points=32, hits=32, hausdorff95_px=0.0)
    assert found.dice == 1.0


def test_a_square_moved_by_two_lies_two_pixels_away() -> None:
    near, far = (compare_surfaces(square(4, 6, 5), square(4, 4, 5), tolerance_px=limit) for limit in (2, 1))
    assert near.hausdorff95_px == far.hausdorff95_px == 2.0
    assert near.dice == 1.0
    # Two pixels away lie, of each outline, the five of its outer column and the middle one of its inner column.
    assert far.dice == pytest.approx(2 * (16 - 5 - 1) / 32)


def test_single_pixels_have_the_distance_of_their_centres() -> None:
    found = compare_surfaces(square(0, 0, 1), square(3, 4, 1), tolerance_px=4.9)
    assert (found.points, found.hits, found.hausdorff95_px) == (2, 0, 5.0)


def test_two_empty_masks_have_no_score() -> None:
    found = compare_surfaces(square(0, 0, 0), square(0, 0, 0), tolerance_px=2)
    assert (found.dice, found.hausdorff95_px) == (None, None)


def test_beside_an_empty_mask_surface_dice_is_zero_and_the_distance_undefined() -> None:
    for predicted, true in ((square(0, 0, 0), square(4, 4, 3)), (square(4, 4, 3), square(0, 0, 0))):
        found = compare_surfaces(predicted, true, tolerance_px=2)
        assert (found.points, found.dice, found.hausdorff95_px) == (8, 0.0, None)


@pytest.mark.slow  # MONAI takes seconds to import
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 1.5, 3.0])
def test_scores_are_those_of_monai(share: float, tolerance: float) -> None:
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    rng = np.random.default_rng(0)
    for _ in range(5):
        predicted, true = (rng.random((9, 14)) < share for _ in range(2))
        found = compare_surfaces(predicted, true, tolerance_px=tolerance)
        planes = [torch.from_numpy(mask)[None, None].float() for mask in (predicted, true)]
        dice = compute_surface_dice(*planes, class_thresholds=[tolerance], include_background=True)
        distance = compute_hausdorff_distance(*planes, percentile=95, include_background=True)
        assert found.dice == pytest.approx(float(dice), abs=1e-5)
        assert found.hausdorff95_px == pytest.approx(float(distance), abs=1e-5)  # float32 there
