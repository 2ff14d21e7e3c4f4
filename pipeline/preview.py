"""`unet preview`: what the network will see, as a picture for people."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.command import say
from pipeline.params import load_section
from pipeline.pictures import as_rgb, fit, grid, overlay, write_picture
from pipeline.placement import read_placement
from unet_core.index import read_index
from unet_core.loader import Batch, LaneLoader
from unet_core.plan import EpochPlan, plan_epoch
from unet_core.reader import ShardReader
from unet_core.samples import Array, ClassMap, Sample
from unet_core.trainer import TrainConfig
from unet_core.transforms import AugmentConfig

COLUMNS = 4


def preview(*, shards: Path, out: Path, count: int, epoch: int) -> None:
    """Write the first `count` training samples of an epoch: as they are, augmented, and with their masks over them.

    They come from the training's own loader, so they are exactly those of its first steps.
    """
    index = read_index(shards)
    config = load_section("train", TrainConfig)
    reader = ShardReader(shards, index.of_split("train"))
    plan = plan_epoch(
        [shard.num_samples for shard in index.of_split("train")],
        seed=config.seed,
        epoch=epoch,
        lanes=config.lanes,
        samples_per_lane=config.samples_per_lane,
        block_shards=config.block_shards,
    )
    loader = LaneLoader(
        reader,
        index.class_map,
        load_section("augment", AugmentConfig),
        seed=config.seed,
        threads=read_placement().loader_threads,
    )
    columns = []
    for number, sample in _first_samples(loader, plan, epoch, index.class_map):
        painted = overlay(sample.image, sample.mask, index.class_map)
        columns.append([fit(as_rgb(reader.read(number).image)), fit(as_rgb(sample.image)), fit(painted)])
        if len(columns) == count:
            break
    sheets = [columns[start : start + COLUMNS] for start in range(0, len(columns), COLUMNS)]
    write_picture(out, grid([row for sheet in sheets for row in zip(*sheet, strict=True)]))
    say(
        f"{out}: {len(columns)} of {len(reader)} training samples in epoch {epoch}; "
        "from above: as they are, augmented, with their masks"
    )


def _first_samples(
    loader: LaneLoader, plan: EpochPlan, epoch: int, class_map: ClassMap
) -> Iterator[tuple[int, Sample]]:
    """Augmented samples in the order of training, each with its number in the shards."""
    for step, batches in enumerate(loader.steps(plan, epoch=epoch, lanes=range(plan.num_lanes))):
        for lane, batch in enumerate(batches):
            yield from zip(plan.lane_step(lane, step).tolist(), _samples(batch, class_map), strict=True)


def _samples(batch: Batch, class_map: ClassMap) -> Iterator[Sample]:
    masks: Array = batch.masks.numpy()
    if class_map.kind == "multilabel":
        masks = np.moveaxis(masks, 1, -1)
    for key, image, mask in zip(batch.keys, np.moveaxis(batch.images.numpy(), 1, -1), masks, strict=True):
        yield Sample(key=key, image=image, mask=mask)
