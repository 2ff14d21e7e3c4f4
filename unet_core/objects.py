"""Objects one by one: which predicted ones are which true ones, and how many.

Scores are those of the 2018 Data Science Bowl: at each IoU limit, matched objects over all that are matched, invented
or missed; then the mean over the limits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unet_core.counts import mean_defined

#: 0.50, 0.55 ... 0.95. From one half on, an object matches at most one other.
IOU_LIMITS = tuple(percent / 100 for percent in range(50, 100, 5))

Ids = npt.NDArray[np.integer]


@dataclass(frozen=True, kw_only=True)
class ObjectCounts:
    """Objects of an image; counts add up over images."""

    true: int
    predicted: int
    matched: tuple[int, ...]
    """At each of IOU_LIMITS."""


def match_objects(predicted: Ids, true: Ids) -> ObjectCounts:
    """Match two masks of ids (H, W), 0 where there is no object. Objects match where their IoU is above the limit."""
    predicted_ids, predicted_sizes = _sizes(predicted)
    true_ids, true_sizes = _sizes(true)
    both = (predicted > 0) & (true > 0)
    pairs, overlaps = np.unique(np.stack([predicted[both], true[both]]), axis=1, return_counts=True)
    first = predicted_sizes[np.searchsorted(predicted_ids, pairs[0])]
    second = true_sizes[np.searchsorted(true_ids, pairs[1])]
    ious = overlaps / (first + second - overlaps)
    return ObjectCounts(
        true=len(true_ids),
        predicted=len(predicted_ids),
        matched=tuple(int((ious > limit).sum()) for limit in IOU_LIMITS),
    )


def average_precision(*, true: int, predicted: int, matched: Sequence[int]) -> float | None:
    """Mean over IOU_LIMITS of TP / (TP + FP + FN); None where there is no object, true or predicted."""
    total = true + predicted
    return mean_defined(hits / (total - hits) for hits in matched) if total else None


def _sizes(mask: Ids) -> tuple[Ids, Ids]:
    ids, sizes = np.unique(mask[mask > 0], return_counts=True)
    return ids, sizes
