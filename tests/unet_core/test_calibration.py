import numpy as np
import pytest
import torch

from unet_core.calibration import NUM_BINS, count_confidence, expected_calibration_error
from unet_core.samples import IGNORE_INDEX


def logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def test_a_pixels_histogram_is_that_of_the_class_it_was_given_to() -> None:
    # Three pixels: class 1 with 0.9 (right), class 1 with 0.9 (wrong), class 0 with 0.7 (right).
    logits = torch.tensor([[[0.0, 0.0, logit(0.7)]], [[logit(0.9), logit(0.9), 0.0]]])
    background, cell = count_confidence(logits, torch.tensor([[1, 0, 0]]))
    high, low = int(0.9 * NUM_BINS), int(0.7 * NUM_BINS)
    assert (cell.decisions[high], cell.right[high]) == (2, 1)
    assert cell.confidence[high] == pytest.approx(1.8)
    assert (background.decisions[low], background.right[low], background.decisions.sum()) == (1, 1, 1)
    # Confidence 0.9 beside half right, 0.7 beside all right: (2 * 0.4 + 1 * 0.3) / 3.
    pooled = [getattr(background, name) + getattr(cell, name) for name in ("decisions", "right", "confidence")]
    assert expected_calibration_error(*pooled) == pytest.approx(1.1 / 3)


def test_planes_count_yes_and_no_for_every_pixel() -> None:
    logits = torch.tensor([[[logit(0.8), logit(0.1)]]])
    (ring,) = count_confidence(logits, torch.tensor([[[1, 1]]]))
    assert ring.decisions.sum() == 2
    assert (ring.right[int(0.8 * NUM_BINS)], ring.right[int(0.9 * NUM_BINS)]) == (1, 0)


def test_ignored_pixels_are_no_decisions() -> None:
    logits = torch.tensor([[[5.0, 5.0]], [[0.0, 0.0]]])
    found = count_confidence(logits, torch.tensor([[0, IGNORE_INDEX]]))
    assert sum(int(histogram.decisions.sum()) for histogram in found) == 1


def test_full_confidence_lies_in_the_last_bin() -> None:
    (ring,) = count_confidence(torch.tensor([[[200.0]]]), torch.tensor([[[1]]]))
    assert ring.decisions[-1] == 1


def test_a_model_that_is_as_often_right_as_it_says_has_no_error_and_none_without_decisions() -> None:
    decisions, right = np.array([0, 10]), np.array([0, 8])
    assert expected_calibration_error(decisions, right, np.array([0.0, 8.0])) == 0
    assert expected_calibration_error(decisions * 0, right * 0, np.zeros(2)) is None
