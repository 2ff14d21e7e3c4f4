"""Logits and masks -> exact counts of pixels."""

import torch
from torch import Tensor

from unet_core.counts import Counts
from unet_core.samples import IGNORE_INDEX, Array, ClassMap, class_indices


def mask_to_tensor(masks: Array, class_map: ClassMap) -> Tensor:
    """Encoded masks (N, H, W) or (N, H, W, K) as the tensor that losses and metrics take."""
    tensor = torch.from_numpy(class_indices(masks, class_map))
    return tensor.long() if class_map.kind != "multilabel" else tensor.permute(0, 3, 1, 2)


def predict_planes(logits: Tensor) -> Tensor:
    """Overlapping classes: logits above 0, that is probability above one half. Same shape, bool."""
    return logits > 0


def predict_classes(logits: Tensor) -> Tensor:
    """Class indices (H, W) of logits (K, H, W); of equal ones the first."""
    # Not argmax, which takes ten times as long over the first dimension.
    return logits.max(dim=0).indices


def count_pixels(logits: Tensor, mask: Tensor) -> list[Counts]:
    """Count one image, per class: logits (K, H, W), mask (H, W) indices or (K, H, W) planes."""
    if mask.dim() == 3:
        predicted, true = predict_planes(logits), mask.bool()
    else:
        valid = mask != IGNORE_INDEX
        classes = torch.arange(logits.shape[0], device=logits.device).view(-1, 1, 1)
        predicted = (predict_classes(logits) == classes) & valid
        true = mask == classes
    both = (predicted & true).sum(dim=(1, 2)).tolist()
    predicted_sizes, true_sizes = predicted.sum(dim=(1, 2)).tolist(), true.sum(dim=(1, 2)).tolist()
    return [
        Counts(true_positive=hit, false_positive=size - hit, false_negative=true_size - hit)
        for hit, size, true_size in zip(both, predicted_sizes, true_sizes, strict=True)
    ]
