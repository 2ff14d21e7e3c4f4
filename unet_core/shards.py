"""Samples <-> reproducible WebDataset shards, and their index.

A shard is a plain tar: for each sample `KEY.image.npy`, `KEY.mask.npy` and `KEY.json`, so that
`webdataset.WebDataset(url).decode()` reads it without code of ours. The arrays are stored raw: the index
knows their offsets, and a random crop is read for the price of the crop. Headers are fixed and members
sorted, so equal samples give equal bytes.
"""

import errno
import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unet_core.errors import DataError, RecipeError, StorageError
from unet_core.hashing import hash_file
from unet_core.samples import Array, ClassMap, Sample, Window, count_class_pixels
from unet_core.splits import SPLITS, Split

log = logging.getLogger(__name__)

#: Raised when a reader of today could not read the shards of tomorrow.
FORMAT_VERSION = 1
INDEX_NAME = "index.json"


@dataclass(frozen=True, kw_only=True)
class ArrayPlace:
    """Where an array lies in its tar."""

    offset: int
    """Byte offset of the first pixel."""
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SampleEntry:
    """One sample of a shard."""

    key: str
    image: ArrayPlace
    mask: ArrayPlace
    class_pixels: tuple[int, ...]
    channel_sums: tuple[int, ...]
    """Sum of the pixel values of each channel; integers, so that statistics don't depend on an order."""
    channel_square_sums: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One closed tar."""

    name: str
    """Path below the directory of shards: SPLIT/bBATCH-NUMBER.tar."""
    split: Split
    content: str
    """Hash of what went in (keys, hashes of the files, encoding): equal content is not written again."""
    sha256: str
    num_bytes: int
    samples: tuple[SampleEntry, ...]


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """All shards of a data set."""

    class_map: ClassMap
    channels: int
    shards: tuple[ShardEntry, ...]

    def of_split(self, split: Split) -> tuple[ShardEntry, ...]:
        """The shards of one split, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def num_samples(self, split: Split) -> int:
        """How many samples a split has."""
        return sum(len(shard.samples) for shard in self.of_split(split))

    def class_pixels(self, split: Split) -> dict[str, int]:
        """Pixels of each class in a split."""
        rows = [sample.class_pixels for shard in self.of_split(split) for sample in shard.samples]
        sums = np.array(rows, dtype=np.int64).reshape(-1, self.class_map.num_classes).sum(axis=0)
        return {name: int(count) for name, count in zip(self.class_map.names, sums, strict=True)}

    def train_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over all training pixels, in units of 0 to 1."""
        samples = [sample for shard in self.of_split("train") for sample in shard.samples]
        if not samples:
            raise DataError("no training samples: the shards have none in train. Run `dvc repro shard`.")
        pixels = sum(sample.image.shape[0] * sample.image.shape[1] for sample in samples)
        means, deviations = [], []
        for channel in range(self.channels):
            mean = sum(sample.channel_sums[channel] for sample in samples) / pixels
            square = sum(sample.channel_square_sums[channel] for sample in samples) / pixels
            means.append(mean / 255)
            # A constant channel would divide by zero; one grey level is the smallest honest deviation.
            deviations.append(max(square - mean**2, 1.0) ** 0.5 / 255)
        return tuple(means), tuple(deviations)


def shard_content(key_hashes: Iterable[tuple[str, str]], encoding: str) -> str:
    """Hash what decides a shard's bytes: (key, hash of its files) in order, and how they are encoded."""
    text = json.dumps([FORMAT_VERSION, encoding, list(key_hashes)])
    return hashlib.sha256(text.encode()).hexdigest()


def write_shard(
    directory: Path, name: str, split: Split, content: str, samples: Iterable[Sample], class_map: ClassMap
) -> ShardEntry:
    """Write one shard under a temporary name, flush it to disk, and only then give it its own.

    Raises StorageError when the disk is full; nothing half-written stays under the shard's name.
    """
    target = directory / name
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".tar.partial")
    counts = {}
    # Brings torch along, which costs readers and the light stages a second.
    import webdataset

    try:
        with partial.open("wb") as stream:
            # A fixed mtime and owner: two writes of the same samples are the same bytes.
            writer = webdataset.TarWriter(stream, mtime=0, user="unet", group="unet", encoder=False)
            for sample in samples:
                writer.write(_encode(sample))
                counts[sample.key] = _count(sample, class_map)
            writer.close()
            stream.flush()
            os.fsync(stream.fileno())
        places = _find_arrays(partial)
        entry = ShardEntry(
            name=name,
            split=split,
            content=content,
            sha256=hash_file(partial),
            num_bytes=partial.stat().st_size,
            samples=tuple(
                SampleEntry(key=key, image=places[key, "image"], mask=places[key, "mask"], **count)
                for key, count in counts.items()
            ),
        )
        partial.replace(target)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"disk full while writing a shard: {target}. Nothing half-written was kept; free some space and "
                "run `dvc repro` again, finished shards are not written twice."
            ) from error
        raise
    return entry


def _encode(sample: Sample) -> dict[str, bytes | str]:
    about = {"key": sample.key, "height": sample.image.shape[0], "width": sample.image.shape[1]}
    return {
        "__key__": sample.key,
        "image.npy": _npy(sample.image),
        "json": json.dumps(about, sort_keys=True).encode(),
        "mask.npy": _npy(sample.mask),
    }


def _npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def _count(sample: Sample, class_map: ClassMap) -> dict[str, tuple[int, ...]]:
    pixels = sample.image.reshape(-1, sample.image.shape[-1]).astype(np.int64)
    return {
        "class_pixels": count_class_pixels(sample.mask, class_map),
        "channel_sums": tuple(int(value) for value in pixels.sum(axis=0)),
        "channel_square_sums": tuple(int(value) for value in (pixels**2).sum(axis=0)),
    }


