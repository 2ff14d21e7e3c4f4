"""Exact, mergeable counts -> Dice, IoU, precision, recall. A score without a denominator is undefined, never 0 or 1."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Pixels of one class: counts add up over images, scores don't."""

    true_positive: int
    false_positive: int
    false_negative: int

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            true_positive=self.true_positive + other.true_positive,
            false_positive=self.false_positive + other.false_positive,
            false_negative=self.false_negative + other.false_negative,
        )

    @property
    def dice(self) -> float | None:
        """2 TP / (2 TP + FP + FN); None where the class is neither in the mask nor predicted."""
        return _ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)

    @property
    def iou(self) -> float | None:
        """TP / (TP + FP + FN); None where the class is neither in the mask nor predicted."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive + self.false_negative)

    @property
    def precision(self) -> float | None:
        """TP / (TP + FP); None where the class is not predicted."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float | None:
        """TP / (TP + FN); None where the class is not in the mask."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)


def mean_defined(scores: Iterable[float | None]) -> float | None:
    """Mean of the scores that are defined; None where none is."""
    defined = [score for score in scores if score is not None]
    return sum(defined) / len(defined) if defined else None


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
