"""The batches of a step -> the mean gradient over all lanes, where the optimizer looks for it, and the mean loss.

Exactly, with a pass for each lane and sums along the tree; or at once, with one pass over all lanes of a worker and
DDP's own all-reduce, whose result follows the number of workers.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unet_core.deep_supervision import HeadsLoss
from unet_core.inference import autocast
from unet_core.loader import Batch
from unet_core.model import ModelSpec, UNet
from unet_core.reduction import BatchStatistics, GradientTree, LaneTree, PartialSums


class Backward(Protocol):
    """What a step of training needs."""

    def run(self, batches: Sequence[Batch], step: int) -> float:
        """Leave the mean gradient in the parameters, move the running statistics, give the mean loss."""


class LaneByLane:
    """A forward and a backward pass for each lane: the same bits for every number of workers.

    In a group, the last lane's backward pass runs under DDP, whose hook adds what the earlier lanes left and starts
    each bucket's exchange while the pass goes on.
    """

    def __init__(
        self, model: UNet, spec: ModelSpec, loss: HeadsLoss, tree: LaneTree, device: torch.device, seed: int
    ) -> None:
        self._loss = batch_loss(spec, loss, device)
        self._draws = _Draws(spec, seed)
        self._tree = tree
        self._device = device
        self._gradients = GradientTree(model, tree)
        self._statistics = BatchStatistics(model)
        self._network: nn.Module = model
        if tree.world_size > 1:
            self._network = DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)
            self._network.register_comm_hook(None, self._gradients.hook)

    def run(self, batches: Sequence[Batch], step: int) -> float:
        """See `Backward`."""
        self._statistics.begin()
        scalars = PartialSums()
        for number, batch in enumerate(batches):
            self._draws.begin(step, self._tree.lanes[number])
            exchange = isinstance(self._network, DistributedDataParallel) and number == len(batches) - 1
            loss = self._run_lane(batch, exchange=exchange)
            if not exchange:
                self._gradients.keep()
            scalars.push([torch.cat([loss.reshape(1), self._statistics.read_lane().to(self._device)])])
        if self._tree.world_size == 1:
            self._gradients.finish_alone()
        else:
            self._gradients.finish_group()
        means = self._tree.all_reduce(scalars.pop_total()[0]) / self._tree.num_lanes
        self._statistics.finish(means[1:])
        return float(means[0])

    def _run_lane(self, batch: Batch, *, exchange: bool) -> Tensor:
        network = self._network
        wait = isinstance(network, DistributedDataParallel) and not exchange
        with network.no_sync() if wait else nullcontext():  # type: ignore[operator]
            loss = self._loss(network, batch)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


class AllAtOnce:
    """One pass over all lanes of a worker, and DDP's all-reduce: quicker on some machines, equal to rounding only."""

    def __init__(
        self, model: UNet, spec: ModelSpec, loss: HeadsLoss, tree: LaneTree, device: torch.device, seed: int
    ) -> None:
        self._loss = batch_loss(spec, loss, device)
        self._draws = _Draws(spec, seed)
        self._tree = tree
        self._device = device
        self._statistics = BatchStatistics(model)
        self._network: nn.Module = model
        if tree.world_size > 1:
            self._network = DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def run(self, batches: Sequence[Batch], step: int) -> float:
        """See `Backward`."""
        self._statistics.begin()
        self._draws.begin(step, self._tree.lanes[0])
        loss = self._loss(self._network, merge(batches))
        # DDP takes the mean over workers, whatever part of the lanes each of them has.
        (loss * (self._tree.share * self._tree.world_size)).backward()  # type: ignore[no-untyped-call]
        means = torch.cat([loss.detach().reshape(1), self._statistics.read_lane().to(self._device)]) * self._tree.share
        if self._tree.world_size > 1:
            dist.all_reduce(means)
        self._statistics.finish(means[1:])
        return float(means[0])


class _Draws:
    """What dropout leaves out is a function of seed, step and lane: not of the worker, nor of what was drawn before."""

    def __init__(self, spec: ModelSpec, seed: int) -> None:
        self._needed = spec.config.dropout > 0
        self._seed = seed

    def begin(self, step: int, lane: int) -> None:
        """Before a forward pass."""
        if self._needed:
            digest = hashlib.sha256(f"dropout:{self._seed}:{step}:{lane}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def merge(batches: Sequence[Batch]) -> Batch:
    """The samples of several lanes as one batch."""
    borders = [batch.border for batch in batches if batch.border is not None]
    return Batch(
        keys=tuple(key for batch in batches for key in batch.keys),
        images=torch.cat([batch.images for batch in batches]),
        masks=torch.cat([batch.masks for batch in batches]),
        border=torch.cat(borders) if borders else None,
    )


def batch_loss(spec: ModelSpec, loss: HeadsLoss, device: torch.device) -> Callable[[nn.Module, Batch], Tensor]:
    """The loss of a network on a batch, in the recipe's precision."""

    def compute(network: nn.Module, batch: Batch) -> Tensor:
        with autocast(device, spec.precision):
            outputs = network(batch.images.to(device))
        masks = batch.masks.to(device)
        border = None if batch.border is None else batch.border.to(device)
        return loss(outputs, masks.long() if masks.dim() == 3 else masks, border)

    return compute
