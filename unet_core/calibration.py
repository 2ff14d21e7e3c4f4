"""Does a model that says 90 % err in one case of ten? Histograms of its confidence, which add up, and their error."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unet_core.metrics import predict_classes, predict_planes
from unet_core.samples import IGNORE_INDEX

#: Bins of equal width over confidences 0 to 1, as in Guo et al. (2017).
NUM_BINS = 15

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ConfidenceHistogram:
    """Decisions about pixels by the confidence they were made with; histograms add up over images and classes."""

    decisions: Counts
    """(NUM_BINS,)"""
    right: Counts
    confidence: Floats
    """Sum over the decisions of each bin."""


def expected_calibration_error(decisions: Counts, right: Counts, confidence: Floats) -> float | None:
    """Mean gap between confidence and share of right decisions, weighted by decisions (Guo et al. 2017, eq. 3)."""
    total = decisions.sum()
    return float(np.abs(confidence - right).sum() / total) if total else None


def count_confidence(logits: Tensor, mask: Tensor) -> list[ConfidenceHistogram]:
    """One histogram a class: of the pixels given to it or, where classes overlap, of yes and no for every pixel.

    `logits` (K, H, W); `mask` (H, W) indices, or (K, H, W) planes of classes that overlap.
    """
    if mask.dim() == 3:
        probability = logits.sigmoid()
        confidence, right = torch.maximum(probability, 1 - probability), predict_planes(logits) == mask.bool()
        return [_histogram(confidence[k], right[k]) for k in range(len(logits))]
    confidence = logits.softmax(dim=0).max(dim=0).values
    given = predict_classes(logits)
    valid = mask != IGNORE_INDEX
    right = given == mask
    chosen = [valid & (given == k) for k in range(len(logits))]
    return [_histogram(confidence[pixels], right[pixels]) for pixels in chosen]


def _histogram(confidence: Tensor, right: Tensor) -> ConfidenceHistogram:
    sure, hits = confidence.flatten().double().numpy(), right.flatten().numpy()
    bins = np.minimum((sure * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    return ConfidenceHistogram(
        decisions=np.bincount(bins, minlength=NUM_BINS),
        right=np.bincount(bins[hits], minlength=NUM_BINS),
        confidence=np.bincount(bins, weights=sure, minlength=NUM_BINS).astype(np.float64),
    )
