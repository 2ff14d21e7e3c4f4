"""Remote shards -> open shards, through a bounded folder on the node's disk that all its processes share.

    KEY/SPLIT/NAME.tar, .jsonl   a whole, verified shard; KEY is the hash of its entry in the index
    KEY.partial/                 one that is being fetched, or was when its process died
    KEY.lock                     held together by those who have the shard open, alone by who evicts it
    KEY.make.lock                held alone by who fetches the shard, looks it over, removes or evicts it

Two locks, because who fetches must not wait for who reads: workers of one training wait for each other.

The kernel frees the locks of a process that dies, so nothing has to be mended afterwards. Shards are on the disk before
they get their name; still, each process looks over what it did not fetch itself, as disks and people damage files too.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from unet_core.codecs import Pixels
from unet_core.errors import DataError, StorageError
from unet_core.file_lock import FileLock
from unet_core.hashing import hash_file
from unet_core.index import ShardEntry, sidecar_name
from unet_core.reader import OpenShard, map_shard, open_shard

Result = TypeVar("Result")

#: Gives a remote file in pieces; StorageError where its place can't be reached now.
Fetch = Callable[[str], Iterable[bytes]]
#: Says what people can do about a file that is another one in its remote place.
Mend = Callable[[str], str]

#: How long storage may be away before the training ends.
PATIENCE_SECONDS = 120.0
#: Shards fetched at a time ahead of their use.
AHEAD_THREADS = 4


class CachedShards:
    """Opens remote shards. Safe to use from several threads, and by several processes with the same directory."""

    def __init__(
        self,
        directory: Path,
        *,
        limit_bytes: int,
        fetch: Fetch,
        mend: Mend,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._fetch = fetch
        self._mend = mend
        self._patience_seconds = patience_seconds
        self._pool = ThreadPoolExecutor(AHEAD_THREADS, thread_name_prefix="fetch")
        self._ahead: set[str] = set()
        self._closing = threading.Event()
        self._warnings: dict[str, None] = {}
        # Keys of shards that this process has fetched or looked over: once is enough.
        self._whole: set[str] = set()
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"the cache of shards can't be made: {directory}: {error.strerror}. Set UNET_CACHE to another folder."
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._pool.shutdown(cancel_futures=True)

    def open(self, entry: ShardEntry) -> OpenShard:
        """The shard, from the cache where it is there, else fetched; in memory where the cache has no room.

        Raises DataError for a shard that is not the one of the index, StorageError where its place stays away.
        """
        key = _key(entry)
        while True:
            hold = FileLock(self._lock_path(key), fcntl.LOCK_SH)
            folder = self._directory / key
            if key in self._whole and folder.is_dir():
                os.utime(folder)
                return open_shard(folder, entry, hold=hold)
            hold.free()
            if not self._fetch_to_disk(entry, key):
                self._warnings[
                    f"the cache of shards has no room: {self._directory}: shards are fetched into memory each time. "
                    "Raise UNET_CACHE_GB, or free some space."
                ] = None
                return self._fetch_to_memory(entry)

    def fetch_ahead(self, entries: Sequence[ShardEntry]) -> None:
        """Begin to fetch what will be opened soon; what goes wrong is told when it is."""
        for entry in entries:
            key = _key(entry)
            ready = key in self._whole and (self._directory / key).is_dir()
            if key not in self._ahead and not ready:
                self._ahead.add(key)
                self._pool.submit(self._fetch_to_disk, entry, key).add_done_callback(
                    lambda _, key=key: self._ahead.discard(key)  # type: ignore[misc]
                )

    def check(self, entry: ShardEntry) -> None:
        """Nothing to look at before the shard is fetched."""

    def take_warnings(self) -> list[str]:
        """What people should know since the last call."""
        told = list(self._warnings)
        for text in told:
            # One by one: threads that fetch ahead may add others meanwhile.
            del self._warnings[text]
        return told

    def _fetch_to_disk(self, entry: ShardEntry, key: str) -> bool:
        """Whether the shard is in the cache now, whole; False where there is no room."""
        partial = self._directory / f"{key}.partial"
        with FileLock(self._make_lock_path(key), fcntl.LOCK_EX):
            if self._found_whole(entry, key):
                return True
            try:
                shutil.rmtree(partial, ignore_errors=True)
                tar = partial / entry.name
                tar.parent.mkdir(parents=True)
                if not self._reserve(tar, entry.num_bytes):
                    return False
                sidecar = self._patiently(lambda: b"".join(self._fetch(sidecar_name(entry.name))))
                (partial / sidecar_name(entry.name)).write_bytes(sidecar)
                with tar.open("r+b") as stream:

                    def write() -> str:
                        stream.seek(0)
                        return self._copy(entry, stream.write)

                    self._verified(entry, write)
                _sync([*partial.rglob("*"), partial])
                partial.rename(self._directory / key)
                _sync([self._directory])
                self._whole.add(key)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise StorageError(
                        f"the cache of shards can't be written: {self._directory}: {error.strerror}. "
                        "Set UNET_CACHE to another folder."
                    ) from error
                return False
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return True

    def _found_whole(self, entry: ShardEntry, key: str) -> bool:
        """Whether the shard lies in the cache; a damaged one is told of and removed."""
        folder = self._directory / key
        if not folder.is_dir():
            return False
        if key not in self._whole and (damage := _damage(folder, entry)):
            self._warnings[f"a shard in the cache was damaged and is fetched again: {damage}"] = None
            _remove(folder)
            return False
        self._whole.add(key)
        return True

    def _fetch_to_memory(self, entry: ShardEntry) -> OpenShard:
        data = bytearray()

        def write() -> str:
            data.clear()
            return self._copy(entry, data.extend)

        self._verified(entry, write)
        sidecar = self._patiently(lambda: b"".join(self._fetch(sidecar_name(entry.name))))
        pixels: Pixels = np.frombuffer(bytes(data), dtype=np.uint8)
        return map_shard(pixels, sidecar, entry, where=entry.name)

    def _copy(self, entry: ShardEntry, write: Callable[[bytes], object]) -> str:
        """Fetch the tar once and give its sha256; no more than its size is written."""
        digest, size = hashlib.sha256(), 0
        for piece in self._fetch(entry.name):
            size += len(piece)
            if size > entry.num_bytes:
                return f"more than {entry.num_bytes} bytes"
            digest.update(piece)
            write(piece)
        return digest.hexdigest()

    def _verified(self, entry: ShardEntry, copy: Callable[[], str]) -> None:
        # Twice: what a network damaged may come whole the next time.
        found = [self._patiently(copy)]
        if found[0] != entry.sha256:
            found.append(self._patiently(copy))
        if found[-1] != entry.sha256:
            raise DataError(
                f"a remote shard is not the one of the index: {entry.name}: sha256 {found[-1]}, the index says "
                f"{entry.sha256}. {self._mend(entry.name)}"
            )

    def _patiently(self, bring: Callable[[], Result]) -> Result:
        """Call `bring`, and again while storage is away."""
        deadline = time.monotonic() + self._patience_seconds
        while True:
            try:
                return bring()
            except StorageError:
                if time.monotonic() > deadline or self._closing.wait(min(1.0, self._patience_seconds / 10)):
                    raise

    def _reserve(self, path: Path, num_bytes: int) -> bool:
        """Make a file of that size within the cache's limit, for which the longest unused shards are removed."""
        with FileLock(self._directory / "cache.lock", fcntl.LOCK_EX):
            while True:
                if self._used_bytes() + num_bytes <= self._limit_bytes:
                    try:
                        with path.open("wb") as stream:
                            os.posix_fallocate(stream.fileno(), 0, num_bytes)
                        return True
                    except OSError as error:
                        path.unlink(missing_ok=True)
                        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                            raise
                if not self._evict_oldest(keep=path.parents[1].name):
                    return False

    def _used_bytes(self) -> int:
        # os.walk passes over what another process renames or removes meanwhile.
        walks = (os.walk(folder) for folder in self._folders())
        return sum(_size(Path(folder, name)) for walk in walks for folder, _, names in walk for name in names)

    def _folders(self) -> list[Path]:
        """Those of shards, whole or not. What else lies in the directory is not ours to count or to remove."""
        return [path for path in self._directory.iterdir() if re.fullmatch(r"[0-9a-f]{32}(\.partial)?", path.name)]

    def _evict_oldest(self, *, keep: str) -> bool:
        """Remove the shard that was opened longest ago and that nobody has open; False if there is none."""
        for folder in sorted(self._folders(), key=_time):
            if folder.name == keep:
                continue
            key = folder.name.partition(".")[0]
            paths = (self._lock_path(key), self._make_lock_path(key))
            locks = [lock for path in paths if (lock := FileLock.if_free(path))]
            try:
                if len(locks) == len(paths):
                    _remove(folder)
                    return True
            finally:
                for lock in locks:
                    lock.free()
        return False

    def _lock_path(self, key: str) -> Path:
        return self._directory / f"{key}.lock"

    def _make_lock_path(self, key: str) -> Path:
        return self._directory / f"{key}.make.lock"


def _key(entry: ShardEntry) -> str:
    return hashlib.sha256(json.dumps(asdict(entry), sort_keys=True).encode()).hexdigest()[:32]


def _damage(folder: Path, entry: ShardEntry) -> str | None:
    """What is wrong with a shard that was found in the cache: None if it is the one of the index, byte for byte."""
    tar = folder / entry.name
    if _size(tar) != entry.num_bytes:
        return f"{tar}: {_size(tar)} bytes, the index says {entry.num_bytes}."
    if (found := hash_file(tar)) != entry.sha256:
        return f"{tar}: sha256 {found}, the index says {entry.sha256}."
    try:
        open_shard(folder, entry)
    except DataError:
        return f"{folder / sidecar_name(entry.name)}: it is not the sidecar of this shard."
    return None


def _remove(folder: Path) -> None:
    """Remove a shard, whole or not, while one has its lock to make it. Who has its file open can still read it."""
    # Renamed first: half a folder must not look like a whole one.
    gone = folder.with_name(f"{folder.name.partition('.')[0]}.partial")
    if gone != folder:
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _sync(paths: Iterable[Path]) -> None:
    """Have files and folders on the disk, so that a name that outlives a power cut means what it says."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
