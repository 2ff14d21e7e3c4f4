"""A Ray cluster of several hosts, one network namespace each: whatever happens to them, the weights are the same.

Shards and checkpoints lie on a file system that all hosts see.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.hosts import Hosts, ray_hosts, why_not
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


@pytest.fixture
def three_hosts() -> Iterator[Hosts]:
    with ray_hosts(3) as hosts:
        yield hosts


@pytest.fixture
def two_hosts() -> Iterator[Hosts]:
    with ray_hosts(2) as hosts:
        yield hosts


class Training:
    """A training that the head drives."""

    def __init__(self, tree: Path, hosts: Hosts) -> None:
        self._tree = tree
        self._process = start(tree, *hosts.hosts[0].inside(*TRAIN), env=hosts.environment)

    def wait_for_workers(self, count: int) -> dict[str, Any]:
        """What the first report of so many workers tells."""
        return wait_for(self._tree, self._process, lambda told: told.get("workers") == count)

    def wait_for_step(self, step: int) -> None:
        """Wait until the step is done."""
        wait_for_step(self._tree, self._process, step)

    def end(self) -> str:
        """Its weights; the training must have ended well."""
        assert self._process.wait(timeout=300) == 0, (self._tree / "start.log").read_text()
        return weights_of(self._tree)


def test_three_hosts_train_what_one_worker_trains(tree: Path, three_hosts: Hosts, local_weights: str) -> None:
    training = Training(tree, three_hosts)
    training.wait_for_workers(3)
    assert training.end() == local_weights
    assert "train: 3 workers now" in (tree / "start.log").read_text()
    change_recipe(tree, None, {"train.seed": 1, "train.epochs": 1})
    assert Training(tree, three_hosts).end() != local_weights


def test_a_host_killed_in_mid_epoch_changes_nothing(tree: Path, three_hosts: Hosts, local_weights: str) -> None:
    training = Training(tree, three_hosts)
    training.wait_for_step(22)
    three_hosts.hosts[2].kill()
    killed = time.time()
    told = training.wait_for_workers(2)
    assert told["time_ms"] / 1000 - killed < 60
    assert training.end() == local_weights


def test_a_link_cut_for_20_seconds_changes_nothing(tree: Path, three_hosts: Hosts, local_weights: str) -> None:
    training = Training(tree, three_hosts)
    training.wait_for_step(22)
    three_hosts.cut(three_hosts.hosts[1])
    cut = time.time()
    time.sleep(20)
    three_hosts.mend(three_hosts.hosts[1])
    during = [told for told in read_journal(tree) if "steps" in told and told["time_ms"] / 1000 > cut + 1]
    # The three need each other: none went on as if nothing had happened.
    assert all(told["workers"] < 3 for told in during)
    assert training.end() == local_weights


def test_a_new_host_joins_a_training(tree: Path, two_hosts: Hosts, local_weights: str) -> None:
    training = Training(tree, two_hosts)
    training.wait_for_workers(2)
    two_hosts.add()
    training.wait_for_workers(3)
    steps = [record["step"] for told in read_journal(tree) for record in told.get("steps", ())]
    # It joined right after a checkpoint: hardly a step was done twice.
    assert len(steps) - len(set(steps)) <= 5
    assert training.end() == local_weights
