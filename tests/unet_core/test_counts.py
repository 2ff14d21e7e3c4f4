import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_core.counts import Counts, mean_defined


def counts(true_positive: int, false_positive: int, false_negative: int) -> Counts:
    return Counts(true_positive=true_positive, false_positive=false_positive, false_negative=false_negative)


def test_dice_and_iou_are_one_when_masks_agree() -> None:
    assert counts(7, 0, 0).dice == 1.0
    assert counts(7, 0, 0).iou == 1.0


def test_dice_and_iou_are_zero_when_nothing_is_hit() -> None:
    assert counts(0, 3, 4).dice == 0.0
    assert counts(0, 3, 4).iou == 0.0


def test_dice_and_iou_of_a_half_hit() -> None:
    assert counts(2, 1, 3).dice == pytest.approx(4 / 8)
    assert counts(2, 1, 3).iou == pytest.approx(2 / 6)


def test_scores_are_undefined_where_the_class_is_nowhere() -> None:
    assert counts(0, 0, 0).dice is None
    assert counts(0, 0, 0).iou is None


numbers = st.integers(0, 10**15)


@given(numbers, numbers, numbers, numbers, numbers, numbers)
def test_counts_add_up(a: int, b: int, c: int, d: int, e: int, f: int) -> None:
    assert counts(a, b, c) + counts(d, e, f) == counts(a + d, b + e, c + f)


@given(numbers, numbers, numbers)
def test_dice_follows_from_iou(hit: int, extra: int, missed: int) -> None:
    found = counts(hit, extra, missed)
    if found.iou is not None:
        assert found.dice == pytest.approx(2 * found.iou / (1 + found.iou))


def test_mean_leaves_undefined_scores_out() -> None:
    assert mean_defined([None, 0.5, None, 1.0]) == 0.75
    assert mean_defined(iter([0.0, None])) == 0.0


@pytest.mark.parametrize("scores", [[], [None, None]])
def test_mean_of_nothing_is_undefined(scores: list[float | None]) -> None:
    assert mean_defined(scores) is None


def test_precision_and_recall_divide_by_what_was_predicted_and_by_what_is_there() -> None:
    assert counts(2, 1, 3).precision == pytest.approx(2 / 3)
    assert counts(2, 1, 3).recall == pytest.approx(2 / 5)
    assert (counts(0, 0, 3).precision, counts(0, 0, 3).recall) == (None, 0.0)
    assert (counts(0, 2, 0).precision, counts(0, 2, 0).recall) == (0.0, None)
