"""Whatever ends a retraining, people hear of it; nothing is trained here."""

import contextlib
import errno
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline.retrain import retrain
from pipeline.retrain_call import Request
from pipeline.retrain_look import Paths
from unet_core.errors import RecipeError, RegistryError, StorageError, UnetError

PATHS = Paths(
    accepted=Path("data/accepted.parquet"),
    splits=Path("data/splits.csv"),
    shards=Path("data/shards"),
    model=Path("models/final"),
    receipt=Path("models/receipt.json"),
    metrics=Path("metrics"),
    report=Path("reports/report.html"),
)


@pytest.fixture
def told(tree, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict]]:
    """Bodies that the webhook got."""
    bodies: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("UNET_WEBHOOK", f"http://127.0.0.1:{server.server_port}/")
        yield bodies
        server.shutdown()
        thread.join()


def test_a_recipe_that_can_not_be_read_is_told(told: list[dict]) -> None:
    Path("params.yaml").write_text("<<<<<<< HEAD\n")
    with pytest.raises(RecipeError) as caught:
        retrain(Request(), PATHS)
    (body,) = told
    assert (body["outcome"], body["sentence"], body["model"]) == ("failed", str(caught.value), "")
    assert json.loads(Path("reports/retrain.json").read_text()) == body


def test_a_lock_that_can_not_be_had_is_told(told: list[dict]) -> None:
    Path(".unet/retrain.lock").mkdir(parents=True)
    with pytest.raises(StorageError, match="^a lock's file can't be opened: ") as caught:
        retrain(Request(), PATHS)
    (body,) = told
    assert (body["outcome"], body["sentence"], body["model"]) == ("failed", str(caught.value), "")
    assert json.loads(Path("reports/retrain.json").read_text()) == body


def test_a_full_disk_is_told_from_the_lock_on(
    told: list[dict], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_disk / "params.yaml").write_text("<<<<<<< HEAD\n")
    with (small_disk / "rest").open("wb", buffering=0) as rest, contextlib.suppress(OSError):
        while True:
            rest.write(bytes(4096))
    with monkeypatch.context() as there:
        there.chdir(small_disk)
        with pytest.raises(RecipeError) as caught:
            retrain(Request(), PATHS)
    assert [body["sentence"] for body in told] == [str(caught.value)]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "data/x"), "No space left on device: data/x"),
        (ValueError("12345"), "ValueError, which nobody foresaw: the command's own output tells more"),
    ],
)
def test_what_nobody_foresaw_is_told_without_its_own_words(
    tree, told: list[dict], monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    tree.write_recipe()
    # A full disk has no room for the summary either.
    Path("reports").write_text("in the way")

    def fail(_: Path) -> None:
        raise error

    monkeypatch.setattr("pipeline.retrain_call.clear_leftovers", fail)
    with pytest.raises(type(error)):
        retrain(Request(), PATHS)
    (body,) = told
    assert (body["outcome"], body["sentence"]) == ("failed", sentence)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ask", "kind", "sentence"),
    [
        (Request(max_age_days=0), RecipeError, "--max-age 0: not a number of days above 0. Correct it."),
        (
            Request(submit=True),
            RegistryError,
            "--submit with a registry of this machine: the cluster's models would not be in it. Set "
            "MLFLOW_TRACKING_URI to the server that the cluster uses.",
        ),
        (Request(branch="re train"), StorageError, "not a name for a branch: re train. Choose another one."),
        (Request(branch=""), StorageError, "not a name for a branch: . Choose another one."),
        (Request(branch="-x"), StorageError, "not a name for a branch: -x. Choose another one."),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_what_can_not_be_done_is_told_though_there_may_be_nothing_to_do(
    dvc_tree, told: list[dict], ask: Request, kind: type[UnetError], sentence: str, dry_run: bool
) -> None:
    dvc_tree.write_recipe()
    with pytest.raises(kind) as caught:
        retrain(replace(ask, dry_run=dry_run), PATHS)
    assert str(caught.value) == sentence
    # Who asks for an explanation reads it.
    assert [body["sentence"] for body in told] == ([] if dry_run else [sentence])
