"""Plan -> batches, one per lane, resumable at any step; the next ones are made ready by threads.

A batch is a function of (shards, recipe, epoch, step, lane): how many threads or workers there are changes nothing.
"""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from unet_core.border import BorderWeight, border_weights
from unet_core.errors import TrainingError
from unet_core.plan import EpochPlan
from unet_core.reader import ShardReader
from unet_core.samples import ClassMap, Sample, class_indices
from unet_core.transforms import Augmentation, AugmentConfig, draw_window, pad_to, sample_seed

#: Remote shards are fetched this many steps before their samples are read.
AHEAD_STEPS = 16


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The samples of one lane in one step."""

    keys: tuple[str, ...]
    images: torch.Tensor
    """(N, C, H, W) uint8 or uint16, channels last in memory."""
    masks: torch.Tensor
    """(N, H, W) uint8 class indices, or (N, K, H, W) uint8 planes; `mask_to_tensor`'s kind once on the device."""
    border: torch.Tensor | None
    """(N, H, W) float32 weights of the background between cells, where the recipe asks for them."""


#: The batches of some lanes for each step, to be closed when left early: threads work ahead.
StepBatches = Generator[list[Batch], None, None]


class LaneLoader:
    """Serves the training batches of some lanes."""

    def __init__(
        self,
        reader: ShardReader,
        class_map: ClassMap,
        augment: AugmentConfig,
        *,
        seed: int,
        threads: int = 1,
        border: BorderWeight | None = None,
    ) -> None:
        self.reader = reader
        self._class_map = class_map
        self._crop_px = augment.crop_px
        self._augmentation = Augmentation(augment, class_map)
        self._seed = seed
        self._threads = threads
        self._border = border
        if augment.crop_px is None:
            self._check_one_size()
        if reader.shards:
            self._augmentation.check(self._blank())

    def _check_one_size(self) -> None:
        heights = [height for shard in self.reader.shards for height in shard.heights]
        widths = [width for shard in self.reader.shards for width in shard.widths]
        if heights and (min(heights), min(widths)) != (max(heights), max(widths)):
            raise TrainingError(
                f"training images differ in size: heights {min(heights)} to {max(heights)}, widths {min(widths)} to "
                f"{max(widths)} px. Set augment.crop_px in params.yaml, so that batches can be made."
            )

    def _blank(self) -> Sample:
        """A sample of the shape and depth of all others, for transforms to be tried on."""
        shard = self.reader.shards[0]
        height, width = (self._crop_px or size[0] for size in (shard.heights, shard.widths))
        values = np.random.default_rng(0).integers(0, 256, (height, width, len(shard.channel_sums)))
        planes = (self._class_map.num_classes,) if self._class_map.kind == "multilabel" else ()
        kind = np.uint16 if self._class_map.kind == "instances" else np.uint8
        return Sample(key="", image=values.astype(shard.dtype), mask=np.zeros((height, width, *planes), kind))

    def steps(self, plan: EpochPlan, *, epoch: int, lanes: Sequence[int], first: int = 0) -> StepBatches:
        """Batches of `lanes` for each step of an epoch, beginning at step `first`."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="loader") as pool:
            waiting: deque[Future[list[Batch]]] = deque()
            try:
                for step in range(first, min(first + AHEAD_STEPS, plan.num_steps)):
                    self._fetch_ahead(plan, lanes, step)
                for step in range(first, plan.num_steps):
                    if step + AHEAD_STEPS < plan.num_steps:
                        self._fetch_ahead(plan, lanes, step + AHEAD_STEPS)
                    waiting.append(pool.submit(self._make_step, plan, epoch, lanes, step))
                    if len(waiting) > self._threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _fetch_ahead(self, plan: EpochPlan, lanes: Sequence[int], step: int) -> None:
        self.reader.fetch_ahead([int(number) for lane in lanes for number in plan.lane_step(lane, step)])

    def _make_step(self, plan: EpochPlan, epoch: int, lanes: Sequence[int], step: int) -> list[Batch]:
        draws = [plan.lane_draws(lane, step).T.tolist() for lane in lanes]
        return [self._collate([self._load(number, epoch, earlier) for number, earlier in lane]) for lane in draws]

    def _load(self, number: int, epoch: int, earlier: int) -> Sample:
        """A sample as this epoch has it after it had it `earlier` times."""
        shard, entry = self.reader.open(number)
        seed = sample_seed(seed=self._seed, epoch=epoch, key=entry.key, earlier=earlier)
        if self._crop_px is None:
            return self._augmentation.apply(shard.read(entry, None), seed)
        window = draw_window(entry.image.shape, self._crop_px, seed)
        sample = pad_to(shard.read(entry, window), self._crop_px, self._class_map)
        return self._augmentation.apply(sample, seed)

    def _collate(self, samples: Sequence[Sample]) -> Batch:
        images = torch.from_numpy(np.stack([sample.image for sample in samples]))
        masks = torch.from_numpy(np.stack([class_indices(sample.mask, self._class_map) for sample in samples]))
        return Batch(
            keys=tuple(sample.key for sample in samples),
            # (N, H, W, C) in memory is exactly channels_last of (N, C, H, W): no copy.
            images=images.permute(0, 3, 1, 2),
            # Widened to int64 on the device: eight times fewer bytes to move.
            masks=masks if masks.dim() == 3 else masks.permute(0, 3, 1, 2),
            border=None if self._border is None else self._weigh(samples, self._border),
        )

    def _weigh(self, samples: Sequence[Sample], border: BorderWeight) -> torch.Tensor:
        weights = [border_weights(sample.mask, self._class_map, border) for sample in samples]
        return torch.from_numpy(np.stack(weights))
