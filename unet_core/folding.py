"""A trained network -> the same function with fewer layers, for prediction: batch norm goes into the convolutions."""

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Network = TypeVar("Network", bound=nn.Module)


def fold_batch_norm(model: Network) -> Network:
    """A copy in evaluation mode whose convolutions also do what the batch norm behind them did; channels last.

    Logits are those of `model` up to rounding. Other normalisations depend on the image and stay. A folded network is
    for prediction only: it has other weights than the model that it was made of, and can't be trained on.
    """
    folded = copy.deepcopy(model).eval()
    for block in list(folded.modules()):
        if isinstance(block, nn.Sequential):
            _fold_block(block)
    return folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _fold_block(block: nn.Sequential) -> None:
    for place in range(len(block) - 1):
        layer, following = block[place], block[place + 1]
        if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            block[place] = fuse_conv_bn_eval(layer, following)
            block[place + 1] = nn.Identity()
