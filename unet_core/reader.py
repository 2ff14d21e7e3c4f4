"""Reads samples of closed shards by number, whole or a window of them, through mapped files.

Nothing is opened before a sample of a shard is asked for, and only so many shards stay open: an index may have
a hundred thousand.
"""

import mmap
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from unet_core.codecs import Pixels, decode_array
from unet_core.errors import DataError
from unet_core.images import FileBytes, read_image
from unet_core.index import (
    ArrayPlace,
    Originals,
    SampleEntry,
    ShardEntry,
    parse_sidecar,
    sample_entry,
    sidecar_bytes,
    sidecar_name,
)
from unet_core.masks import read_mask
from unet_core.samples import Sample, Window

#: Shards that stay open at once: below the 1,024 files that a process may open on most systems.
MAX_OPEN = 512


@dataclass(frozen=True, kw_only=True)
class OpenShard:
    """A mapped tar and the lines of its sidecar."""

    name: str
    data: Pixels
    lines: list[bytes]
    originals: Originals | None
    """How files that passed through are read."""
    hold: object = None
    """What keeps the shard's file where it is, for as long as this object lives."""

    def entry(self, number: int) -> SampleEntry:
        """What the sidecar tells of its sample `number`."""
        return sample_entry(self.lines[number], where=f"{self.name}, sample {number}")

    def read(self, entry: SampleEntry, window: Window | None) -> Sample:
        """The sample, or a part of it, as arrays of their own."""
        where = f"{self.name}, {entry.key}"
        return Sample(
            key=entry.key,
            image=self._array(entry.image, window, lambda file, how: read_image(file, how.images), where),
            mask=self._array(entry.mask, window, lambda file, how: read_mask([file], how.masks), where),
        )

    def _array(
        self, place: ArrayPlace, window: Window | None, read: Callable[[FileBytes, Originals], Pixels], where: str
    ) -> Pixels:
        payload = self.data[place.offset : place.offset + place.num_bytes]
        if len(payload) != place.num_bytes:
            raise DataError(f"a shard is damaged: {where}: it ends inside the sample. Run `dvc repro -f -s shard`.")
        if place.codec == "original":
            whole = self._original(payload, place, read, where)
        else:
            whole = decode_array(payload, place.codec, shape=place.shape, dtype=place.dtype, where=where)
        if window is not None:
            rows = slice(window.top, window.top + window.height)
            columns = slice(window.left, window.left + window.width)
            whole = whole[rows, columns]
        # A copy, in the machine's own byte order: the file can't be changed through it.
        return np.array(whole, dtype=place.dtype)

    def _original(
        self, payload: Pixels, place: ArrayPlace, read: Callable[[FileBytes, Originals], Pixels], where: str
    ) -> Pixels:
        if self.originals is None:
            raise DataError(
                f"a shard is damaged: {where}: it does not say how its files are read. Run `dvc repro -f -s shard`."
            )
        array = read(FileBytes(name=where, data=payload.tobytes()), self.originals)
        if (array.shape, array.dtype.name) != (place.shape, place.dtype):
            raise DataError(
                f"a shard is damaged: {where}: {array.dtype} {array.shape}, the index says {place.dtype} "
                f"{place.shape}. Run `dvc repro -f -s shard`."
            )
        return array


class ShardFiles(Protocol):
    """Where shards come from."""

    def open(self, entry: ShardEntry) -> OpenShard:
        """The shard, ready to be read."""

    def check(self, entry: ShardEntry) -> None:
        """Find early that the shard can't be opened."""

    def fetch_ahead(self, entries: Sequence[ShardEntry]) -> None:
        """Make ready what will be opened soon."""


