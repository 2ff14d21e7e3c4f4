"""`unet status`: each part by itself."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.status import age


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59, "59 s"), (61, "1 min"), (3 * 3600, "3 h"), (50 * 3600, "2 d")]
)
def test_ages_are_told_as_people_do(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_where_nothing_is_each_part_says_so_and_nothing_is_made(
    tree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.write_recipe()
    before = sorted(path.name for path in tree.root.iterdir())
    with pytest.raises(SystemExit) as ended:
        main(["status", "--address", "127.0.0.1:9"])
    assert ended.value.code == 0
    away = "Ray's Jobs API can't be reached: http://127.0.0.1:9. "
    same = "not known, for the same reason"
    starts = ("cluster   " + away, "jobs      " + same, "runs      none yet: ", "champion  none yet")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)
    assert sorted(path.name for path in tree.root.iterdir()) == before


class SilentServer(ThreadingHTTPServer):
    """Takes every question, and answers none before the test is over."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), SilentHandler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        self.is_over = threading.Event()


class SilentHandler(BaseHTTPRequestHandler):
    server: SilentServer

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.is_over.wait(60)

    do_POST = do_GET

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def silent() -> Iterator[SilentServer]:
    with SilentServer() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.is_over.set()
        running.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_silent_server_is_asked_once_and_told_in_one_sentence(
    tree, silent: SilentServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.write_recipe()
    monkeypatch.setattr("pipeline.status.ANSWER_SECONDS", 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent.address)
    with pytest.raises(SystemExit) as ended:
        main(["status", "--address", silent.address])
    assert ended.value.code == 0
    later = "Try again later, look whether its host has too much to do, or correct"
    assert capsys.readouterr().out.splitlines() == [
        f"cluster   Ray's Jobs API does not answer within 1 s: {silent.address}. {later} RAY_API_SERVER_ADDRESS.",
        "jobs      not known, for the same reason",
        f"runs      tracking server does not answer within 1 s: {silent.address}. {later} MLFLOW_TRACKING_URI.",
        "champion  not known, for the same reason",
    ]
    assert silent.asked == ["/api/version", "/api/2.0/mlflow/experiments/search"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_runs_and_champion_come_from_the_registry(registered, client, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline import tracking

    version = tracking.version_by_alias(client, "unet", tracking.CHALLENGER)
    tracking.set_alias(client, version, tracking.CHAMPION)
    with pytest.raises(SystemExit):
        main(["status", "--address", "127.0.0.1:9"])
    lines = capsys.readouterr().out.splitlines()
    assert f"champion  unet version 1 is champion, weights {version.weights_sha256[:12]}" in lines[-2]
    assert lines[-1].strip().startswith("unet version 1 is challenger")
    assert any(line.startswith("runs      ") and "since" in line for line in lines)
    assert Path("mlflow.db").exists()
