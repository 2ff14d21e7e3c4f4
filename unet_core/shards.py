"""Packed samples -> reproducible WebDataset shards.

A shard is a plain tar: for each sample `NAME.image.npy`, `NAME.json` and `NAME.mask.npy`, so that
`webdataset.WebDataset(url).decode()` reads it without code of ours. The arrays are stored raw unless the recipe says
otherwise: the sidecar knows their offsets, and a random crop is read for the price of the crop. Headers are fixed and
samples come sorted, so equal samples give equal bytes.
"""

import errno
import hashlib
import json
import logging
import os
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from unet_core.errors import DataError, StorageError
from unet_core.hashing import hash_file
from unet_core.index import (
    FORMAT_VERSION,
    ArrayPlace,
    Originals,
    SampleEntry,
    ShardEntry,
    read_index,
    read_sidecar,
    sample_lines,
    sidecar_name,
    write_sidecar,
)
from unet_core.packing import PackedArray, PackedSample
from unet_core.splits import SPLITS, Split

log = logging.getLogger(__name__)


def shard_content(key_hashes: Iterable[tuple[str, str]], encoding: str) -> str:
    """Hash what decides a shard's bytes: (key, hash of its files) in order, and how they are encoded."""
    text = json.dumps([FORMAT_VERSION, encoding, list(key_hashes)])
    return hashlib.sha256(text.encode()).hexdigest()


def shard_number(key: str, num_shards: int) -> int:
    """Which of a batch's shards holds a sample: its key alone decides, so no other sample moves it."""
    position = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return (position * num_shards) >> 64


def member_name(key: str) -> str:
    """A key as the name of a tar's members: WebDataset cuts at dots, and paths mean something else by some signs."""

    def is_plain(sign: str) -> bool:
        return sign not in "./\\%" and sign.isprintable()

    return "".join(
        sign if is_plain(sign) else "".join(f"%{byte:02X}" for byte in sign.encode("utf-8", "surrogatepass"))
        for sign in key
    )


def split_of(name: str) -> Split:
    """The split in a shard's name."""
    return next(split for split in SPLITS if name.startswith(f"{split}/"))


class ShardTotals:
    """What is added up over the samples of a shard while it is written, in integers."""

    def __init__(self) -> None:
        self.num_pixels = 0
        self._sizes: list[tuple[int, ...]] = []
        self._dtypes: set[str] = set()
        self._sums: dict[str, tuple[int, ...]] = {}

    def add(self, sample: PackedSample) -> None:
        """Count a sample."""
        height, width = sample.image.shape[:2]
        self.num_pixels += height * width
        self._sizes.append((height, width))
        self._dtypes.add(sample.image.dtype)
        if len(self._dtypes) > 1:
            raise DataError(
                f"images differ in depth: {sample.key}: {', '.join(sorted(self._dtypes))} in one shard. "
                "Choose one depth for all images."
            )
        for name, values in asdict(sample.counts).items():
            before = self._sums.get(name, (0,) * len(values))
            self._sums[name] = tuple(one + other for one, other in zip(before, values, strict=True))

    def fields(self) -> dict[str, Any]:
        """Fields of the shard's entry."""
        heights, widths = zip(*self._sizes, strict=True)
        return {
            "num_samples": len(self._sizes),
            "num_pixels": self.num_pixels,
            "dtype": next(iter(self._dtypes)),
            "heights": (min(heights), max(heights)),
            "widths": (min(widths), max(widths)),
            **self._sums,
        }


class TarStream:
    """Writes tar members whose headers are fixed, and hashes what it writes.

    By hand, since tarfile reads the clock and the owner, and would have to be read back for the offsets.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def add(self, name: str, data: bytes) -> int:
        """Write a member; the offset of its first byte."""
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.uname, info.gname = len(data), 0o444, "unet", "unet"
        self._write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))
        offset = self.num_bytes
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return offset

    def finish(self) -> str:
        """End the archive as every tar program does; the hash of all of it."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.num_bytes % tarfile.RECORDSIZE))
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._hash.update(data)
        self.num_bytes += len(data)


def write_shard(
    directory: Path,
    name: str,
    content: str,
    samples: Iterable[PackedSample],
    *,
    originals: Originals | None = None,
) -> ShardEntry:
    """Write one shard under a temporary name, flush it to disk, only then give it its own, and add its sidecar.

    `name` is SPLIT/NAME.tar. Samples are written as they come, one in memory at a time; `originals` says how to read
    those that passed through. Raises StorageError when the disk is full; nothing half-written stays under the shard's
    name.
    """
    target = directory / name
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".tar.partial")
    try:
        with partial.open("wb") as stream:
            tar, totals, entries = TarStream(stream), ShardTotals(), []
            for sample in samples:
                totals.add(sample)
                entries.append(_write_sample(tar, sample))
            sha256 = tar.finish()
            stream.flush()
            os.fsync(stream.fileno())
        lines = sample_lines(entries)
        entry = ShardEntry(
            name=name,
            split=split_of(name),
            content=content,
            sha256=sha256,
            num_bytes=tar.num_bytes,
            samples_sha256=hashlib.sha256(lines).hexdigest(),
            originals=originals,
            **totals.fields(),
        )
        partial.replace(target)
        write_sidecar(directory, entry, lines)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"disk full while writing a shard: {target}. Nothing half-written was kept; free some space and "
                "run `dvc repro` again, finished shards are not written twice."
            ) from error
        raise
    return entry


def _write_sample(tar: TarStream, sample: PackedSample) -> SampleEntry:
    """Members in the order of their names, as WebDataset's own writer has them."""
    name = member_name(sample.key)
    about = {"key": sample.key, "height": sample.image.shape[0], "width": sample.image.shape[1]}
    image = _write_array(tar, f"{name}.image", sample.image)
    tar.add(f"{name}.json", json.dumps(about, sort_keys=True).encode())
    mask = _write_array(tar, f"{name}.mask", sample.mask)
    return SampleEntry(key=sample.key, image=image, mask=mask, class_pixels=sample.counts.class_pixels)


def _write_array(tar: TarStream, name: str, array: PackedArray) -> ArrayPlace:
    offset = tar.add(f"{name}.{array.ending}", array.data) + array.begin
    return ArrayPlace(
        offset=offset,
        num_bytes=len(array.data) - array.begin,
        shape=array.shape,
        dtype=array.dtype,
        codec=array.codec,
    )


@contextmanager
def finished_shards(directory: Path) -> Iterator[dict[str, ShardEntry]]:
    """Shards that an earlier run left whole, by content, also a run that was killed before it wrote the index.

    What is half-written is removed at once; on leaving without an error, files that the new index does not name too.
    """
    for leftover in directory.rglob("*.partial"):
        log.warning("removing a half-written shard: %s", leftover)
        leftover.unlink()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda path: _whole_shard(directory, path), sorted(directory.rglob("*.tar")))
    yield {shard.content: shard for shard in found if shard is not None}
    named = {name for shard in read_index(directory).shards for name in (shard.name, sidecar_name(shard.name))}
    for pattern in ("*.tar", "*.jsonl"):
        for path in directory.rglob(pattern):
            if path.relative_to(directory).as_posix() not in named:
                path.unlink()


def _whole_shard(directory: Path, path: Path) -> ShardEntry | None:
    """The entry of a shard whose tar and sidecar are what they were when they were written."""
    name = path.relative_to(directory).as_posix()
    try:
        entry, _ = read_sidecar(directory, name)
    except DataError:
        return None
    return entry if entry.name == name and hash_file(path) == entry.sha256 else None
