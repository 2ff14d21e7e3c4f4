"""The index of shards: a small index.json with one entry a shard, and a sidecar beside each tar with its samples.

Training plans an epoch from the index alone; a sidecar is opened with the first sample that is read from its shard.
A sidecar (SPLIT/NAME.jsonl) is a line with the shard's own entry, then one line a sample, so a run that was killed
before it wrote the index finds its finished shards again.
"""

import errno
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from unet_core.codecs import CODECS, Codec
from unet_core.errors import DataError, RecipeError, StorageError
from unet_core.samples import ClassMap, ImageConfig
from unet_core.splits import SPLITS, Split

#: Raised when a reader of today could not read the shards of tomorrow.
FORMAT_VERSION = 2
INDEX_NAME = "index.json"


@dataclass(frozen=True, kw_only=True)
class ArrayPlace:
    """Where an array lies in its tar."""

    offset: int
    """Byte offset of the payload: the first pixel of a raw array, else the first byte of the file."""
    num_bytes: int
    shape: tuple[int, ...]
    dtype: str
    """uint8 or uint16 (raw: little-endian)."""
    codec: Codec


@dataclass(frozen=True, kw_only=True)
class SampleEntry:
    """One sample of a shard."""

    key: str
    image: ArrayPlace
    mask: ArrayPlace
    class_pixels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Originals:
    """How the files are read that went into a shard as they came."""

    images: ImageConfig
    masks: ClassMap


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One closed tar. Sums are integers, so that statistics don't depend on an order."""

    name: str
    """Path below the directory of shards: SPLIT/bBATCH-NUMBER.tar."""
    split: Split
    content: str
    """Hash of what went in (keys, hashes of the files, encoding): equal content is not written again."""
    sha256: str
    num_bytes: int
    samples_sha256: str
    """Hash of the lines of the sidecar that tell of samples."""
    num_samples: int
    num_pixels: int
    dtype: str
    """Of all its images."""
    heights: tuple[int, int]
    """Smallest and largest of its images, in pixels."""
    widths: tuple[int, int]
    class_pixels: tuple[int, ...]
    channel_sums: tuple[int, ...]
    """Sum of the pixel values of each channel."""
    channel_square_sums: tuple[int, ...]
    originals: Originals | None = None
    """None where all arrays are raw or PNG."""


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
        return sum(shard.num_samples for shard in self.of_split(split))

    def class_pixels(self, split: Split) -> dict[str, int]:
        """Pixels of each class in a split."""
        rows = [shard.class_pixels for shard in self.of_split(split)]
        return {name: sum(row[number] for row in rows) for number, name in enumerate(self.class_map.names)}

    def train_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over all training pixels, in units of full scale (0 to 1)."""
        shards = self.of_split("train")
        pixels = sum(shard.num_pixels for shard in shards)
        if not pixels:
            raise DataError("no training samples: the shards have none in train. Run `dvc repro shard`.")
        white = int(np.iinfo(shards[0].dtype).max)
        means, deviations = [], []
        for channel in range(self.channels):
            total = sum(shard.channel_sums[channel] for shard in shards)
            squares = sum(shard.channel_square_sums[channel] for shard in shards)
            means.append(total / pixels / white)
            # In integers up to the division: for 16 bits the difference of two squares would lose its digits.
            variance = (squares * pixels - total**2) / pixels**2
            # A constant channel would divide by zero; one grey level is the smallest honest deviation.
            deviations.append(max(variance, 1.0) ** 0.5 / white)
        return tuple(means), tuple(deviations)


def sidecar_name(shard_name: str) -> str:
    """Path of a shard's sidecar below the directory of shards."""
    return shard_name.removesuffix(".tar") + ".jsonl"


def sample_lines(samples: Iterable[SampleEntry]) -> bytes:
    """The part of a sidecar that tells of samples."""
    return b"".join(json.dumps(asdict(sample), separators=(",", ":")).encode() + b"\n" for sample in samples)


def write_sidecar(directory: Path, entry: ShardEntry, lines: bytes) -> None:
    """Write a shard's sidecar atomically, after its tar."""
    head = json.dumps({"format": FORMAT_VERSION, **asdict(entry)}).encode() + b"\n"
    path = directory / sidecar_name(entry.name)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(head + lines)
    partial.replace(path)


def read_sidecar(directory: Path, shard_name: str) -> tuple[ShardEntry, list[bytes]]:
    """A shard's entry and one line a sample, checked against their hash; DataError where damaged or missing."""
    return parse_sidecar(sidecar_bytes(directory, shard_name), where=str(directory / sidecar_name(shard_name)))


