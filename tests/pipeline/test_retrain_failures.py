"""Whatever ends a retraining, people hear of it; nothing is trained here."""

import errno
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline.retrain import Request, _conclude, retrain
from pipeline.retrain_look import Paths
from pipeline.retrain_standing import Answer, Memory, Standing
from pipeline.tracking import Version
from unet_core.errors import RecipeError

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

    monkeypatch.setattr("pipeline.retrain.clear_leftovers", fail)
    with pytest.raises(type(error)):
        retrain(Request(), PATHS)
    (body,) = told
    assert (body["outcome"], body["sentence"]) == ("failed", sentence)


def test_who_was_champion_and_is_no_more_is_not_said_to_be_promoted() -> None:
    def version(number: str) -> Version:
        return Version(name="unet", number=number, run_id=None, model_sha256=number, weights_sha256=number, tags={})

    standing = Standing(
        model="unet",
        version=version("2"),
        champion=version("1"),
        champion_age_days=1.0,
        answer=Answer(decision="promoted", sentence="promoted: Dice 0.9 vs 0.8"),
        memory=None,
        is_half_moved=False,
    )
    memory = Memory(reasons=("12 new samples",), samples={}, was_champion=False)
    assert _conclude(standing, memory) == (
        "not promoted",
        "it was champion before, and people made another version champion since",
    )
