"""Exact, mergeable counts -> Dice and IoU. A score that has no denominator is undefined, never 0 or 1."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from unet_core.samples import IGNORE_INDEX, Array, ClassMap


def mask_to_tensor(masks: Array, class_map: ClassMap) -> Tensor:
    """Encoded masks (N, H, W) or (N, H, W, K) as the tensor that losses and metrics take."""
    tensor = torch.from_numpy(masks)
    return tensor.long() if class_map.kind == "multiclass" else tensor.permute(0, 3, 1, 2)


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


def predict_planes(logits: Tensor) -> Tensor:
    """Overlapping classes: logits above 0, that is probability above one half. Same shape, bool."""
    return logits > 0


def count_pixels(logits: Tensor, mask: Tensor) -> list[Counts]:
    """Count one image, per class: logits (K, H, W), mask (H, W) indices or (K, H, W) planes."""
    if mask.dim() == 3:
        predicted, true = predict_planes(logits), mask.bool()
    else:
        valid = mask != IGNORE_INDEX
        classes = torch.arange(logits.shape[0], device=logits.device).view(-1, 1, 1)
        predicted = (logits.argmax(dim=0) == classes) & valid
        true = mask == classes
    both = (predicted & true).sum(dim=(1, 2)).tolist()
    predicted_sizes, true_sizes = predicted.sum(dim=(1, 2)).tolist(), true.sum(dim=(1, 2)).tolist()
    return [
        Counts(true_positive=hit, false_positive=size - hit, false_negative=true_size - hit)
        for hit, size, true_size in zip(both, predicted_sizes, true_sizes, strict=True)
    ]


def mean_defined(scores: Iterable[float | None]) -> float | None:
    """Mean of the scores that are defined; None where none is."""
    defined = [score for score in scores if score is not None]
    return sum(defined) / len(defined) if defined else None


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
