"""The loss of a network with heads at several decoder levels (Lee et al. 2015; weights after nnU-Net, Isensee 2021)."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from unet_core.errors import RecipeError
from unet_core.losses import Loss, are_weights
from unet_core.model_config import ModelConfig


class HeadsLoss(Protocol):
    """What a network gives, masks and border weights -> a number to be made small."""

    def __call__(
        self, outputs: Tensor | Sequence[Tensor], masks: Tensor, border: Tensor | None = None, /
    ) -> Tensor: ...


def supervised_loss(loss: Loss, config: ModelConfig, weights: Sequence[float] | None) -> HeadsLoss:
    """The weighted mean of the losses of all heads, each on masks of its size; weights None are 1, 1/2, 1/4 ...

    Logits alone, as in prediction, have the loss itself. Raises RecipeError for weights that don't fit the heads.
    """
    shares = _shares(config, weights)

    def compute(outputs: Tensor | Sequence[Tensor], masks: Tensor, border: Tensor | None = None, /) -> Tensor:
        if isinstance(outputs, Tensor):
            return loss(outputs, masks, border)
        heads = zip(shares, outputs, config.head_strides, strict=True)
        return torch.stack(
            [
                share * loss(logits, shrink(masks, stride), None if border is None else shrink(border, stride))
                for share, logits, stride in heads
            ]
        ).sum()

    return compute


def _shares(config: ModelConfig, weights: Sequence[float] | None) -> list[float]:
    num_heads = config.deep_supervision + 1
    if weights is None:
        weights = [0.5**level for level in range(num_heads)]
    elif not config.deep_supervision:
        raise RecipeError(
            f"train.deep_supervision_weights: {list(weights)}: the network has no heads to be weighted. "
            "Set model.deep_supervision to the number of coarse levels, or remove the weights."
        )
    elif len(weights) != num_heads:
        raise RecipeError(
            f"train.deep_supervision_weights: {len(weights)} weights for {num_heads} heads. Give the prediction's "
            "first, and then one for each of model.deep_supervision's coarser levels."
        )
    elif not (are_weights(weights) and weights[0]):
        raise RecipeError(
            f"train.deep_supervision_weights: {list(weights)}: must not be negative, and the first, of the prediction, "
            "not 0."
        )
    return [weight / sum(weights) for weight in weights]


def shrink(masks: Tensor, stride: int) -> Tensor:
    """(..., H, W) -> (..., ceil(H / stride), ceil(W / stride)): of each square the pixel nearest to its middle."""
    if stride == 1:
        return masks
    rows, columns = (
        # A square that the image cuts off may have its middle beyond it.
        torch.arange(stride // 2, length + stride // 2, stride, device=masks.device).clamp(max=length - 1)
        for length in masks.shape[-2:]
    )
    return masks[..., rows[:, None], columns]
