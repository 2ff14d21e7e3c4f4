"""The batches of a step -> the mean gradient over all lanes, where the optimizer looks for it, and the mean loss.

Exactly, with a pass for each lane and sums along the tree; or at once, with one pass over all lanes of a worker and
DDP's own all-reduce, whose result follows the number of workers.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unet_core.compilation import compile_network
from unet_core.deep_supervision import HeadsLoss
from unet_core.inference import autocast
from unet_core.loader import Batch
from unet_core.model import ModelSpec, Network
from unet_core.reduction import BatchStatistics, GradientTree, LaneTree, PartialSums
from unet_core.train_config import TrainConfig


class Backward(Protocol):
    """What a step of training needs."""

    lane_losses: list[Tensor]
    """Losses of this worker's lanes in the last step: where their mean is not a number, they tell whose fault it is."""

    def run(self, batches: Sequence[Batch], step: int, *, scale: float = 1.0) -> float:
        """Leave `scale` times the mean gradient in the parameters, move the running statistics, give the mean loss."""


def _training_pass(model: Network, tree: LaneTree, device: torch.device, config: TrainConfig) -> nn.Module:
    """The network as training calls it: compiled where the recipe says so, and with DDP's hooks in a group."""
    network = compile_network(model, device) if config.compile else model
    if tree.world_size == 1:
        return network
    return DistributedDataParallel(network, forward_sync_buffers=False, gradient_as_bucket_view=True)


class LaneByLane:
    """A forward and a backward pass for each lane: the same bits for every number of workers.

    In a group, the last lane's backward pass runs under DDP, whose hook adds what the earlier lanes left and starts
    each bucket's exchange while the pass goes on. A lane's micro-batches are the leaves of the tree below the lane:
    gradients take the memory of log2(lanes of the worker * micro-batches) + 2 copies of the weights at most.
    """

    def __init__(
        self,
        model: Network,
        spec: ModelSpec,
        loss: HeadsLoss,
        tree: LaneTree,
        device: torch.device,
        config: TrainConfig,
    ) -> None:
        self.lane_losses: list[Tensor] = []
        self._loss = batch_loss(spec, loss, device)
        self._draws = _Draws(spec, config.seed)
        self._accumulate = config.accumulate
        self._tree = tree
        self._device = device
        self._gradients = GradientTree(model, tree)
        self._statistics = BatchStatistics(model)
        self._network = _training_pass(model, tree, device, config)
        if isinstance(self._network, DistributedDataParallel):
            self._network.register_comm_hook(None, self._gradients.hook)

    def run(self, batches: Sequence[Batch], step: int, *, scale: float = 1.0) -> float:
        """See `Backward`."""
        self._statistics.begin()
        self.lane_losses = []
        scalars = PartialSums()
        for number, batch in enumerate(batches):
            self._draws.begin(step, self._tree.lanes[number])
            found = self._run_lane(batch, scale, is_last=number == len(batches) - 1)
            # A copy: sums are made in place.
            self.lane_losses.append(found[0].clone())
            scalars.push([found])
        if self._tree.world_size == 1:
            self._gradients.finish_alone()
        else:
            self._gradients.finish_group()
        means = self._tree.all_reduce(scalars.pop_total()[0]) / self._tree.num_lanes
        self._statistics.finish(means[1:])
        return float(means[0])

    def _run_lane(self, batch: Batch, scale: float, *, is_last: bool) -> Tensor:
        """The lane's mean loss and its batch statistics, as one vector."""
        scalars = PartialSums()
        parts = micro_batches(batch, self._accumulate)
        for number, (part, share) in enumerate(parts):
            exchange = self._tree.world_size > 1 and is_last and number == len(parts) - 1
            with _waiting(self._network, wait=not exchange):
                loss = self._loss(self._network, part)
                (loss * (share * scale)).backward()  # type: ignore[no-untyped-call]
            if not exchange:
                self._gradients.keep()
            statistics = self._statistics.read_lane().to(self._device)
            scalars.push([torch.cat([loss.detach().reshape(1), statistics]) * share])
        return scalars.pop_total()[0]


class AllAtOnce:
    """One pass over all lanes of a worker, and DDP's all-reduce: quicker on some machines, equal to rounding only."""

    def __init__(
        self,
        model: Network,
        spec: ModelSpec,
        loss: HeadsLoss,
        tree: LaneTree,
        device: torch.device,
        config: TrainConfig,
    ) -> None:
        self.lane_losses: list[Tensor] = []
        self._loss = batch_loss(spec, loss, device)
        self._draws = _Draws(spec, config.seed)
        self._accumulate = config.accumulate
        self._tree = tree
        self._device = device
        self._statistics = BatchStatistics(model)
        self._network = _training_pass(model, tree, device, config)

    def run(self, batches: Sequence[Batch], step: int, *, scale: float = 1.0) -> float:
        """See `Backward`."""
        self._statistics.begin()
        self._draws.begin(step, self._tree.lanes[0])
        parts = micro_batches(merge(batches), self._accumulate)
        means = torch.zeros((), device=self._device)
        for number, (part, share) in enumerate(parts):
            with _waiting(self._network, wait=number < len(parts) - 1):
                loss = self._loss(self._network, part)
                # DDP takes the mean over workers, whatever part of the lanes each of them has.
                (loss * (share * scale * self._tree.share * self._tree.world_size)).backward()  # type: ignore[no-untyped-call]
            statistics = self._statistics.read_lane().to(self._device)
            means = means + torch.cat([loss.detach().reshape(1), statistics]) * share
        self.lane_losses = [means[0]] * len(batches)
        means = means * self._tree.share
        if self._tree.world_size > 1:
            dist.all_reduce(means)
        self._statistics.finish(means[1:])
        return float(means[0])


def _waiting(network: nn.Module, *, wait: bool) -> AbstractContextManager[None]:
    """A backward pass after which DDP, if there is any, exchanges nothing yet."""
    return network.no_sync() if wait and isinstance(network, DistributedDataParallel) else nullcontext()


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


def micro_batches(batch: Batch, count: int) -> list[tuple[Batch, float]]:
    """A batch in `count` parts as equal as can be, each with its share of the samples.

    `count` is a power of two. A batch of fewer samples, the last of an epoch, has fewer parts: again a power of two.
    """
    size = len(batch.keys)
    count = min(count, 1 << (size.bit_length() - 1))
    ends = [size * number // count for number in range(count + 1)]
    return [(_part(batch, a, b), (b - a) / size) for a, b in pairwise(ends)]


def _part(batch: Batch, first: int, end: int) -> Batch:
    return Batch(
        keys=batch.keys[first:end],
        images=batch.images[first:end],
        masks=batch.masks[first:end],
        border=None if batch.border is None else batch.border[first:end],
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
