"""The tracking server goes away for two minutes of a training, as in an upgrade."""

import time
from pathlib import Path

import pytest

from benchmarks.tracking_server import TrackingServer
from benchmarks.workspace import TRAIN, make_workspace, read_journal, run, start, wait_for_step

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

AWAY_SECONDS = 120
#: Small and long: it trains on all the while.
TINY = {
    "model.width": 8,
    "model.depth": 3,
    "train.epochs": 240,
    "train.lanes": 2,
    "train.samples_per_lane": 1,
    "train.validate_every_epochs": 40,
}


def newest_step(folder: Path) -> int:
    return max(record["step"] for told in read_journal(folder) for record in told.get("steps", ()))


@pytest.mark.timeout(900)
def test_training_goes_on_and_every_metric_arrives_afterwards(tmp_path: Path) -> None:
    tree = make_workspace(tmp_path / "tree", "shapes", TINY)
    run(tree, "unet", "shapes", "data/raw/shapes", "--count", "60")
    run(tree, "unet", "add")
    run(tree, "dvc", "repro", "shard")
    (tmp_path / "server").mkdir()
    server = TrackingServer(tmp_path / "server")
    server.start()
    try:
        client = server.wait()
        training = start(tree, *TRAIN, env={"MLFLOW_TRACKING_URI": server.uri})
        wait_for_step(tree, training, 10)
        server.kill()
        before = newest_step(tree)
        time.sleep(AWAY_SECONDS)
        assert training.poll() is None, (tree / "start.log").read_text()
        assert newest_step(tree) > before + 100
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
    assert told.count("MLflow does not answer; metrics are kept and sent later") == 1
