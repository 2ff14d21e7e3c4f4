"""Everything at once, as a team has it: three Ray hosts, an object store, MLflow on PostgreSQL, passwords everywhere.

A tree is begun by `unet init`, submitted, loses a host in mid-training, is promoted there and retrained by two
schedulers at once; what comes home is what a machine alone makes of the same files. Without the right word every door
stays shut.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.hosts import PORT, SERVER_ADDRESS, Hosts, network
from benchmarks.hosts import why_not as no_hosts
from benchmarks.object_store import ObjectStore, object_store
from benchmarks.postgres import find_programs
from benchmarks.ray_head import why_not as no_dashboard
from benchmarks.retraining import CALL, TINY, Place, open_place
from benchmarks.workspace import change_recipe, commit, run, start, weights_of

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1200)]

#: Prints how a server answers: its URL, then names and values of headers.
KNOCK = """
import sys, urllib.error, urllib.request
headers = dict(zip(sys.argv[2::2], sys.argv[3::2]))
try:
    print(urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers=headers), timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""
#: Asks the head for its hosts, as a driver does first.
ASK_HEAD = """
import sys
from ray._raylet import GcsClient
print(len(GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10)))
"""


@dataclass(frozen=True)
class Team:
    """What a team runs, and the tree of one of its members."""

    hosts: Hosts
    store: ObjectStore
    mlflow: Mapping[str, str]
    """What a client sets to reach the tracking server."""
    place: Place

    def environment(self) -> dict[str, str]:
        """Of a member: all the words, and where to submit to."""
        there = {"RAY_API_SERVER_ADDRESS": self.hosts.jobs_address, "RAY_AUTH_TOKEN": self.hosts.token}
        return {**self.store.environment(), **self.mlflow, **there}

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """A command on the member's machine, which is on the network too."""
        return start(self.place.tree, *self.hosts.beside, *words, env=self.environment())

    def run(self, *words: str) -> str:
        """A command there that must not fail."""
        return run(self.place.tree, *self.hosts.beside, *words, env=self.environment())

    def retrain(self, log: Path) -> "subprocess.Popen[bytes]":
        """What a scheduler on the head calls."""
        environment = {**os.environ, **self.hosts.environment}
        scripts = Path(sys.executable).parent
        environment["PATH"] = f"{scripts}{os.pathsep}{environment['PATH']}"
        with log.open("wb") as stream:
            words = self.hosts.hosts[0].inside(*CALL)
            return subprocess.Popen(words, cwd=self.place.tree, env=environment, stdout=stream, stderr=stream)

    def knock(self, url: str, **headers: str) -> int:
        """How a door answers to one who is on the network."""
        given = [word for header in headers.items() for word in header]
        words = [*self.hosts.beside, sys.executable, "-c", KNOCK, url, *given]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
        return int(done.stdout)


@contextmanager
def tracking_server(hosts: Hosts, store: ObjectStore) -> Iterator[dict[str, str]]:
    """MLflow on PostgreSQL beside the hosts; what a client sets."""
    words = (sys.executable, "-m", "infra.servers", "--host", SERVER_ADDRESS, "--artifacts", "s3://models/all")
    environment = {**os.environ, **store.environment(), "MLFLOW_S3_ENDPOINT_URL": store.endpoint}
    process = subprocess.Popen((*hosts.beside, *words), env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(3)]
        yield dict(line.removeprefix("export ").split("=", 1) for line in lines)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    reason = no_hosts() or no_dashboard() or (None if find_programs() else "PostgreSQL is not installed")
    if reason:
        pytest.skip(reason)
    place = open_place(tmp_path / "place", "shapes", {})
    # A recipe is made by `unet init`.
    (place.tree / "params.yaml").unlink()
    with network() as hosts, object_store(SERVER_ADDRESS, hosts.beside) as store:
        # Buckets of the artifacts and of DVC.
        for bucket in ("models", "dvc"):
            store.put(place.tree / "recipes", f"s3://{bucket}/recipes")
        with tracking_server(hosts, store) as mlflow:
            hosts.extra = {**store.environment(), **mlflow, "UNET_CHECKPOINTS": "s3://models/checkpoints"}
            hosts.has_dashboard = True
            for _ in range(3):
                hosts.add()
            yield Team(hosts, store, mlflow, place)