class LocalShards:
    """Shards below a directory of this machine."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def open(self, entry: ShardEntry) -> OpenShard:
        """The shard, mapped."""
        return open_shard(self._directory, entry)

    def check(self, entry: ShardEntry) -> None:
        """Look at the size of the tar."""
        _check_size(self._directory / entry.name, entry)

    def fetch_ahead(self, entries: Sequence[ShardEntry]) -> None:
        """They are here."""


class ShardReader:
    """Reads the samples of some shards by number. Safe to use from several threads."""

    def __init__(self, source: Path | ShardFiles, shards: Sequence[ShardEntry], *, max_open: int = MAX_OPEN) -> None:
        self.shards = tuple(shards)
        self._files = LocalShards(source) if isinstance(source, Path) else source
        self._max_open = max_open
        self._ends = list(accumulate(shard.num_samples for shard in shards))
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(number) for number in range(len(self)))

    def keys(self) -> Iterator[str]:
        """Keys of all samples, in order."""
        return (self.entry(number).key for number in range(len(self)))

    def entry(self, number: int) -> SampleEntry:
        """What the sidecar tells of sample `number`."""
        shard, place = self._find(number)
        return shard.entry(place)

    def read(self, number: int, window: Window | None = None) -> Sample:
        """Sample `number`, or the part of it that lies in `window`."""
        shard, place = self._find(number)
        return shard.read(shard.entry(place), window)

    def open(self, number: int) -> tuple[OpenShard, SampleEntry]:
        """Sample `number`, not read yet: its size decides which window one wants."""
        shard, place = self._find(number)
        return shard, shard.entry(place)

    def class_presence(self, shard: int) -> npt.NDArray[np.bool_]:
        """Which class occurs in which sample of a shard: (samples, classes)."""
        opened = self._opened(shard)
        return np.array([opened.entry(number).class_pixels for number in range(len(opened.lines))]) > 0

    def check_files(self) -> None:
        """Look at the size of every tar, before hours of training find that one is missing."""
        for shard in self.shards:
            self._files.check(shard)

    def fetch_ahead(self, numbers: Sequence[int]) -> None:
        """Make ready the shards of samples that will be read soon."""
        wanted = sorted({bisect_right(self._ends, number) for number in numbers} - self._open.keys())
        self._files.fetch_ahead([self.shards[shard] for shard in wanted])

    def _find(self, number: int) -> tuple[OpenShard, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = bisect_right(self._ends, number)
        return self._opened(shard), number - (self._ends[shard - 1] if shard else 0)

    def _opened(self, number: int) -> OpenShard:
        with self._lock:
            shard = self._open.get(number)
            if shard is not None:
                self._open.move_to_end(number)
                return shard
        # Outside the lock, so that one slow disk doesn't stop every thread; two may open the same shard at once.
        shard = self._files.open(self.shards[number])
        with self._lock:
            self._open[number] = shard
            while len(self._open) > self._max_open:
                # Unmapped when the last array that looks into it is gone.
                self._open.popitem(last=False)
        return shard


def open_shard(directory: Path, entry: ShardEntry, *, hold: object = None) -> OpenShard:
    """Map a shard below a directory; DataError where it is missing or not the one that the index names."""
    path = directory / entry.name
    _check_size(path, entry)
    sidecar = sidecar_bytes(directory, entry.name)
    with path.open("rb") as stream:
        data = np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
    return map_shard(data, sidecar, entry, where=str(path), hold=hold)


def map_shard(data: Pixels, sidecar: bytes, entry: ShardEntry, *, where: str, hold: object = None) -> OpenShard:
    """The shard with these bytes of its tar and its sidecar; `where` names it in errors."""
    found, lines = parse_sidecar(sidecar, where=sidecar_name(where))
    if found != entry or len(lines) != entry.num_samples:
        raise DataError(
            f"a shard is not the one that the index names: {where}: its sidecar is another run's. "
            "Run `dvc checkout` or `dvc repro -f -s shard`."
        )
    return OpenShard(name=entry.name, data=data, lines=lines, originals=entry.originals, hold=hold)


def _check_size(path: Path, entry: ShardEntry) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"a shard is missing: {path}. Run `dvc checkout` or `dvc repro shard`.") from error
    if found != entry.num_bytes:
        raise DataError(
            f"a shard is damaged: {path}: {found} bytes, the index says {entry.num_bytes}. Run `dvc repro -f -s shard`."
        )
