"""Against real SQLite stores and servers; nothing of MLflow is replaced."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.tracking_server import TrackingServer
from pipeline import tracking, training_run
from pipeline.registration import ensure_version
from pipeline.training_run import TrainingRun
from unet_core.checkpoint import model_hash, weights_hash
from unet_core.errors import ModelError, RegistryError

pytestmark = [
    pytest.mark.slow,
    # MLflow asks for type hints and input examples whenever a model is logged.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
MODEL = Path("models/final")


@pytest.fixture
def model(tree, write_model_dir) -> Path:
    write_model_dir(MODEL)
    return MODEL


@pytest.fixture
def server(tree, empty_store: Path, tmp_path: Path) -> Iterator[TrackingServer]:
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    server = TrackingServer(folder)
    server.start()
    yield server
    server.kill()


@pytest.mark.chaos
def test_metrics_of_an_outage_arrive_afterwards_and_the_end_waits_for_the_server(
    server: TrackingServer, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(training_run, "RETRY_SECONDS", 0.1)
    client = server.wait()
    run = TrainingRun(client, training="abc", params={})
    now = int(time.time() * 1000)
    for step in range(30):
        if step == 10:
            server.kill()
        if step == 20:
            server.start()
            server.wait()
        run.log_step(step, {"train_loss": step / 10}, now)
        if step % 5 == 0:
            run.flush()
    # Told once, however often it was tried.
    (told,) = [record.getMessage() for record in caplog.records if record.name == "pipeline.training_run"]
    assert told.startswith("MLflow takes no metrics; they are kept and sent later. It says: ")
    server.kill()
    later = threading.Timer(3, server.start)
    later.start()
    run.finish(model, {"git.commit": "abc"})
    later.join()
    found = client.get_run(run.run_id)
    assert (found.info.status, found.data.tags["git.commit"]) == ("FINISHED", "abc")
    history = client.get_metric_history(run.run_id, "train_loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(step, step / 10) for step in range(30)]
    # One that stays away is an error, some time later.
    server.kill()
    monkeypatch.setattr(training_run, "PATIENCE_SECONDS", 0.5)
    with pytest.raises(RegistryError, match=r"^MLflow refused: storing files of the run: "):
        run.log_files([model / "model.json"])


def test_what_the_server_refuses_is_told_in_its_words(client, caplog: pytest.LogCaptureFixture) -> None:
    run = TrainingRun(client, training="abc", params={})
    client.delete_run(run.run_id)
    run.log_step(0, {"train_loss": 1.0}, 0)
    run.flush()
    assert "metrics are kept" not in caplog.text
    assert f"It says: The run {run.run_id} must be in the 'active' state." in caplog.text


def test_a_training_that_failed_is_taken_up_by_its_own_run_without_logging_a_step_twice(client, model: Path) -> None:
    now = int(time.time() * 1000)
    first = TrainingRun(client, training="abc", params={"lanes": 2})
    for step in (0, 1):
        first.log_step(step, {"train_loss": 1.0 - step / 10}, now)
    first.flush()
    first.fail()
    assert client.get_run(first.run_id).info.status == "FAILED"
    second = TrainingRun(client, training="abc", params={"lanes": 2})
    assert second.run_id == first.run_id
    for step in (0, 1, 2):
        second.log_step(step, {"train_loss": 0.5}, now)
    second.finish(model, {"git.commit": "abc"})
    run = client.get_run(first.run_id)
    history = client.get_metric_history(first.run_id, "train_loss")
    assert [(metric.step, metric.value) for metric in sorted(history, key=lambda metric: metric.step)] == [
        (0, 1.0),
        (1, 0.9),
        (2, 0.5),
    ]
    assert run.info.status == "FINISHED"
    assert run.data.tags["git.commit"] == "abc"
    assert run.data.tags[tracking.WEIGHTS_TAG] == weights_hash(model)
    assert run.data.tags[tracking.MODEL_TAG] == model_hash(model)
    # A finished run stays as it is: training once more is a run of its own.
    third = TrainingRun(client, training="abc", params={"lanes": 2})
    third.fail()
    assert third.run_id != first.run_id


def test_a_training_whose_model_cannot_be_logged_is_closed_as_failed(client, tree) -> None:
    run = TrainingRun(client, training="abc", params={})
    with pytest.raises(ModelError):
        run.finish(Path("no-such-model"), {})
    run.fail()
    assert client.get_run(run.run_id).info.status == "FAILED"
    again = TrainingRun(client, training="abc", params={})
    again.fail()
    assert again.run_id == run.run_id


def test_classes_of_any_name_have_metrics(client, model: Path) -> None:
    run = TrainingRun(client, training="abc", params={})
    run.log_step(1, {"val_dice_größe (1:2)": 0.5, "val_dice_plus": 0.25}, int(time.time() * 1000))
    run.finish(model, {})
    metrics = client.get_run(run.run_id).data.metrics
    assert {metrics[name] for name in metrics if name.startswith("val_dice_")} == {0.25, 0.5}


def test_registering_takes_the_model_that_the_training_logged(client, model: Path) -> None:
    run = TrainingRun(client, training="abc", params={})
    run.finish(model, {})
    version, made = ensure_version(client, "unet", model)
    assert made
    assert version.run_id == run.run_id
    assert len(client.search_logged_models([client.get_run(run.run_id).info.experiment_id])) == 1
