"""Hosts that share nothing with the head: a job's workers get the code from Ray, the index from the driver, shards from
DVC's remote, and train what a single machine trains.
"""

import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.hosts import SERVER_ADDRESS, Host, Hosts, network, why_not
from benchmarks.object_store import object_store
from benchmarks.tracking_server import TrackingServer
from benchmarks.workspace import TRAIN, commit, make_workspace, run
from unet_core.index import read_index

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

TINY = {
    "model.width": 4,
    "model.depth": 2,
    "train.epochs": 3,
    "train.lanes": 4,
    "train.samples_per_lane": 1,
    "shard.target_mb": 1.0,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working tree with shards, which only the head sees."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    folder = make_workspace(tmp_path_factory.mktemp("home") / "tree", "shapes", TINY)
    run(folder, "unet", "shapes", "data/raw/shapes", "--count", "60")
    run(folder, "unet", "add")
    run(folder, "dvc", "repro", "shard")
    run(folder, "dvc", "remote", "add", "--default", "store", "s3://dvc/store")
    commit(folder, "data")
    return folder


@pytest.fixture
def two_hosts(home: Path, tmp_path: Path) -> Iterator[Hosts]:
    tracking = TrackingServer(tmp_path)
    with network() as hosts, object_store(SERVER_ADDRESS, hosts.beside) as store:
        # Makes the bucket.
        store.put(home / "recipes", "s3://dvc/recipes")
        hosts.extra = {
            **store.environment(),
            "MLFLOW_TRACKING_URI": tracking.uri,
            "UNET_CHECKPOINTS": "s3://checkpoints/training",
            "UNET_WORKERS": "2",
        }
        hosts.has_dashboard = True
        head = hosts.add()
        tracking.start(head.inside())
        # The head's temporary folder holds the job's tree.
        hosts.hidden = (home, head.scratch)
        hosts.add()
        wait_for_tracking(home, head, tracking.uri)
        yield hosts
        tracking.kill()


def wait_for_tracking(home: Path, head: Host, uri: str) -> None:
    ask = f"import urllib.request; print(urllib.request.urlopen('{uri}/health', timeout=5).status)"
    deadline = time.monotonic() + 90
    while "200" not in run(home, *head.inside(sys.executable, "-c", ask), check=False).splitlines():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def weights_told(output: str) -> str:
    found = re.search(r"\btrain: .* weights ([0-9a-f]{12})\b", output)
    assert found, output
    return found[1]


def test_a_submitted_training_on_hosts_without_files_gives_the_weights_of_one_here(
    home: Path, two_hosts: Hosts, tmp_path: Path
) -> None:
    here = shutil.copytree(home, tmp_path / "here")
    wanted = weights_told(run(here, *TRAIN, env={"UNET_WORKERS": "1"}))
    head, other = two_hosts.hosts
    there = {"RAY_API_SERVER_ADDRESS": two_hosts.jobs_address}
    told = run(home, *head.inside("unet", "submit", "train"), env={**two_hosts.environment, **there})
    assert "train: 2 workers" in told
    assert weights_told(told) == wanted
    # The head has the shards; the other host, which fetches only what it can't see, got those of its lanes.
    index = read_index(home / "data" / "shards").shards
    assert set() < fetched(other.scratch) <= {Path(shard.name).name for shard in index if shard.split != "test"}
    assert fetched(head.scratch) == set()


def fetched(scratch: Path) -> set[str]:
    return {path.name for path in (scratch / ".cache" / "unet").glob("*/*/*.tar")}
