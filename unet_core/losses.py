"""Losses, pure functions on logits, and their weighted sum.

Shapes everywhere: logits (N, K, H, W); masks (N, H, W) int64 class indices with `IGNORE_INDEX`, or
(N, K, H, W) zeros and ones for overlapping classes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from unet_core.errors import RecipeError
from unet_core.samples import IGNORE_INDEX, ClassMap

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits, masks) -> a number to be made small."""


def binary_cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean over all pixels and classes, for overlapping classes."""
    return F.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype))


def cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean over the pixels that belong to a class; 0 where none does."""
    valid = masks != IGNORE_INDEX
    # By gather, since torch has no deterministic cross-entropy of images on GPUs.
    chosen = logits.log_softmax(dim=1).gather(1, torch.where(valid, masks, 0).unsqueeze(1)).squeeze(1)
    return -torch.where(valid, chosen, 0).sum() / valid.sum().clamp(min=1)


def soft_dice(logits: Tensor, masks: Tensor, *, smooth: float = 1.0) -> Tensor:
    """1 - (2 |P T| + smooth) / (|P| + |T| + smooth), per image and class, then the mean.

    P are probabilities: softmax for class indices, sigmoid for overlapping classes. As in the tutorial.
    """
    probabilities, targets = _probabilities_and_targets(logits, masks)
    overlap = (probabilities * targets).sum(dim=(2, 3))
    size = probabilities.sum(dim=(2, 3)) + targets.sum(dim=(2, 3))
    return (1 - (2 * overlap + smooth) / (size + smooth)).mean()


def _probabilities_and_targets(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    if masks.dim() == logits.dim():
        return logits.sigmoid(), masks.to(logits.dtype)
    valid = (masks != IGNORE_INDEX).unsqueeze(1)
    classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
    return logits.softmax(dim=1) * valid, (masks.unsqueeze(1) == classes).to(logits.dtype)


LOSSES: Mapping[str, Loss] = {
    "bce": binary_cross_entropy,
    "cross_entropy": cross_entropy,
    "dice": soft_dice,
}


def weighted_loss(weights: Mapping[str, float], class_map: ClassMap) -> Loss:
    """The weighted sum that the recipe names, computed in float32; RecipeError for a loss that does not fit."""
    if not weights:
        raise RecipeError(f"train.loss is empty. Give weights to one or more of {sorted(LOSSES)}.")
    unfit = "cross_entropy" if class_map.kind == "multilabel" else "bce"
    for name in weights:
        if name not in LOSSES:
            raise RecipeError(f"unknown loss: train.loss: {name!r}. Choose from {sorted(LOSSES)}.")
        if name == unfit:
            fit = "cross_entropy" if unfit == "bce" else "bce"
            raise RecipeError(f"train.loss: {unfit} does not fit masks.kind: {class_map.kind}. Use {fit}.")
    terms = [(weight, LOSSES[name]) for name, weight in weights.items()]

    def loss(logits: Tensor, masks: Tensor) -> Tensor:
        logits = logits.float()
        return torch.stack([weight * term(logits, masks) for weight, term in terms]).sum()

    return loss
