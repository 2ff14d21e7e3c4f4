"""`unet retrain --submit`: the pipeline is reproduced by a job on a real head, the rest happens here."""

import json
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from benchmarks.ray_head import RayHead, ray_head, why_not
from benchmarks.retraining import TINY, Place, open_place
from benchmarks.tracking_server import TrackingServer
from benchmarks.workspace import run, start
from pipeline import tracking

pytestmark = pytest.mark.slow

CALL = ("unet", "retrain", "--submit", "--branch", "retrain", "--exit-code")


@dataclass(frozen=True)
class Team:
    """A clone that retrains, a cluster that it submits to, and their registry."""

    place: Place
    head: RayHead
    server: TrackingServer

    @property
    def environment(self) -> dict[str, str]:
        return {**self.head.environment(), "MLFLOW_TRACKING_URI": self.server.uri}

    def jobs(self) -> list[str]:
        request = urllib.request.Request(
            f"{self.head.address}/api/jobs/", headers={"Authorization": f"Bearer {self.head.token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return [about["submission_id"] for about in json.load(answer) if about["submission_id"]]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    if reason := why_not():
        pytest.skip(reason)
    scratch = tmp_path_factory.mktemp("retrain-submit")
    # Long enough to be killed in.
    place = open_place(scratch / "place", "shapes", {**TINY, "ingest.source": str(scratch / "shapes")})
    run(place.tree, "dvc", "remote", "modify", "store", "url", str(scratch / "remote"))
    run(place.tree, "unet", "shapes", str(scratch / "shapes"), "--count", "60")
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.invalid")
    place.git(*identity, "commit", "--quiet", "--all", "--message", "a remote for all")
    place.git("push", "--quiet")
    server = TrackingServer(scratch)
    server.start()
    try:
        server.wait()
        with ray_head(environment={"MLFLOW_TRACKING_URI": server.uri}) as head:
            yield Team(place, head, server)
    finally:
        server.kill()


def test_a_cluster_that_is_away_is_an_error_in_its_own_words(team: Team, tmp_path: Path) -> None:
    place = team.place.copy_to(tmp_path / "place")
    nowhere = {**team.environment, "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
    code, said = place.call(*CALL, env=nowhere)
    assert code == 7
    assert "\nunet retrain: Ray's Jobs API can't be reached: http://127.0.0.1:9. Start the cluster" in said
    assert place.summary()["outcome"] == "failed"
    assert place.summary()["sentence"].startswith("Ray's Jobs API can't be reached: http://127.0.0.1:9. ")


def test_without_the_clusters_registry_nothing_begins(team: Team) -> None:
    code, said = team.place.call(*CALL, env=team.head.environment())
    assert code == 6
    assert said == (
        "unet retrain: --submit with a registry of this machine: the cluster's models would not be in it. Set "
        "MLFLOW_TRACKING_URI to the server that the cluster uses.\n"
    )


def test_a_dry_run_names_the_submission(team: Team) -> None:
    code, said = team.place.call(*CALL, "--dry-run", env=team.environment)
    assert code == 0
    assert said.endswith("steps: unet add, unet submit, dvc push, a commit on branch retrain, unet promote\n")


@pytest.mark.chaos
def test_killed_it_follows_the_same_job_and_ends_as_a_retraining_here_does(team: Team) -> None:
    place = team.place
    call = start(place.tree, *CALL, env=team.environment)
    wait_for_text(place.tree / ".unet" / "retrain.log", "Running stage 'train'")
    for process in [*psutil.Process(call.pid).children(recursive=True), psutil.Process(call.pid)]:
        process.kill()
    call.wait()
    code, said = place.call(*CALL, env=team.environment)
    assert code == 10, said
    (job,) = team.jobs()
    assert f"job {job} of these very files was submitted before, and is followed\n" in said
    assert f"job {job} succeeded after " in said
    assert "Running stage 'report'" in said
    assert place.git("status", "--porcelain") == ""
    assert place.git("rev-parse", "HEAD") == place.git("rev-parse", "origin/retrain")
    assert json.loads(place.run("dvc", "status", "--json")) == {}
    assert (place.tree / "data" / "shards").is_dir(), "the gate scored the test images here"
    champion = tracking.version_by_alias(team.server.wait(), "unet", tracking.CHAMPION)
    assert champion is not None
    assert champion.tags["git.commit"] == place.git("rev-parse", "main")
    code, said = place.call(*CALL, env=team.environment)
    assert (code, said.startswith("nothing to do: ")) == (0, True), said
    assert team.jobs() == [job]


def wait_for_text(path: Path, text: str) -> None:
    deadline = time.monotonic() + 180
    while not path.exists() or text not in path.read_text(errors="replace"):
        assert time.monotonic() < deadline, path.read_text(errors="replace") if path.exists() else "no log"
        time.sleep(0.1)
