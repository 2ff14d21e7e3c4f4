"""Shard sizes and (seed, epoch) -> the lanes of an epoch: which sample is read where, decided before anything is read.

Shards are permuted, samples shuffled inside blocks of neighbouring shards, and the sequence is cut into
`lanes` equal contiguous ranges. World size does not occur here: a worker carries some of the lanes.

Only the order of the shards is drawn at once; a block's order is drawn when a step first needs it, so an epoch of a
hundred million samples is planned in less than a second, and any step of it can be jumped to.

Where rare classes are oversampled, samples that have them take the place of others of their block. So an epoch stays as
long as it was, and each lane reads the shards that it read before.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from unet_core.errors import TrainingError

Numbers = npt.NDArray[np.int64]

#: Blocks whose order a plan holds beside one for each lane; a step may touch two blocks in a lane.
SPARE_BLOCKS = 8


@dataclass(frozen=True, kw_only=True)
class Oversampling:
    """Which samples an epoch has more often than once, in the place of others."""

    shares: Mapping[int, float]
    """Number of a class -> the share of the samples that are drawn again among those that have it."""
    presence: Callable[[int], npt.NDArray[np.bool_]]
    """Number of a shard -> which class occurs in which of its samples, (samples, classes)."""


class EpochPlan:
    """The order of one epoch. Safe to use from several threads."""

    def __init__(  # noqa: PLR0913 named, and all that decides an epoch
        self,
        shard_sizes: Sequence[int],
        *,
        seed: int,
        epoch: int,
        lanes: int,
        samples_per_lane: int,
        block_shards: int,
        oversampling: Oversampling | None = None,
    ) -> None:
        sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._seed = seed
        self._epoch = epoch
        self._block_shards = block_shards
        self._oversampling = oversampling
        self.num_lanes = lanes
        self.samples_per_lane = samples_per_lane
        """Samples a step takes from each lane; the last step of an epoch takes what is left."""
        # (seed, epoch) permutes the shards, (seed, epoch, 1 + number) shuffles a block.
        self._order = np.random.default_rng([seed, epoch, 0]).permutation(len(sizes))
        self._first_of_shard = np.cumsum(sizes) - sizes
        self._sizes = sizes
        ends = np.cumsum(sizes[self._order])
        last_of_block = np.append(np.arange(block_shards, len(sizes), block_shards), len(sizes)) - 1
        #: Places in the sequence at which the blocks begin, and the end of the last.
        self._starts = np.concatenate([[0], ends[last_of_block]])
        self._blocks: OrderedDict[int, Numbers] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def lane_size(self) -> int:
        """Samples of each lane."""
        return int(self._starts[-1]) // self.num_lanes

    @property
    def num_resting(self) -> int:
        """Samples, fewer than there are lanes, that rest in this epoch; others in each epoch."""
        return int(self._starts[-1]) % self.num_lanes

    @property
    def num_steps(self) -> int:
        """Steps of this epoch."""
        return -(-self.lane_size // self.samples_per_lane)

    def step(self, number: int) -> Numbers:
        """Sample numbers of step `number`, counted through the shards in the order of the index: (lanes, samples)."""
        return np.stack([self.lane_step(lane, number) for lane in range(self.num_lanes)])

    def lane_step(self, lane: int, number: int) -> Numbers:
        """One lane's sample numbers of a step; a worker draws the blocks of its own lanes only."""
        return self.lane_draws(lane, number)[0]

    def lane_draws(self, lane: int, number: int) -> Numbers:
        """One lane's sample numbers of a step, and how often this epoch has had each of them before: (2, samples)."""
        assert 0 <= number < self.num_steps, (number, self.num_steps)
        first = number * self.samples_per_lane
        last = min(first + self.samples_per_lane, self.lane_size)
        return self._sequence(lane * self.lane_size + first, last - first)

    def resting(self) -> Numbers:
        """The samples that rest in this epoch."""
        return self._sequence(self.lane_size * self.num_lanes, self.num_resting)[0]

    def _sequence(self, start: int, count: int) -> Numbers:
        """`count` draws of the epoch's sequence, from place `start` on: (2, count)."""
        parts = [np.empty((2, 0), dtype=np.int64)]
        block = int(np.searchsorted(self._starts, start, side="right")) - 1
        while count:
            part = self._block(block)[:, start - int(self._starts[block]) :][:, :count]
            parts.append(part)
            start, count, block = start + part.shape[1], count - part.shape[1], block + 1
        return np.concatenate(parts, axis=1)

    def _block(self, number: int) -> Numbers:
        """The draws of a block in their order, made now or remembered."""
        with self._lock:
            if number in self._blocks:
                self._blocks.move_to_end(number)
                return self._blocks[number]
        # Two threads may draw the same block at once: the same numbers, so neither has to wait for the other.
        made = self._draw(number)
        with self._lock:
            self._blocks[number] = made
            while len(self._blocks) > self.num_lanes + SPARE_BLOCKS:
                self._blocks.popitem(last=False)
        return made

    def _draw(self, number: int) -> Numbers:
        shards = self._order[number * self._block_shards : (number + 1) * self._block_shards]
        first, size = self._first_of_shard[shards], self._sizes[shards]
        numbers = np.concatenate([np.arange(f, f + n) for f, n in zip(first, size, strict=True)])
        rng = np.random.default_rng([self._seed, self._epoch, 1 + number])
        order = rng.permutation(numbers)
        if self._oversampling is None:
            return np.stack([order, np.zeros_like(order)])
        present = np.concatenate([self._oversampling.presence(int(shard)) for shard in shards])
        _draw_again(order, numbers, present, self._oversampling.shares, rng)
        return np.stack([order, _count_earlier(order)])

    @cached_property
    def lanes(self) -> Numbers:
        """(lanes, samples a lane): the whole epoch at once, for data sets that are small enough."""
        return self._sequence(0, self.lane_size * self.num_lanes)[0].reshape(self.num_lanes, -1)


