"""The tracking server goes away for two minutes of a training (CHAOS_AWAY_SECONDS), as in an upgrade."""

import math
import os
import time
from pathlib import Path

import pytest

from benchmarks.tracking_server import TrackingServer
from benchmarks.workspace import (
    TRAIN,
    change_recipe,
    make_workspace,
    read_journal,
    run,
    start,
    wait_for,
    wait_for_step,
)

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

AWAY_SECONDS = int(os.environ.get("CHAOS_AWAY_SECONDS") or 120)
#: What training goes on for, whatever the machine: the outage, and some time before and after it.
TRAINING_SECONDS = AWAY_SECONDS + 60
TINY = {
    "model.width": 8,
    "model.depth": 3,
    "train.lanes": 2,
    "train.samples_per_lane": 1,
    "train.threads_per_worker": 1,
}
EPOCHS_TO_TIME = 12


def newest_step(folder: Path) -> int:
    return max(record["step"] for told in read_journal(folder) for record in told.get("steps", ()))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working tree whose training takes `TRAINING_SECONDS` here, and validates once, at its end."""
    tree = make_workspace(tmp_path / "tree", "shapes", {**TINY, **epochs(EPOCHS_TO_TIME)})
    run(tree, "unet", "shapes", "data/raw/shapes", "--count", "60")
    run(tree, "unet", "add")
    run(tree, "dvc", "repro", "shard")
    training = start(tree, *TRAIN, env={"UNET_WORKERS": "2", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/timing.db"})
    told = wait_for(tree, training, lambda told: bool(told.get("validation")))
    assert training.wait(timeout=120) == 0
    change_recipe(tree, None, epochs(math.ceil(TRAINING_SECONDS / (told["seconds"] / EPOCHS_TO_TIME))))
    return tree


def epochs(count: int) -> dict[str, int]:
    return {"train.epochs": count, "train.validate_every_epochs": count}


@pytest.mark.timeout(900)
def test_training_goes_on_and_every_metric_arrives_afterwards(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    server = TrackingServer(tmp_path / "server")
    server.start()
    try:
        client = server.wait()
        training = start(tree, *TRAIN, env={"UNET_WORKERS": "2", "MLFLOW_TRACKING_URI": server.uri})
        wait_for_step(tree, training, 10)
        server.kill()
        before = newest_step(tree)
        time.sleep(AWAY_SECONDS)
        assert training.poll() is None, (tree / "start.log").read_text()
        assert newest_step(tree) > before + AWAY_SECONDS
        server.start()
        assert training.wait(timeout=600) == 0, (tree / "start.log").read_text()
        server.wait()
        (found,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        logged = [metric.step for metric in client.get_metric_history(found.info.run_id, "train_loss")]
    finally:
        server.kill()
    num_steps = sum(1 for _ in (tree / "plots" / "curves.csv").open()) - 1
    assert found.info.status == "FINISHED"
    assert sorted(logged) == list(range(num_steps))
    told = (tree / "start.log").read_text()
    assert told.count("MLflow takes no metrics; they are kept and sent later") == 1
