import numpy as np
import pytest

from unet_core.objects import IOU_LIMITS, average_precision, match_objects


def line(*ids: int) -> np.ndarray:
    return np.array([ids], dtype=np.uint16)


def score(predicted: np.ndarray, true: np.ndarray) -> float | None:
    found = match_objects(predicted, true)
    return average_precision(true=found.true, predicted=found.predicted, matched=found.matched)


def test_equal_objects_match_at_every_limit_whatever_their_ids() -> None:
    found = match_objects(line(7, 7, 0, 3), line(1, 1, 0, 2))
    assert (found.true, found.predicted, found.matched) == (2, 2, (2,) * 10)


def test_an_object_matches_below_its_iou_only() -> None:
    # 7 common pixels of 10: IoU 0.7 is above 0.5, 0.55, 0.6 and 0.65, and not above 0.7.
    true, predicted = line(*[1] * 10), line(*[1] * 7, 0, 0, 0)
    assert match_objects(predicted, true).matched == (1, 1, 1, 1, 0, 0, 0, 0, 0, 0)
    assert score(predicted, true) == pytest.approx(0.4)


def test_merged_objects_are_missed_and_one_is_invented() -> None:
    # The Data Science Bowl's own rule: a merged pair matches neither where none fills more than half of it.
    found = match_objects(line(1, 1, 1, 1), line(1, 1, 2, 2))
    assert (found.true, found.predicted, found.matched) == (2, 1, (0,) * 10)
    assert score(line(1, 1, 1, 1), line(1, 1, 2, 2)) == 0


def test_average_precision_counts_missed_and_invented_objects() -> None:
    # One of three is found, one is invented: 1 / (1 + 1 + 2) at every limit.
    assert score(line(1, 0, 0, 2), line(1, 2, 3, 0)) == pytest.approx(1 / 4)


def test_without_any_object_there_is_no_score_and_with_one_side_empty_it_is_zero() -> None:
    assert score(line(0, 0), line(0, 0)) is None
    assert score(line(1, 0), line(0, 0)) == 0
    assert score(line(0, 0), line(0, 1)) == 0


def test_limits_are_those_of_the_data_science_bowl() -> None:
    assert IOU_LIMITS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