def sidecar_bytes(directory: Path, shard_name: str) -> bytes:
    """A shard's sidecar as it is; DataError where it is missing."""
    path = directory / sidecar_name(shard_name)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"the sidecar of a shard is missing: {path}. Run `dvc checkout` or `dvc repro -f -s shard`."
        ) from error


def parse_sidecar(text: bytes, *, where: str) -> tuple[ShardEntry, list[bytes]]:
    """As read_sidecar, from the sidecar's bytes; `where` names it in errors."""
    try:
        head, _, lines = text.partition(b"\n")
        body = json.loads(head)
        if body.pop("format") != FORMAT_VERSION:
            raise ValueError("another format")
        entry = _shard_entry(body)
        if hashlib.sha256(lines).hexdigest() != entry.samples_sha256:
            raise ValueError("the hash of its samples differs")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"the sidecar of a shard is damaged: {where}: {error}. Run `dvc repro -f -s shard`.") from error
    return entry, lines.splitlines()


def sample_entry(line: bytes, *, where: str) -> SampleEntry:
    """The sample that a line of a sidecar tells of."""
    try:
        body = json.loads(line)
        return SampleEntry(
            key=body["key"],
            image=_array_place(body["image"]),
            mask=_array_place(body["mask"]),
            class_pixels=tuple(body["class_pixels"]),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"the sidecar of a shard is damaged: {where}: {error!r}. Run `dvc repro -f -s shard`."
        ) from error


def _array_place(body: dict[str, Any]) -> ArrayPlace:
    place = ArrayPlace(**{**body, "shape": tuple(body["shape"])})
    numbers = (place.offset, place.num_bytes, *place.shape)
    if place.dtype not in ("uint8", "uint16") or place.codec not in CODECS or len(place.shape) not in (2, 3):
        raise ValueError(f"an array of another kind: {body}")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"an impossible place: {body}")
    if place.codec == "raw" and place.num_bytes != math.prod(place.shape) * (1 if place.dtype == "uint8" else 2):
        raise ValueError(f"size and shape disagree: {body}")
    return place


def write_index(directory: Path, index: ShardIndex) -> None:
    """Write the index atomically, last: what it names is complete."""
    body = {
        "format": FORMAT_VERSION,
        "channels": index.channels,
        "masks": asdict(index.class_map),
        "num_samples": {split: index.num_samples(split) for split in SPLITS},
        "class_pixels": {split: index.class_pixels(split) for split in SPLITS},
    }
    # A line a shard: people compare two indices with `diff`.
    shards = ",\n".join("  " + json.dumps(asdict(shard)) for shard in index.shards)
    text = json.dumps(body, indent=1).removesuffix("\n}") + f',\n "shards": [\n{shards}\n ]\n}}\n'
    partial = directory / (INDEX_NAME + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
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
        raise DataError(f"index of shards is damaged: {path}: {error}. Run `dvc repro -f -s shard`.") from error
    if not isinstance(body, dict):
        raise DataError(f"index of shards is damaged: {path}: not an object. Run `dvc repro -f -s shard`.")
    if body.get("format") != FORMAT_VERSION:
        raise DataError(
            f"shards of another format: {path}: version {body.get('format')}, this code reads {FORMAT_VERSION}. "
            "Run `dvc repro -f -s shard`."
        )
    try:
        index = ShardIndex(
            class_map=ClassMap(**body["masks"]),
            channels=body["channels"],
            shards=tuple(_shard_entry(shard) for shard in body["shards"]),
        )
    except (KeyError, TypeError, AttributeError, RecipeError) as error:
        raise DataError(f"index of shards is damaged: {path}: {error!r}. Run `dvc repro -f -s shard`.") from error
    _check_entries(index.shards, path)
    return index


def _check_entries(shards: Sequence[ShardEntry], path: Path) -> None:
    for shard in shards:
        place = PurePosixPath(shard.name)
        if place.is_absolute() or ".." in place.parts or "\\" in shard.name or ":" in shard.name:
            raise DataError(
                f"an index names a file outside its folder: {path}: {shard.name}. "
                "Don't use these shards; get them anew from where you trust."
            )
    depths = sorted({shard.dtype for shard in shards})
    if len(depths) > 1:
        raise DataError(
            f"images differ in depth: {path}: {', '.join(depths)}. Choose one depth for all images, then shard again."
        )


def _shard_entry(body: dict[str, Any]) -> ShardEntry:
    lists = ("heights", "widths", "class_pixels", "channel_sums", "channel_square_sums")
    read = body.get("originals")
    originals = read and Originals(images=ImageConfig(**read["images"]), masks=ClassMap(**read["masks"]))
    return ShardEntry(**{**body, **{name: tuple(body[name]) for name in lists}, "originals": originals})
