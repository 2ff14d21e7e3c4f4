"""A network as other programs run it: one graph that takes images of any size, without our Python around it."""

import torch
from torch import Tensor, nn

from unet_core.model import Network


class AnySize(nn.Module):
    """The network's logits for images of any size, without a branch that depends on the size.

    A graph that is traced must not ask whether an image needs padding; so rows and columns are always picked by number,
    the last one repeated as often as the network's stride asks for.

    Shape:
        images: (N, C, H, W), levels as the network takes them
        logits: (N, K, H, W)
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = images.index_select(2, self._repeat_last(height)).index_select(3, self._repeat_last(width))
        logits: Tensor = self.network(padded)
        # As slices, they would be views whose layout depends on the size: another branch.
        return logits.index_select(2, torch.arange(height)).index_select(3, torch.arange(width))

    def _repeat_last(self, length: int) -> Tensor:
        """Numbers of rows or columns, as many as the network wants of so many."""
        stride, smallest = self.network.stride, self.network.smallest
        wanted = (length + stride - 1) // stride * stride
        if smallest > stride:
            wanted = torch.sym_max(wanted, smallest)  # type: ignore[no-untyped-call]
        return torch.arange(wanted).clamp(max=length - 1)
