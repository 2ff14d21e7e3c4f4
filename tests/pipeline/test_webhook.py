"""A real server on loopback."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline import webhook
from pipeline.placement import read_placement
from pipeline.webhook import call_webhook
from unet_core.errors import RecipeError

SECRET = "T0-the-secret-part"


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = 200
        self.told: list[dict] = []
        self.silence = threading.Event()
        self.is_silent = False
        self.drips = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hooks/{SECRET}?token={SECRET}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.server.is_silent:
            self.server.silence.wait(30)
        if self.server.drips:
            self.drip()
            return
        self.send_response(self.server.answer)
        self.send_header("Location", f"/elsewhere/{SECRET}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def drip(self) -> None:
        """A byte of a header now and then, each sooner than a socket's patience ends."""
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not self.server.silence.wait(0.05):
                self.wfile.write(b"x")

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.silence.set()
        running.shutdown()
        thread.join()


def test_it_gets_the_body_as_json(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    call_webhook(server.url, {"outcome": "promoted", "score": 0.5})
    assert server.told == [{"outcome": "promoted", "score": 0.5}]
    assert caplog.text == ""


def test_without_an_address_nobody_is_told() -> None:
    call_webhook(None, {})


@pytest.mark.parametrize("answer", [404, 500, 302])
def test_an_answer_that_is_no_success_is_a_warning(
    server: Server, caplog: pytest.LogCaptureFixture, answer: int
) -> None:
    server.answer = answer
    call_webhook(server.url, {})
    assert len(server.told) == 1
    assert f"UNET_WEBHOOK was not told: it answered with {answer}" in caplog.text
    assert SECRET not in caplog.text


def test_silence_ends_after_the_time_limit(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_SECONDS", 0.2)
    server.is_silent = True
    call_webhook(server.url, {})
    assert "UNET_WEBHOOK was not told: " in caplog.text
    assert SECRET not in caplog.text


def test_a_server_that_answers_byte_by_byte_is_left_after_the_time_limit(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_SECONDS", 0.5)
    server.drips = True
    # Without a limit for the whole call it would never end: the server goes on until the test is over.
    call_webhook(server.url, {})
    assert caplog.messages == ["UNET_WEBHOOK was not told: no whole answer came within 0.5 s"]


@pytest.mark.parametrize(
    "url", [f"http://127.0.0.1:9/{SECRET}", f"http://no-such-host.invalid/{SECRET}", f"http://127.0.0.1:x/{SECRET}"]
)
def test_an_address_at_which_nobody_is_is_a_warning_without_it(url: str, caplog: pytest.LogCaptureFixture) -> None:
    call_webhook(url, {})
    assert "UNET_WEBHOOK was not told: " in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("value", ["file:///etc/passwd", f"https://me:{SECRET}@host/", "hooks.example.org", "https://"])
def test_other_addresses_are_refused_without_being_shown(tree, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("UNET_WEBHOOK", value)
    with pytest.raises(RecipeError) as caught:
        read_placement()
    assert str(caught.value) == (
        "environment variable UNET_WEBHOOK: not an address that begins with https:// or http:// (it is not shown, since "
        "it may be a secret; a name and password before the host are not possible). Correct or unset it."
    )


def test_the_address_stands_in_the_environment(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_placement().webhook is None
    monkeypatch.setenv("UNET_WEBHOOK", "https://hooks.example.org/a/b?c=d")
    assert read_placement().webhook == "https://hooks.example.org/a/b?c=d"
