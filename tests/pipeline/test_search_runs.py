"""Against a real server that is taken away."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.tracking_server import TrackingServer
from pipeline.params import load_section
from unet_core.train_config import TrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


def told(epoch: int) -> dict[str, object]:
    return {"epoch": epoch, "loss": 1 / epoch, "dice": None, "class_dice": {"cell": 0.5}}


def test_a_search_goes_on_without_mlflow_and_says_so_once(
    tree, empty_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    from pipeline.search import Record
    from pipeline.search_runs import PARENT_TAG, SearchRuns

    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    tree.write_recipe(train={"select_by": "loss"})
    server = TrackingServer(folder)
    server.start()
    try:
        client = server.wait()
        journal = tmp_path / "trials.jsonl"
        runs = SearchRuns(client, "abc")
        record = Record(journal, [{}, {"train.learning_rate": 0.1}], runs, load_section("train", TrainConfig))
        record.on_report(0, told(1))
        server.kill()
        record.on_report(0, told(2))
        record.on_report(1, told(1))
        record.on_end(1)
        runs.finish({})
        (warning,) = [message for message in caplog.messages if "MLflow" in message]
        assert warning.startswith("search: MLflow does not answer; the search goes on, and its runs lack some values. ")
        server.start()
        client = server.wait()
        record.on_report(0, told(3))
        record.on_end(0)
        assert record.best() == 0
        assert [json.loads(line)["trial"] for line in journal.read_text().splitlines()] == [0, 0, 1, 1, 0, 0]
        (child,) = client.search_runs([client.experiment_id()], f"tags.`{PARENT_TAG}` = '{runs.run_id}'")
        assert child.info.status == "FINISHED"
        history = client.get_metric_history(child.info.run_id, "val_loss")
        assert [metric.step for metric in history] == [1, 3]
    finally:
        server.kill()
