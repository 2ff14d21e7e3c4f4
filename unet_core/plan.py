"""Shard sizes and (seed, epoch) -> the lanes of an epoch: which sample is read where, decided before anything is read.

Shards are permuted, samples shuffled inside blocks of neighbouring shards, and the sequence is cut into
`lanes` equal contiguous ranges. World size does not occur here: a worker carries some of the lanes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unet_core.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """The order of one epoch."""

    lanes: npt.NDArray[np.int64]
    """(lanes, samples a lane): numbers of samples, counted through the shards in the order of the index."""
    remainder: npt.NDArray[np.int64]
    """The samples, fewer than `lanes`, that rest in this epoch; another draw each epoch."""
    samples_per_lane: int
    """Samples a step takes from each lane; the last step of an epoch takes what is left."""

    @property
    def num_steps(self) -> int:
        """Steps of this epoch."""
        return -(-self.lanes.shape[1] // self.samples_per_lane)

    def step(self, number: int) -> npt.NDArray[np.int64]:
        """Sample numbers of step `number`: (lanes, samples), any step at once."""
        return self.lanes[:, number * self.samples_per_lane : (number + 1) * self.samples_per_lane]


def plan_epoch(
    shard_sizes: Sequence[int], *, seed: int, epoch: int, lanes: int, samples_per_lane: int, block_shards: int
) -> EpochPlan:
    """Plan one epoch over shards with `shard_sizes` samples each; a pure function of its arguments."""
    num_samples = sum(shard_sizes)
    if num_samples < lanes:
        raise TrainingError(
            f"too few training samples: {num_samples} for {lanes} lanes. "
            "Add data, or lower train.lanes (the largest number of workers) in params.yaml."
        )
    rng = np.random.default_rng([seed, epoch])
    first_of_shard = np.concatenate([[0], np.cumsum(shard_sizes)])
    order = rng.permutation(len(shard_sizes))
    blocks = []
    for start in range(0, len(order), block_shards):
        numbers = [np.arange(first_of_shard[s], first_of_shard[s + 1]) for s in order[start : start + block_shards]]
        blocks.append(rng.permutation(np.concatenate(numbers)))
    sequence = np.concatenate(blocks).astype(np.int64)
    usable = num_samples - num_samples % lanes
    return EpochPlan(
        lanes=sequence[:usable].reshape(lanes, -1), remainder=sequence[usable:], samples_per_lane=samples_per_lane
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
