"""Stage 4: accepted samples -> closed WebDataset shards and their index. What lies there is not written again."""

import json
import logging
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import unet_core.codecs
import unet_core.packing
import unet_core.tiles
from pipeline.catalog import CatalogRow, read_catalog
from pipeline.params import load_section
from pipeline.progress import progress
from pipeline.references import read_row
from pipeline.source import IngestConfig
from pipeline.stages.split import read_splits
from unet_core.codecs import CODECS, Codec
from unet_core.errors import DataError, RecipeError
from unet_core.hashing import hash_file
from unet_core.index import Originals, ShardEntry, ShardIndex, write_index
from unet_core.packing import Counts, PackedSample, pack_all, pass_through
from unet_core.pairs import read_sample, reading_hashes
from unet_core.samples import ClassMap, ImageConfig, Sample
from unet_core.shards import finished_shards, shard_content, shard_number, write_shard
from unet_core.splits import SPLITS, Split
from unet_core.tiles import cut_tiles

log = logging.getLogger(__name__)

TILE_KEY = re.compile(r"@\d+-\d+$")


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """Recipe section `shard`."""

    target_mb: float
    """Decoded size, in millions of bytes, that a batch's shards have on average, all splits counted."""
    tile_px: int | None
    """Training images larger than this are cut into an even grid of tiles at most so large; null leaves them whole."""
    codec: Codec
    """raw: a crop is read for the price of the crop; png: smaller files, slower to read; original: the files as they
    came, decoded whenever they are read."""

    def __post_init__(self) -> None:
        if self.target_mb <= 0:
            raise RecipeError(f"shard.target_mb: {self.target_mb}: must be above 0.")
        if self.tile_px is not None and self.tile_px < 1:
            raise RecipeError(f"shard.tile_px: {self.tile_px}: must be at least 1, or null.")
        if self.codec not in CODECS:
            raise RecipeError(f"shard.codec: {self.codec!r}: choose one of {', '.join(CODECS)}.")
        if self.codec == "original" and self.tile_px is not None:
            raise RecipeError(
                f"shard.tile_px: {self.tile_px}: original files can't be cut. Set it to null, or choose another codec."
            )


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
    assigned, rows = _assign(read_catalog(accepted), read_splits(splits))
    _check_keys(rows, config)
    jobs = plan_shards(rows, assigned, config, images, class_map)
    shards.mkdir(parents=True, exist_ok=True)
    with finished_shards(shards) as finished:

        def make(job: ShardJob) -> ShardEntry:
            old = finished.get(job.content)
            if old is not None and old.name == job.name:
                return old
            if config.codec == "original":
                originals = Originals(images=images, masks=class_map)
                return write_shard(
                    shards, job.name, job.content, _files(job.rows, source, originals), originals=originals
                )
            tile_px = config.tile_px if job.split == "train" else None
            tiles = _tiles(job.rows, source, images, class_map, tile_px)
            return write_shard(shards, job.name, job.content, pack_all(tiles, class_map, config.codec))

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            entries = list(progress(pool.map(make, jobs), total=len(jobs), label="shard", unit="shards"))
        write_index(shards, ShardIndex(class_map=class_map, channels=images.channels, shards=tuple(entries)))
    kept = sum(entry.content in finished for entry in entries)
    log.info("shard: %d written, %d kept, %.1f MB", len(entries) - kept, kept, sum(e.num_bytes for e in entries) / 1e6)


def _assign(
    accepted: Sequence[CatalogRow], splits: Mapping[str, Split | None]
) -> tuple[dict[str, Split], list[CatalogRow]]:
    """Splits, and rows that have one; DataError if `split` did not decide on every accepted sample."""
    lost = [row.key for row in accepted if row.key not in splits]
    if lost:
        raise DataError(
            f"{len(lost)} accepted samples have no split, such as {lost[0]!r}. Run `dvc repro -f -s split`."
        )
    assigned = {key: split for key, split in splits.items() if split is not None}
    return assigned, [row for row in accepted if row.key in assigned]


def _check_keys(rows: Sequence[CatalogRow], config: ShardConfig) -> None:
    if config.tile_px is None:
        return
    alike = [row.key for row in rows if TILE_KEY.search(row.key)]
    if alike:
        raise DataError(
            f"a key that a tile could have: {alike[0]}. Rename the sample (tiles are named KEY@ROW-COLUMN), or set "
            "shard.tile_px: null."
        )


def plan_shards(
    rows: Sequence[CatalogRow],
    splits: dict[str, Split],
    config: ShardConfig,
    images: ImageConfig,
    class_map: ClassMap,
) -> list[ShardJob]:
    """Divide rows into shards so that no row's coming, going or change touches another row's shard.

    How many shards a batch has follows from what was recorded when it arrived; a row's key says which one it is in.
    """
    # Files that are read or written in another way are other shards.
    code = [hash_file(Path(str(module.__file__))) for module in (unet_core.codecs, unet_core.packing, unet_core.tiles)]
    encoding = [reading_hashes(), *code, asdict(images), asdict(class_map), config.codec]
    shards = defaultdict(list)
    for row in rows:
        num_shards = _num_shards(row.batch_pixels, config, images, class_map)
        shards[SPLITS.index(splits[row.key]), row.batch, shard_number(row.key, num_shards)].append(row)
    jobs = []
    for (split_number, batch, number), part in sorted(shards.items(), key=lambda item: item[0]):
        split = SPLITS[split_number]
        part.sort(key=lambda row: row.key)
        hashes = [(row.key, f"{row.image_sha256} {row.mask_sha256}") for row in part]
        tile_px = config.tile_px if split == "train" else None
        jobs.append(
            ShardJob(
                name=f"{split}/b{batch:04d}-{number:05d}.tar",
                split=split,
                content=shard_content(hashes, json.dumps([*encoding, tile_px])),
                rows=tuple(part),
            )
        )
    return jobs


def _num_shards(batch_pixels: int, config: ShardConfig, images: ImageConfig, class_map: ClassMap) -> int:
    """Shards of a batch: fixed for good by what was recorded, never by which rows are still there."""
    planes = class_map.num_classes if class_map.kind == "multilabel" else 1
    num_bytes = images.channels * images.bits // 8 + planes * (2 if class_map.kind == "instances" else 1)
    return max(1, math.ceil(batch_pixels * num_bytes / (config.target_mb * 1e6)))


def _tiles(
    rows: Sequence[CatalogRow], source: str, images: ImageConfig, class_map: ClassMap, tile_px: int | None
) -> Iterator[Sample]:
    for row in rows:
        image, masks = read_row(source, row)
        yield from cut_tiles(read_sample(row.key, image, masks, images, class_map), tile_px)


def _files(rows: Sequence[CatalogRow], source: str, originals: Originals) -> Iterator[PackedSample]:
    """The rows' files as they are; their hashes say that they are those that were checked and counted."""
    for row in rows:
        image, masks = read_row(source, row)
        assert row.height is not None, row.key
        assert row.width is not None, row.key
        shape = (row.height, row.width, originals.images.channels)
        counts = Counts(
            class_pixels=row.class_pixels,
            channel_sums=row.channel_sums,
            channel_square_sums=row.channel_square_sums,
        )
        yield pass_through(row.key, image, masks, shape, counts, originals)
