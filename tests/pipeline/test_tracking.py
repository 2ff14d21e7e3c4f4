"""Against real SQLite stores; nothing of MLflow is replaced."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.registration import ensure_version
from unet_core.errors import RegistryError

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


def test_a_version_is_found_by_its_hash_in_its_own_model_only(client, model: Path) -> None:
    version, _ = ensure_version(client, "unet", model)
    assert tracking.find_version(client, "unet", version.model_sha256) == version
    assert tracking.find_version(client, "unet", "0" * 64) is None
    assert tracking.find_version(client, "other", version.model_sha256) is None


def test_an_alias_names_the_version_it_was_set_to(client, model: Path, write_model_dir) -> None:
    first, _ = ensure_version(client, "unet", model)
    write_model_dir(Path("other"), inverted=True)
    second, _ = ensure_version(client, "unet", Path("other"))
    for version in (first, second):
        tracking.set_alias(client, version, tracking.CHAMPION)
        assert tracking.version_by_alias(client, "unet", tracking.CHAMPION) == version


def test_without_model_or_alias_there_is_no_version(client, model: Path) -> None:
    assert tracking.version_by_alias(client, "unet", tracking.CHAMPION) is None
    ensure_version(client, "unet", model)
    assert tracking.version_by_alias(client, "unet", tracking.CHAMPION) is None


def test_tags_are_added_to_a_version(client, model: Path) -> None:
    version, _ = ensure_version(client, "unet", model)
    tracking.set_version_tags(client, version, {"git.commit": "abc"})
    tracking.set_version_tags(client, version, {"gate.decision": "promoted"})
    tags = tracking.find_version(client, "unet", version.model_sha256).tags
    assert (tags["gate.decision"], tags["git.commit"]) == ("promoted", "abc")


def test_a_server_that_is_away_is_named_with_what_to_do() -> None:
    with pytest.raises(RegistryError) as caught:
        tracking.connect("http://user:secret@127.0.0.1:9/path")
    text = str(caught.value)
    assert text.startswith("tracking server can't be reached: http://127.0.0.1:9: ")
    assert text.endswith("Start it, correct MLFLOW_TRACKING_URI, or unset it to use the working tree's own store.")
    assert "secret" not in text


def test_a_server_that_is_silent_is_not_called_another_kind_of_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    # The system takes connections for it, and nobody ever reads them.
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        for seconds, patience in ((2, contextlib.nullcontext()), (1, tracking.asked_once(1))):
            with patience, pytest.raises(RegistryError) as caught:
                tracking.connect(f"http://user:secret@{place}")
            assert str(caught.value) == (
                f"tracking server does not answer within {seconds} s: http://***@{place}. Try again later, look whether "
                "its host has too much to do, or correct MLFLOW_TRACKING_URI."
            )
    # Who does more than look has its patience back.
    assert (os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"], os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) == ("1", "1")


@pytest.mark.parametrize("uri", ["http://u:secret@localhost:five", "ftp://127.0.0.1/store", "mlflow.db", "http://"])
def test_an_address_that_cannot_work_is_named(tree, uri: str) -> None:
    with pytest.raises(RegistryError, match="MLFLOW_TRACKING_URI") as caught:
        tracking.connect(uri)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_mlflow_is_named_without_the_password(tree) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # Answers 501 to everything.
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(RegistryError) as caught:
            tracking.connect(f"http://user:secret@127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert f"127.0.0.1:{server.server_port}" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_store_is_named(tree) -> None:
    (tree.root / "mlflow.db").write_bytes(b"no database, but longer than sixteen bytes")
    with pytest.raises(RegistryError, match=r"mlflow\.db"):
        tracking.connect(f"sqlite:///{tree.root / 'mlflow.db'}")


@pytest.mark.slow
def test_a_store_whose_maker_is_killed_is_made_by_the_next(tree) -> None:
    uri = f"sqlite:///{tree.root}/mlflow.db"
    script = f"from pipeline import tracking; print('now', flush=True); tracking.connect('{uri}')"
    for seconds in (0.3, 0.8, 1.5):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as maker:
            assert maker.stdout is not None
            assert maker.stdout.readline() == "now\n"
            time.sleep(seconds)
            maker.kill()
    client = tracking.connect(uri)
    assert tracking.version_by_alias(client, "unet", tracking.CHAMPION) is None


@pytest.mark.slow
def test_several_makers_of_one_store_share_it(tree) -> None:
    script = "from pipeline import tracking; tracking.connect('sqlite:///{}/mlflow.db').create_experiment('x{}')"
    makers = [subprocess.Popen([sys.executable, "-c", script.format(tree.root, number)]) for number in range(3)]
    assert [maker.wait() for maker in makers] == [0, 0, 0]
    client = tracking.connect(f"sqlite:///{tree.root}/mlflow.db")
    assert {found.name for found in client.search_experiments()} >= {"x0", "x1", "x2"}
    assert not list(tree.root.glob("*.partial"))


def test_scores_are_added_to_a_run_that_has_ended(client, model: Path, tree) -> None:
    version, _ = ensure_version(client, "unet", model)
    (tree.root / "scores.json").write_text("{}", encoding="utf-8")
    tracking.log_to_run(client, version.run_id, metrics={"test_dice": 0.9}, files=[Path("scores.json")])
    assert client.get_run(version.run_id).data.metrics["test_dice"] == 0.9
    assert [entry.path for entry in client.list_artifacts(version.run_id, "evaluation")] == ["evaluation/scores.json"]