def _find_arrays(path: Path) -> dict[tuple[str, str], ArrayPlace]:
    """Offsets of the arrays' first pixels, read back from the tar that was written."""
    places = {}
    with tarfile.open(path) as archive, path.open("rb") as stream:
        for member in archive:
            key, _, extension = member.name.partition(".")
            if not extension.endswith("npy"):
                continue
            stream.seek(member.offset_data)
            version = np.lib.format.read_magic(stream)
            assert version == (1, 0), version
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            assert dtype == np.uint8, dtype
            places[key, extension.removesuffix(".npy")] = ArrayPlace(offset=stream.tell(), shape=shape)
    return places


def write_index(directory: Path, index: ShardIndex) -> None:
    """Write the index atomically, last: what it names is complete."""
    body = {
        "format": FORMAT_VERSION,
        "channels": index.channels,
        "masks": asdict(index.class_map),
        "num_samples": {split: index.num_samples(split) for split in SPLITS},
        "class_pixels": {split: index.class_pixels(split) for split in SPLITS},
        "shards": [asdict(shard) for shard in index.shards],
    }
    partial = directory / (INDEX_NAME + ".partial")
    try:
        partial.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        partial.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "disk full while writing" if full else "can't write"
        raise StorageError(
            f"{what} the index of shards: {directory / INDEX_NAME}: {error.strerror}. Free some space and start again."
        ) from error
    partial.replace(directory / INDEX_NAME)


def read_index(directory: Path) -> ShardIndex:
    """Read the index of a directory of shards; DataError if there is none or its format is another."""
    path = directory / INDEX_NAME
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no shards: {path} is missing. Run `dvc repro shard`.") from error
    except ValueError as error:
        raise DataError(f"index of shards is damaged: {path}: {error}. Run `dvc repro -f shard`.") from error
    if not isinstance(body, dict):
        raise DataError(f"index of shards is damaged: {path}: not an object. Run `dvc repro -f shard`.")
    if body.get("format") != FORMAT_VERSION:
        raise DataError(
            f"shards of another format: {path}: version {body.get('format')}, this code reads {FORMAT_VERSION}. "
            "Run `dvc repro -f shard`."
        )
    try:
        return ShardIndex(
            class_map=ClassMap(**body["masks"]),
            channels=body["channels"],
            shards=tuple(_shard_entry(shard) for shard in body["shards"]),
        )
    except (KeyError, TypeError, AttributeError, RecipeError) as error:
        raise DataError(f"index of shards is damaged: {path}: {error!r}. Run `dvc repro -f shard`.") from error


def _shard_entry(body: dict[str, Any]) -> ShardEntry:
    samples = tuple(
        SampleEntry(
            key=sample["key"],
            image=ArrayPlace(offset=sample["image"]["offset"], shape=tuple(sample["image"]["shape"])),
            mask=ArrayPlace(offset=sample["mask"]["offset"], shape=tuple(sample["mask"]["shape"])),
            class_pixels=tuple(sample["class_pixels"]),
            channel_sums=tuple(sample["channel_sums"]),
            channel_square_sums=tuple(sample["channel_square_sums"]),
        )
        for sample in body["samples"]
    )
    return ShardEntry(**{**body, "samples": samples})


class ShardReader:
    """Reads samples of one split by number, whole or a window of them, through mapped files.

    Safe to use from several threads.
    """

    def __init__(self, directory: Path, shards: Sequence[ShardEntry]) -> None:
        self.entries = tuple(sample for shard in shards for sample in shard.samples)
        self._maps = tuple(_map_file(directory / shard.name, shard.num_bytes) for shard in shards)
        self._shard_of = tuple(number for number, shard in enumerate(shards) for _ in shard.samples)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(number) for number in range(len(self)))

    def read(self, number: int, window: Window | None = None) -> Sample:
        """Sample `number`, or the part of it that lies in `window`."""
        entry = self.entries[number]
        data = self._maps[self._shard_of[number]]
        return Sample(
            key=entry.key, image=_read_array(data, entry.image, window), mask=_read_array(data, entry.mask, window)
        )


def _map_file(path: Path, num_bytes: int) -> np.memmap[Any, np.dtype[np.uint8]]:
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"a shard is missing: {path}. Run `dvc checkout` or `dvc repro shard`.") from error
    if found != num_bytes:
        raise DataError(
            f"a shard is damaged: {path}: {found} bytes, the index says {num_bytes}. Run `dvc repro -f shard`."
        )
    return np.memmap(path, dtype=np.uint8, mode="r")


def _read_array(data: Array, place: ArrayPlace, window: Window | None) -> Array:
    size = int(np.prod(place.shape))
    whole = data[place.offset : place.offset + size].reshape(place.shape)
    if window is None:
        return np.array(whole)
    rows = slice(window.top, window.top + window.height)
    columns = slice(window.left, window.left + window.width)
    return np.array(whole[rows, columns])


@contextmanager
def finished_shards(directory: Path) -> Iterator[dict[str, ShardEntry]]:
    """Shards that an earlier run left whole, by content; what is damaged or unfinished is removed.

    On leaving without an error, files that the new index does not name are removed too.
    """
    for leftover in directory.rglob("*.partial"):
        log.warning("removing a half-written shard: %s", leftover)
        leftover.unlink()
    try:
        old = read_index(directory).shards
    except DataError:
        old = ()
    whole = {
        shard.content: shard
        for shard in old
        if (directory / shard.name).is_file() and hash_file(directory / shard.name) == shard.sha256
    }
    yield whole
    named = {shard.name for shard in read_index(directory).shards}
    for tar in directory.rglob("*.tar"):
        if str(tar.relative_to(directory)) not in named:
            tar.unlink()
