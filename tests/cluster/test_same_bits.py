"""A Ray cluster of several hosts, one network namespace each: whatever happens to them, the weights are the same.

Shards come from an S3-compatible server and checkpoints go there; of a shared file system the hosts need the working
tree only.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.hosts import SERVER_ADDRESS, Hosts, network, why_not
from benchmarks.object_store import ObjectStore, object_store
from benchmarks.workspace import (
    TRAIN,
    change_recipe,
    make_workspace,
    read_journal,
    run,
    start,
    wait_for,
    wait_for_step,
    weights_of,
)
from unet_core.index import read_index

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

#: Small, and long enough for a host to come and go.
TINY = {
    "model.width": 4,
    "model.depth": 2,
    "train.epochs": 30,
    "train.lanes": 4,
    "train.samples_per_lane": 1,
    "train.validate_every_epochs": 2,
    "train.checkpoint_every_steps": 5,
    "shard.target_mb": 2.0,
}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working tree with shards."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    folder = make_workspace(tmp_path_factory.mktemp("sharded") / "tree", "shapes", TINY)
    run(folder, "unet", "shapes", "data/raw/shapes", "--count", "60")
    run(folder, "unet", "add")
    run(folder, "dvc", "repro", "shard")
    return folder


@pytest.fixture(scope="module")
def local_weights(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights that one worker on this machine trains."""
    tree = shutil.copytree(sharded, tmp_path_factory.mktemp("local") / "tree")
    run(tree, *TRAIN, env={"UNET_WORKERS": "1"})
    return weights_of(tree)


@pytest.fixture
def tree(sharded: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sharded, tmp_path / "tree")


@dataclass(frozen=True)
class Cluster:
    """Hosts, and a store beside them that has the shards."""

    hosts: Hosts
    store: ObjectStore

    def wait_until_all_have_all_shards(self, tree: Path) -> None:
        """Each epoch brings other shards to a host, from the store to its cache."""
        entries = read_index(tree / "data" / "shards").shards
        wanted = {Path(entry.name).name for entry in entries if entry.split != "test"}
        deadline = time.monotonic() + 120
        while any(wanted - fetched for fetched in self._fetched()):
            assert time.monotonic() < deadline, (wanted, self._fetched())
            time.sleep(0.2)

    def _fetched(self) -> list[set[str]]:
        caches = [host.scratch / ".cache" / "unet" for host in self.hosts.hosts]
        return [{path.name for path in cache.glob("*/*/*.tar") if ".partial" not in str(path)} for cache in caches]


@contextmanager
def cluster_of(count: int, tree: Path) -> Iterator[Cluster]:
    with network() as hosts, object_store(SERVER_ADDRESS, hosts.beside) as store:
        store.put(tree / "data" / "shards", "s3://shards/copy")
        places = {"UNET_SHARDS": "s3://shards/copy", "UNET_CHECKPOINTS": "s3://checkpoints/training"}
        hosts.extra = {**store.environment(), **places}
        for _ in range(count):
            hosts.add()
        yield Cluster(hosts, store)


@pytest.fixture
def three_hosts(tree: Path) -> Iterator[Cluster]:
    with cluster_of(3, tree) as cluster:
        yield cluster


@pytest.fixture
def two_hosts(tree: Path) -> Iterator[Cluster]:
    with cluster_of(2, tree) as cluster:
        yield cluster


class Training:
    """A training that the head drives."""

    def __init__(self, tree: Path, cluster: Cluster) -> None:
        self._tree = tree
        self._store = cluster.store
        hosts = cluster.hosts
        self._process = start(tree, *hosts.hosts[0].inside(*TRAIN), env=hosts.environment)

    def wait_for_workers(self, count: int) -> dict[str, Any]:
        """What the first report of so many workers tells, since the number changed last."""
        journal = read_journal(self._tree)
        changed = next((told["time_ms"] for told in reversed(journal) if told.get("workers", count) != count), 0)
        return wait_for(
            self._tree, self._process, lambda told: told.get("workers") == count and told["time_ms"] >= changed
        )

    def wait_for_step(self, step: int) -> None:
        """Wait until the step is done."""
        wait_for_step(self._tree, self._process, step)

    def steps(self) -> list[int]:
        """All steps that were told of, in order."""
        return [record["step"] for told in read_journal(self._tree) for record in told.get("steps", ())]

    def end(self) -> str:
        """Its weights; the training must have ended well, and left nothing in the store."""
        assert not list((self._tree / ".unet").rglob("*.safetensors"))
        assert self._process.wait(timeout=300) == 0, (self._tree / "start.log").read_text()
        assert self._store.names("s3://checkpoints/training") == []
        return weights_of(self._tree)


def test_three_hosts_train_what_one_worker_trains_also_while_the_store_is_away(
    tree: Path, three_hosts: Cluster, local_weights: str
) -> None:
    training = Training(tree, three_hosts)
    training.wait_for_workers(3)
    three_hosts.wait_until_all_have_all_shards(tree)
    three_hosts.store.pause()
    # Checkpoints can wait, and nothing else needs the store now.
    training.wait_for_step(max(training.steps()) + 30)
    time.sleep(30)
    steps = training.steps()
    assert len(steps) == len(set(steps)) > 50
    three_hosts.store.go_on()
    assert training.end() == local_weights
    assert "train: 3 workers now" in (tree / "start.log").read_text()
    change_recipe(tree, None, {"train.seed": 1, "train.epochs": 1})
    assert Training(tree, three_hosts).end() != local_weights


def test_a_host_killed_in_mid_epoch_changes_nothing(tree: Path, three_hosts: Cluster, local_weights: str) -> None:
    training = Training(tree, three_hosts)
    training.wait_for_step(22)
    three_hosts.hosts.hosts[2].kill()
    killed = time.time()
    told = training.wait_for_workers(2)
    assert told["time_ms"] / 1000 - killed < 60
    assert training.end() == local_weights


def test_a_link_cut_for_20_seconds_changes_nothing(tree: Path, three_hosts: Cluster, local_weights: str) -> None:
    training = Training(tree, three_hosts)
    training.wait_for_step(22)
    hosts = three_hosts.hosts
    hosts.cut(hosts.hosts[1])
    cut = time.time()
    time.sleep(20)
    hosts.mend(hosts.hosts[1])
    during = [told for told in read_journal(tree) if "steps" in told and told["time_ms"] / 1000 > cut + 1]
    # The three need each other: none went on as if nothing had happened.
    assert all(told["workers"] < 3 for told in during)
    assert training.end() == local_weights


def test_a_new_host_joins_and_leaves_when_it_is_told_to(tree: Path, two_hosts: Cluster, local_weights: str) -> None:
    training = Training(tree, two_hosts)
    training.wait_for_workers(2)
    two_hosts.hosts.add()
    training.wait_for_workers(3)
    steps = training.steps()
    # It joined right after a checkpoint: hardly a step was done twice.
    assert len(steps) - len(set(steps)) <= 10
    two_hosts.hosts.drain(two_hosts.hosts.hosts[2])
    training.wait_for_workers(2)
    later = training.steps()[len(steps) :]
    # It had a word before: no step was done twice.
    assert len(later) == len(set(later))
    assert training.end() == local_weights