def test_a_team_submits_loses_a_host_promotes_and_retrains(team: Team, tmp_path: Path) -> None:
    check_doors(team)
    place, source = team.place, tmp_path / "shapes"
    team.run("unet", "shapes", str(source), "--count", "60")
    team.run("unet", "init", "--source", str(source))
    # Small, and long enough to lose a host.
    change_recipe(place.tree, None, {**TINY, "model.width": 8, "train.epochs": 20})
    place.run("dvc", "remote", "modify", "store", "url", "s3://dvc/store")
    commit(place.tree, "first delivery")
    alone = train_alone(place, tmp_path)

    team.run("dvc", "repro", "shard")
    team.run("dvc", "push")
    commit(place.tree, "first shards")
    place.git("push", "--quiet")
    # The hosts have the data from the store alone.
    source.rename(tmp_path / "away")
    process = team.start("unet", "submit")
    lost = team.hosts.hosts[-1]
    wait_until_it_trains(team, process)
    assert lost.training_workers(), "the training was over before its host was lost"
    lost.kill()
    assert process.wait(timeout=600) == 0, (place.tree / "start.log").read_text()
    said = (place.tree / "start.log").read_text()
    assert " Going on from the last checkpoint.\n" in said
    assert "promoted: the first champion, Dice 0." in said
    for secret in (team.hosts.token, team.store.secret, team.mlflow["MLFLOW_TRACKING_PASSWORD"]):
        assert secret not in said
    (tmp_path / "away").rename(source)
    team.run("dvc", "pull")
    assert weights_of(place.tree) == weights_of(alone)
    assert (place.tree / "dvc.lock").read_text() == (alone / "dvc.lock").read_text()
    assert json.loads(team.run("dvc", "status", "--json")) == {}

    commit(place.tree, "first model")
    place.git("push", "--quiet")
    team.run("unet", "shapes", str(source), "--count", "72")
    calls = [team.retrain(tmp_path / f"{name}.log") for name in ("first", "second")]
    codes = sorted(call.wait(timeout=600) for call in calls)
    told = "".join((tmp_path / f"{name}.log").read_text() for name in ("first", "second"))
    # One does all of it, the other leaves.
    assert codes[1] == 12, told
    assert codes[0] in (10, 11), told
    assert "retraining: 12 new samples in " in told
    assert "version" in team.run("unet", "history")


def train_alone(place: Place, folder: Path) -> Path:
    """The same commit on a machine that knows of no cluster; it has its own store of runs."""
    tree = shutil.copytree(place.tree, folder / "alone", symlinks=True)
    run(tree, "dvc", "repro")
    return tree


def wait_until_it_trains(team: Team, process: "subprocess.Popen[str]") -> None:
    """Until the host that will be lost has a worker, and that has had the time for some steps."""
    deadline = time.monotonic() + 400
    while not team.hosts.hosts[-1].training_workers():
        assert time.monotonic() < deadline
        assert process.poll() is None, (team.place.tree / "start.log").read_text()
        time.sleep(0.5)
    time.sleep(10)


def check_doors(team: Team) -> None:
    """None opens without the right word, and all do with it."""
    mlflow = f"{team.mlflow['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    assert team.knock(mlflow) == 401
    assert team.knock(mlflow, Authorization="Basic YWRtaW46YW5vdGhlcg==") == 401
    jobs = f"{team.hosts.jobs_address}/api/jobs/"
    assert team.knock(jobs) == 401
    assert team.knock(jobs, Authorization=f"Bearer {'0' * 32}") == 403
    assert team.knock(jobs, Authorization=f"Bearer {team.hosts.token}") == 200
    assert team.knock(f"{team.store.endpoint}/dvc/recipes/shapes.yaml") == 403
    head = f"{team.hosts.hosts[0].address}:{PORT}"
    for token, is_open in ((team.hosts.token, True), ("0" * 32, False)):
        words = [*team.hosts.beside, sys.executable, "-c", ASK_HEAD, head]
        environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode == 0) == is_open, done.stderr
