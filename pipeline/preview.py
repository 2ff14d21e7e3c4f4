"""`unet preview`: training samples as the network will see them, beside the images that they are drawn from."""

from pathlib import Path

import numpy as np

from pipeline.command import say
from pipeline.params import load_section
from pipeline.pictures import as_rgb, fit, grid, overlay, write_picture
from pipeline.placement import read_placement
from unet_core.errors import DataError
from unet_core.index import read_index
from unet_core.loader import Batch, LaneLoader
from unet_core.reader import ShardReader
from unet_core.samples import Array, ClassMap
from unet_core.train_config import TrainConfig
from unet_core.transforms import AugmentConfig


def preview(*, shards: Path, out: Path, count: int, epoch: int) -> None:
    """Write a contact sheet of an epoch's first samples: whole image, augmented crop, its mask over it."""
    if count < 1 or epoch < 0:
        raise DataError(f"--count {count} --epoch {epoch}: the count is at least 1, the epoch not negative.")
    index, config = read_index(shards), load_section("train", TrainConfig)
    reader = ShardReader(shards, index.of_split("train"))
    plan = config.plan(reader, index.class_map, epoch=epoch)
    augment, threads = load_section("augment", AugmentConfig), read_placement().loader_threads
    loader = LaneLoader(reader, index.class_map, augment, seed=config.seed, threads=threads)
    rows: list[list[Array]] = []
    for step, batches in enumerate(loader.steps(plan, epoch=epoch, lanes=range(config.lanes))):
        numbers = plan.step(step)
        for lane, batch in enumerate(batches):
            for place, number in enumerate(numbers[lane]):
                rows.append([fit(as_rgb(reader.read(int(number)).image)), *_seen(batch, place, index.class_map)])
        if len(rows) >= count:
            break
    half = -(-min(count, len(rows)) // 2)
    # Two samples beside each other: a sheet that fits a screen.
    right = [*rows[half:count], []]
    write_picture(out, grid([row + right[place] for place, row in enumerate(rows[:half])]))
    say(f"{min(count, len(rows))} samples of epoch {epoch} in {out}: image, what the network sees, its mask over it")


def _seen(batch: Batch, place: int, class_map: ClassMap) -> list[Array]:
    """A sample of a batch, and its mask over it."""
    image = np.ascontiguousarray(batch.images[place].permute(1, 2, 0).numpy())
    mask = batch.masks[place].numpy()
    if class_map.kind == "multilabel":
        mask = np.ascontiguousarray(mask.transpose(1, 2, 0))
    return [fit(as_rgb(image)), fit(overlay(image, mask, class_map))]
