"""Stage 4: accepted samples -> closed WebDataset shards and their index. What lies there is not written again."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from pipeline.catalog import CatalogRow, read_catalog
from pipeline.params import load_section
from pipeline.progress import progress
from pipeline.source import IngestConfig
from pipeline.stages.split import read_splits
from pipeline.storage import read_file
from unet_core.errors import RecipeError
from unet_core.pairs import read_sample, reading_hashes
from unet_core.samples import ClassMap, ImageConfig, Sample
from unet_core.shards import ShardEntry, ShardIndex, finished_shards, shard_content, write_index, write_shard
from unet_core.splits import SPLITS, Split

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """Recipe section `shard`."""

    target_mb: float
    """Decoded size, in millions of bytes, at which a shard is closed."""

    def __post_init__(self) -> None:
        if self.target_mb <= 0:
            raise RecipeError(f"shard.target_mb: {self.target_mb}: must be above 0.")


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """A shard to be: its name, its rows and the hash of what goes in."""

    name: str
    split: Split
    content: str
    rows: tuple[CatalogRow, ...]


def run(*, accepted: Path, splits: Path, shards: Path) -> None:
    """Write what is missing, then the index, then remove what the index does not name."""
    config = load_section("shard", ShardConfig)
    class_map = load_section("masks", ClassMap)
    source = load_section("ingest", IngestConfig).source
    images = load_section("images", ImageConfig)
    rows = read_catalog(accepted)
    jobs = plan_shards(rows, read_splits(splits), config, images, class_map)
    shards.mkdir(parents=True, exist_ok=True)
    with finished_shards(shards) as finished:

        def make(job: ShardJob) -> ShardEntry:
            old = finished.get(job.content)
            if old is not None and old.name == job.name:
                return old
            samples = _samples(job.rows, source, images, class_map)
            return write_shard(shards, job.name, job.split, job.content, samples, class_map)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            entries = list(progress(pool.map(make, jobs), total=len(jobs), label="shard", unit="shards"))
        write_index(shards, ShardIndex(class_map=class_map, channels=images.channels, shards=tuple(entries)))
    kept = sum(entry.content in finished for entry in entries)
    log.info("shard: %d written, %d kept, %.1f MB", len(entries) - kept, kept, sum(e.num_bytes for e in entries) / 1e6)


def plan_shards(
    rows: Sequence[CatalogRow],
    splits: dict[str, Split],
    config: ShardConfig,
    images: ImageConfig,
    class_map: ClassMap,
) -> list[ShardJob]:
    """Divide rows into shards, batch by batch, so that a later batch never touches an earlier shard."""

    def place(row: CatalogRow) -> tuple[int, int, str]:
        return SPLITS.index(splits[row.key]), row.batch, row.key

    meaning = [class_map.kind, class_map.classes, class_map.ignore, class_map.background, class_map.threshold]
    encoding = json.dumps([reading_hashes(), asdict(images), meaning])
    jobs = []
    for (split_number, batch), group in groupby(sorted(rows, key=place), key=lambda row: place(row)[:2]):
        for number, part in enumerate(_parts(list(group), config, images, class_map)):
            split = SPLITS[split_number]
            hashes = [(row.key, f"{row.image_sha256} {row.mask_sha256}") for row in part]
            jobs.append(
                ShardJob(
                    name=f"{split}/b{batch:04d}-{number:05d}.tar",
                    split=split,
                    content=shard_content(hashes, encoding),
                    rows=tuple(part),
                )
            )
    return jobs


def _parts(
    rows: list[CatalogRow], config: ShardConfig, images: ImageConfig, class_map: ClassMap
) -> Iterator[list[CatalogRow]]:
    planes = class_map.num_classes if class_map.kind == "multilabel" else 1
    part: list[CatalogRow] = []
    size = 0
    for row in rows:
        assert row.height
        assert row.width
        num_bytes = row.height * row.width * (images.channels + planes)
        if part and size + num_bytes > config.target_mb * 1e6:
            yield part
            part, size = [], 0
        part.append(row)
        size += num_bytes
    if part:
        yield part


def _samples(rows: Sequence[CatalogRow], source: str, images: ImageConfig, class_map: ClassMap) -> Iterator[Sample]:
    for row in rows:
        masks = [read_file(source, mask) for mask in row.masks]
        yield read_sample(row.key, read_file(source, row.image), masks, images, class_map)
