"""Remote shards through a node's cache: a plain folder stands for the remote place, processes and disks are real."""

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from unet_core.cache import CachedShards
from unet_core.errors import DataError, StorageError
from unet_core.index import ShardEntry, read_index, sidecar_name
from unet_core.loader import LaneLoader
from unet_core.reader import OpenShard, ShardReader
from unet_core.train_config import TrainConfig
from unet_core.transforms import AugmentConfig

SPAWN = multiprocessing.get_context("spawn")


class Remote:
    """A folder as a remote place, which notes what is fetched from it. Goes to other processes as it is."""

    def __init__(self, folder: Path, log: Path, *, slow: bool = False) -> None:
        self._folder = folder
        self._log = log
        self._slow = slow

    def __call__(self, name: str) -> Iterator[bytes]:
        with self._log.open("a") as log:
            log.write(name + "\n")
        data = (self._folder / name).read_bytes()
        yield data[: len(data) // 2]
        if self._slow and name.endswith(".tar"):
            time.sleep(60)
        yield data[len(data) // 2 :]

    def fetched(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


def mend(name: str) -> str:
    return f"Bring {name}."


@pytest.fixture
def remote(shapes_dir: Path, tmp_path: Path) -> Remote:
    return Remote(shapes_dir, tmp_path / "fetched.log")


@pytest.fixture
def entries(shapes_dir: Path) -> tuple[ShardEntry, ...]:
    return read_index(shapes_dir).shards


@pytest.fixture
def make_cache(tmp_path: Path, remote: Remote) -> Iterator[Callable[..., CachedShards]]:
    """Caches in one folder, all of them closed at the end."""
    made: list[CachedShards] = []

    def make(**changes: object) -> CachedShards:
        options = {"limit_bytes": 10**9, "fetch": remote, "mend": mend, "patience_seconds": 0.5, **changes}
        directory = options.pop("directory", tmp_path / "cache")
        made.append(CachedShards(directory, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for cache in made:
        cache.__exit__()


def kept(directory: Path) -> list[Path]:
    """The shards that lie in a cache."""
    return [path for path in directory.iterdir() if path.is_dir()]


def used_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def assert_same_samples(source: CachedShards, shapes_dir: Path) -> None:
    shards = read_index(shapes_dir).shards
    for fetched, local in zip(ShardReader(source, shards), ShardReader(shapes_dir, shards), strict=True):
        assert fetched.key == local.key
        np.testing.assert_array_equal(fetched.image, local.image)
        np.testing.assert_array_equal(fetched.mask, local.mask)


def test_samples_are_those_of_the_remote_shards_and_each_is_fetched_once(make_cache, remote, shapes_dir) -> None:
    assert_same_samples(make_cache(), shapes_dir)
    # As another training on this node would.
    assert_same_samples(make_cache(), shapes_dir)
    names = [shard.name for shard in read_index(shapes_dir).shards]
    assert sorted(remote.fetched()) == sorted([*names, *map(sidecar_name, names)])


def open_all(directory: Path, remote: Remote, shapes_dir: Path) -> None:
    with CachedShards(directory, limit_bytes=10**9, fetch=remote, mend=mend) as cache:
        assert_same_samples(cache, shapes_dir)


@pytest.mark.slow
def test_processes_of_a_node_share_what_one_of_them_fetches(tmp_path: Path, remote: Remote, shapes_dir: Path) -> None:
    arguments = (tmp_path / "cache", remote, shapes_dir)
    processes = [SPAWN.Process(target=open_all, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(remote.fetched()) == len(set(remote.fetched())) == 8


def test_the_shard_opened_longest_ago_makes_room(make_cache, tmp_path: Path, entries) -> None:
    limit = sum(entry.num_bytes for entry in entries[:2]) + 20_000
    cache = make_cache(limit_bytes=limit)
    for entry in (entries[0], entries[1], entries[0], entries[2]):
        # Given back at once.
        assert cache.open(entry).name == entry.name
    left = {str(path.relative_to(folder)) for folder in kept(tmp_path / "cache") for path in folder.rglob("*.tar")}
    assert left == {entries[0].name, entries[2].name}
    assert used_bytes(tmp_path / "cache") <= limit
    assert cache.take_warnings() == []


def test_what_else_lies_in_the_folder_is_left_alone(make_cache, tmp_path: Path, entries) -> None:
    others = tmp_path / "cache" / "masters"
    others.mkdir(parents=True)
    (others / "only copy.tif").write_bytes(bytes(1000))
    cache = make_cache(limit_bytes=entries[0].num_bytes + 5000)
    for entry in entries[:3]:
        cache.open(entry)
    assert len(kept(tmp_path / "cache")) == 2
    assert (others / "only copy.tif").read_bytes() == bytes(1000)


def test_a_shard_that_is_open_is_not_evicted_and_the_next_is_read_into_memory(
    make_cache, tmp_path: Path, entries
) -> None:
    cache = make_cache(limit_bytes=max(entry.num_bytes for entry in entries) + 20_000)
    held = cache.open(entries[0])
    other = cache.open(entries[1])
    assert len(kept(tmp_path / "cache")) == 1
    assert other.entry(0).key != held.entry(0).key
    assert other.read(other.entry(0), None).image.shape == (32, 32, 1)
    (told,) = cache.take_warnings()
    assert told == (
        f"the cache of shards has no room: {tmp_path / 'cache'}: shards are fetched into memory each time. "
        "Raise UNET_CACHE_GB, or free some space."
    )
    assert cache.take_warnings() == []


def test_a_full_disk_is_survived(make_cache, small_disk: Path, shapes_dir: Path) -> None:
    (small_disk / "others").write_bytes(bytes(900_000))
    cache = make_cache(directory=small_disk / "cache")
    held = [cache.open(entry) for entry in read_index(shapes_dir).shards]
    assert_same_samples(cache, shapes_dir)
    assert cache.take_warnings()
    assert len(held) == 4
    assert not list((small_disk / "cache").glob("*.partial"))


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path, remote: Remote) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        CachedShards(tmp_path / "file" / "cache", limit_bytes=1, fetch=remote, mend=mend)
    assert str(caught.value) == (
        f"the cache of shards can't be made: {tmp_path}/file/cache: Not a directory. Set UNET_CACHE to another folder."
    )


class Damaged:
    """Flips a bit in the first `times` tars that are fetched; or adds to them."""

    def __init__(self, remote: Remote, *, times: int, longer: bool = False) -> None:
        self._remote = remote
        self._left = times
        self._longer = longer

    def __call__(self, name: str) -> Iterator[bytes]:
        first, *rest = self._remote(name)
        if name.endswith(".tar") and self._left:
            self._left -= 1
            first = bytes([first[0] ^ 1]) + first[1:] if not self._longer else first + b"more"
        yield from (first, *rest)


def test_a_bit_that_the_network_flipped_is_fetched_again(make_cache, remote: Remote, shapes_dir: Path) -> None:
    assert_same_samples(make_cache(fetch=Damaged(remote, times=1)), shapes_dir)


@pytest.mark.parametrize("longer", [False, True])
@pytest.mark.parametrize("limit_bytes", [10**9, 1])
def test_another_shard_than_the_index_names_is_refused_and_not_kept(
    make_cache, remote: Remote, entries, tmp_path: Path, longer: bool, limit_bytes: int
) -> None:
    cache = make_cache(fetch=Damaged(remote, times=9, longer=longer), limit_bytes=limit_bytes)
    with pytest.raises(DataError) as caught:
        cache.open(entries[0])
    told = str(caught.value)
    assert told.startswith(f"a remote shard is not the one of the index: {entries[0].name}: sha256 ")
    assert told.endswith(f"the index says {entries[0].sha256}. Bring {entries[0].name}.")
    assert kept(tmp_path / "cache") == []


def spoil_zeros(tar: Path) -> None:
    tar.write_bytes(bytes(tar.stat().st_size))


def spoil_size(tar: Path) -> None:
    os.truncate(tar, 1000)


def spoil_sidecar(tar: Path) -> None:
    (tar.parent / Path(sidecar_name(tar.name)).name).write_bytes(b"")


def spoil_by_loss(tar: Path) -> None:
    tar.unlink()


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        (spoil_zeros, "{tar}: sha256 {zeros}, the index says {entry.sha256}."),
        (spoil_size, "{tar}: 1000 bytes, the index says {entry.num_bytes}."),
        (spoil_by_loss, "{tar}: 0 bytes, the index says {entry.num_bytes}."),
        (spoil_sidecar, "{sidecar}: it is not the sidecar of this shard."),
    ],
)
def test_a_shard_that_a_power_cut_left_damaged_is_told_of_and_fetched_again(
    make_cache, remote: Remote, entries, tmp_path: Path, damage: tuple[Callable[[Path], None], str], ahead: bool
) -> None:
    spoil, told = damage
    make_cache().open(entries[0])
    (folder,) = kept(tmp_path / "cache")
    tar = folder / entries[0].name
    spoil(tar)
    zeros = hashlib.sha256(bytes(entries[0].num_bytes)).hexdigest()
    # As after the start of the machine.
    cache = make_cache()
    if ahead:
        cache.fetch_ahead(entries[:1])
    opened = cache.open(entries[0])
    assert hashlib.sha256(opened.data).hexdigest() == entries[0].sha256
    assert remote.fetched().count(entries[0].name) == 2
    sidecar = folder / sidecar_name(entries[0].name)
    text = told.format(tar=tar, sidecar=sidecar, zeros=zeros, entry=entries[0])
    assert cache.take_warnings() == [f"a shard in the cache was damaged and is fetched again: {text}"]
    assert [path.name for path in kept(tmp_path / "cache")] == [folder.name]


def test_a_damaged_shard_is_fetched_once_for_all_threads(make_cache, remote: Remote, entries, tmp_path: Path) -> None:
    make_cache().open(entries[0])
    (folder,) = kept(tmp_path / "cache")
    spoil_zeros(folder / entries[0].name)
    cache = make_cache()
    with ThreadPoolExecutor(8) as pool:
        hashes = {hashlib.sha256(shard.data).hexdigest() for shard in pool.map(cache.open, entries[:1] * 8)}
    assert hashes == {entries[0].sha256}
    assert remote.fetched().count(entries[0].name) == 2
    assert len(cache.take_warnings()) == 1


def test_a_damaged_shard_that_somebody_holds_is_replaced_all_the_same(
    make_cache, remote: Remote, entries, tmp_path: Path
) -> None:
    # Waiting for who holds it might be for ever: workers of one training wait for each other.
    holder = make_cache()
    held = holder.open(entries[0])
    before = held.data.tobytes()
    (folder,) = kept(tmp_path / "cache")
    # The file that is mapped stays as it is.
    spoilt = folder / "spoilt"
    spoilt.write_bytes(bytes(entries[0].num_bytes))
    spoilt.rename(folder / entries[0].name)
    opened: list[OpenShard] = []
    other = make_cache()
    thread = threading.Thread(target=lambda: opened.append(other.open(entries[0])), daemon=True)
    thread.start()
    thread.join(20)
    assert [shard.data.tobytes() for shard in opened] == [before]
    assert held.data.tobytes() == before


def test_a_remote_sidecar_of_another_shard_is_refused_and_not_fetched_for_ever(
    make_cache, remote: Remote, entries
) -> None:
    def mixed(name: str) -> Iterator[bytes]:
        return remote(sidecar_name(entries[1].name) if name == sidecar_name(entries[0].name) else name)

    for _ in range(2):
        with pytest.raises(DataError, match="a shard is not the one that the index names"):
            make_cache(fetch=mixed).open(entries[0])


class Away:
    """A remote place that can't be reached the first `times` times."""

    def __init__(self, remote: Remote, *, times: int) -> None:
        self._remote = remote
        self._left = times

    def __call__(self, name: str) -> Iterator[bytes]:
        if self._left:
            self._left -= 1
            raise StorageError("away")
        return self._remote(name)


def test_a_place_that_is_away_for_a_while_is_waited_for(make_cache, remote: Remote, shapes_dir: Path) -> None:
    assert_same_samples(make_cache(fetch=Away(remote, times=3)), shapes_dir)


def test_a_place_that_stays_away_is_told(make_cache, remote: Remote, entries, tmp_path: Path) -> None:
    cache = make_cache(fetch=Away(remote, times=10**6))
    with pytest.raises(StorageError, match="away"):
        cache.open(entries[0])
    assert kept(tmp_path / "cache") == []


def test_a_process_killed_while_it_fetches_stops_nobody(make_cache, tmp_path: Path, remote: Remote, shapes_dir) -> None:
    slow = Remote(shapes_dir, tmp_path / "slow.log", slow=True)
    process = SPAWN.Process(target=open_all, args=(tmp_path / "cache", slow, shapes_dir))
    process.start()
    deadline = time.monotonic() + 30
    while not any(name.endswith(".tar") for name in slow.fetched()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [path.suffix for path in kept(tmp_path / "cache")] == [".partial"]
    assert_same_samples(make_cache(), shapes_dir)
    assert {path.suffix for path in kept(tmp_path / "cache")} == {""}


def test_many_threads_in_a_cache_too_small_for_them_read_the_same(make_cache, shapes_dir: Path, entries) -> None:
    cache = make_cache(limit_bytes=entries[0].num_bytes * 2)
    failed: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(5):
                assert_same_samples(cache, shapes_dir)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_the_loader_fetches_ahead_and_serves_the_same_batches(
    make_cache, shapes_dir: Path, tmp_path: Path, make_config: Callable[..., TrainConfig]
) -> None:
    index = read_index(shapes_dir)
    config = make_config()
    plan = config.plan(ShardReader(shapes_dir, index.of_split("train")), index.class_map, epoch=0)
    augment = AugmentConfig(crop_px=20)

    def batches(source: Path | CachedShards) -> list[list[object]]:
        loader = LaneLoader(ShardReader(source, index.of_split("train")), index.class_map, augment, seed=0)
        with closing(loader.steps(plan, epoch=0, lanes=range(4))) as steps:
            return [[lane.images.tolist() for lane in step] for step in steps]

    assert batches(make_cache()) == batches(shapes_dir)
    loader = LaneLoader(
        ShardReader(make_cache(directory=tmp_path / "other"), index.of_split("train")),
        index.class_map, augment, seed=0,
    )  # fmt: skip
    with closing(loader.steps(plan, epoch=0, lanes=range(4))) as steps:
        next(steps)
        deadline = time.monotonic() + 20
        while len([path for path in kept(tmp_path / "other") if not path.suffix]) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert len(kept(tmp_path / "other")) == 3
