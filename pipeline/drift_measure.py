"""Traits of the training images, as a model sees them: one pass over the shards, in several processes.

Shares of classes are those that the model predicts on the training images, not those of their masks: a model that draws
every object a pixel too large does so on old and new images, and that is no drift.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path

from pipeline.model_files import ModelFiles, open_model_files
from pipeline.parallel import map_parallel
from pipeline.params import load_section
from pipeline.placement import Placement
from pipeline.predict_image import load_model
from pipeline.stages.shard import TILE_KEY, ShardConfig
from unet_core.errors import DataError
from unet_core.hashing import hash_file
from unet_core.index import INDEX_NAME, read_index
from unet_core.inference import predict_logits, predict_mask
from unet_core.model import ModelSpec
from unet_core.reader import ShardReader
from unet_core.samples import ImageConfig
from unet_core.trait_meter import TraitMeter, watched
from unet_core.traits import Traits


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a pass found."""

    num_images: int
    """Of the training split; `images` may be a choice of them."""
    images: tuple[Traits, ...]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What every process must know."""

    model: ModelFiles
    shards: Path
    index_sha256: str
    """Of their index as it is now: a process that looks twice must not read the shards of before."""


def measure_training(model: str, *, shards: Path, most: int, placement: Placement) -> Measured:
    """Traits of `most` training images at most; `model` is a registry address or a directory.

    DataError where the shards are not of such images and classes as the model was trained on.
    """
    with open_model_files(model) as files:
        return _measure_all(
            _Job(model=files, shards=shards, index_sha256=hash_file(shards / INDEX_NAME)), most, placement
        )


def _measure_all(job: _Job, most: int, placement: Placement) -> Measured:
    _, spec = load_model(job.model)
    _check_same_kind(spec, job)
    images = _images(_opened(job))
    if not images:
        raise DataError(f"no training samples: {job.shards} has none in train. Run `dvc repro shard`.")
    # The smallest hashes are a choice that new images hardly change, and that no order of keys decides.
    chosen = sorted(images, key=lambda image: hashlib.sha256(image[0].encode()).digest())[:most]
    found = map_parallel(
        partial(_measure, job),
        [numbers for _, numbers in sorted(chosen)],
        # Model and shards lie on this machine, so its own processes do the work, never a cluster's.
        placement=replace(placement, ray_address=None),
        label="training images",
        unit="images",
        on_death=partial(_died, job),
    )
    return Measured(num_images=len(images), images=tuple(found))


def _check_same_kind(spec: ModelSpec, job: _Job) -> None:
    """Numbers of images that are read in another way differ, whatever the images are."""
    classes = read_index(job.shards).class_map.names
    if spec.images != load_section("images", ImageConfig):
        raise DataError(
            "the model was trained on images that are read in another way: params.yaml: images. The model says "
            f"{spec.images}. Go back to the commit of the model, or name another model."
        )
    if spec.class_map.names != classes:
        raise DataError(
            f"not the model's training data: {job.shards}: classes {', '.join(classes)}; the model has "
            f"{', '.join(spec.class_map.names)}. Go back to the commit of the model, or name another model."
        )


def _images(reader: ShardReader) -> list[tuple[str, tuple[int, ...]]]:
    """Key and numbers of samples of each image: one, or its tiles, which lie side by side."""
    is_cut = load_section("shard", ShardConfig).tile_px is not None
    named = ((TILE_KEY.sub("", key) if is_cut else key, number) for number, key in enumerate(reader.keys()))
    return [(key, tuple(number for _, number in part)) for key, part in groupby(named, key=lambda pair: pair[0])]


def _measure(job: _Job, numbers: Sequence[int]) -> Traits:
    """Of an image, in its tiles."""
    network, spec = load_model(job.model)
    reader = _opened(job)
    meter = TraitMeter(spec)
    rows, columns = {}, {}
    with watched(network, meter):
        for number in numbers:
            sample = reader.read(number)
            meter.see_pixels(sample.image)
            meter.see_mask(predict_mask(predict_logits(network, spec, sample.image), spec))
            tile = TILE_KEY.search(sample.key) if len(numbers) > 1 else None
            row, column = tile[0][1:].split("-") if tile else ("0", "0")
            rows[row], columns[column] = sample.image.shape[:2]
    return meter.read(height=sum(rows.values()), width=sum(columns.values()))


@lru_cache(maxsize=1)
def _opened(job: _Job) -> ShardReader:
    """Once a process."""
    return ShardReader(job.shards, read_index(job.shards).of_split("train"))


def _died(job: _Job, numbers: Sequence[int]) -> Traits:
    key = _opened(job).entry(numbers[0]).key
    raise DataError(f"a process died while it predicted {key}: not enough memory? Set UNET_PROCESSES=1.")