def _draw_again(
    order: Numbers,
    numbers: Numbers,
    present: npt.NDArray[np.bool_],
    shares: Mapping[int, float],
    rng: np.random.Generator,
) -> None:
    """Put samples (`numbers`) that have a class in some places of `order`; nothing changes where there are none."""
    places, start = rng.permutation(len(order)), 0
    for class_number, share in shares.items():
        # Shares of small blocks are no whole numbers: right on average.
        taken = places[start : start + int(share * len(order) + rng.random())]
        start += len(taken)
        holders = rng.permutation(numbers[present[:, class_number]])
        if len(holders):
            # One after the other, so that none comes twice before all have come.
            order[taken] = np.resize(holders, len(taken))


def _count_earlier(order: Numbers) -> Numbers:
    """How often each value stands further to the left."""
    by_value = np.argsort(order, kind="stable")
    ordered = order[by_value]
    earlier = np.empty_like(order)
    earlier[by_value] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return earlier


def plan_epoch(  # noqa: PLR0913 named, and all that decides an epoch
    shard_sizes: Sequence[int],
    *,
    seed: int,
    epoch: int,
    lanes: int,
    samples_per_lane: int,
    block_shards: int,
    oversampling: Oversampling | None = None,
) -> EpochPlan:
    """Plan one epoch over shards with `shard_sizes` samples each; a pure function of its arguments."""
    num_samples = sum(shard_sizes)
    if num_samples < lanes:
        raise TrainingError(
            f"too few training samples: {num_samples} for {lanes} lanes. "
            "Add data, or lower train.lanes (the largest number of workers) in params.yaml."
        )
    return EpochPlan(
        shard_sizes,
        seed=seed,
        epoch=epoch,
        lanes=lanes,
        samples_per_lane=samples_per_lane,
        block_shards=block_shards,
        oversampling=oversampling,
    )


def lanes_of_workers(*, lanes: int, workers: int) -> list[range]:
    """Divide the lanes among workers: aligned subtrees of neighbouring lanes, in order of rank.

    Powers of two give equal shares; otherwise some workers carry twice as many: 8 lanes, 3 workers: 4 + 2 + 2.
    """
    if not 1 <= workers <= lanes:
        raise TrainingError(
            f"{workers} workers for {lanes} lanes: choose 1 to {lanes} workers (UNET_WORKERS), or raise train.lanes."
        )

    def divide(first: int, size: int, share: int) -> list[range]:
        if share == 1:
            return [range(first, first + size)]
        half = size // 2
        left = share // 2
        return divide(first, half, left) + divide(first + half, half, share - left)

    return divide(0, lanes, workers)
