"""The door to Ray's Jobs API, against a real head; a lost connection is a proxy's."""

import contextlib
import json
import os
import re
import shutil
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.ray_head import RayHead, ray_head, why_not
from pipeline.jobs import ClusterAwayError, Job, Jobs, parse_used
from unet_core.errors import StorageError


def test_rays_words_on_resources_are_read() -> None:
    text = "0.5/4.0 CPU\n1.0/2.0 GPU (1.0 used of 1.0 reserved in placement groups)\n0B/6.02GiB memory\n0.0/1.0 node:x"
    assert parse_used(text) == {"CPU": 0.5, "GPU": 1.0}
    assert parse_used("") == {}


@pytest.mark.parametrize("address", ["ray://head:10001", "s3://bucket"])
def test_another_kind_of_address_is_refused(address: str) -> None:
    with pytest.raises(StorageError) as caught:
        Jobs(address)
    assert str(caught.value) == (
        f"not an address of Ray's Jobs API: {address}. Give that of the dashboard: http://HOST:8265."
    )


def test_a_cluster_that_is_not_there_is_named_without_a_password() -> None:
    with pytest.raises(
        ClusterAwayError, match=r"^Ray's Jobs API can't be reached: http://\*\*\*@127\.0\.0\.1:9\. Start"
    ):
        Jobs("http://me:12345@127.0.0.1:9")


@pytest.mark.parametrize(
    "written", [b"first-half\nsecond-half", "first-half\u20acsecond-half".encode(), b"half-\xff-half"]
)
@pytest.mark.parametrize("place", ["variable", "file"])
def test_a_token_that_cannot_be_sent_is_at_fault_and_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bytes, place: str
) -> None:
    if place == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", os.fsdecode(written))
    else:
        (tmp_path / "token").write_bytes(written)
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(StorageError) as caught:
        Jobs("http://127.0.0.1:9")
    assert str(caught.value) == (
        "the cluster's token holds a line break or another character that can't be sent (it is not shown). Copy it anew "
        "into RAY_AUTH_TOKEN, or into the file ~/.ray/auth_token."
    )
    assert "half" not in "".join(traceback.format_exception(caught.value))


def test_a_cluster_that_is_silent_is_not_called_away_for_good() -> None:
    # The system takes connections for it, and nobody ever reads them.
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterAwayError) as caught:
            Jobs(f"http://me:12345@{place}", answer_seconds=0.5)
    assert str(caught.value) == (
        f"Ray's Jobs API does not answer within 0.5 s: http://***@{place}. Try again later, look whether its host has "
        "too much to do, or correct RAY_API_SERVER_ADDRESS."
    )


class Gateway(ThreadingHTTPServer):
    """Answers for a head, with these codes one after another for each question about a job; 200: it has ended.

    A number is the name of a program that nobody submitted.
    """

    def __init__(self, *codes: int) -> None:
        super().__init__(("127.0.0.1", 0), GatewayHandler)
        self.codes = list(codes)
        self.num_tails = 0
        self.address = f"http://127.0.0.1:{self.server_port}"


class GatewayHandler(BaseHTTPRequestHandler):
    server: Gateway

    def do_GET(self) -> None:
        if self.path == "/api/version":
            self.answer(200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})
        elif self.path.endswith("/logs/tail"):
            self.server.num_tails += 1
            self.answer(503, {})
        else:
            name = self.path.rpartition("/")[2]
            job = {"type": "SUBMISSION", "submission_id": name, "status": "SUCCEEDED", "driver_exit_code": 0}
            if name.isdecimal():
                job |= {"type": "DRIVER", "submission_id": None, "job_id": name}
            self.answer(self.server.codes.pop(0), {**job, "entrypoint": "x", "start_time": 0})

    def answer(self, code: int, body: dict) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_) -> None:
        pass


@contextlib.contextmanager
def gateway(*codes: int) -> Iterator[Gateway]:
    with Gateway(*codes) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_gateway_that_answers_for_a_starting_head_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.jobs.RETRY_SECONDS", 0.01)
    with gateway(502, 503, *[200] * 8) as running:
        assert Jobs(running.address).follow("unet-1", lambda _: None).status == "SUCCEEDED"
    with gateway(503) as running, pytest.raises(ClusterAwayError) as caught:
        Jobs(running.address).find("unet-1")
    assert str(caught.value) == (
        f"Ray's Jobs API is away: {running.address}: a gateway answers with status code 503. Try again when the cluster "
        "has started."
    )


@pytest.mark.parametrize(("code", "name"), [(404, "nojob"), (200, "01000000")])
def test_the_log_of_what_is_no_job_is_not_asked_for(code: int, name: str) -> None:
    with gateway(code) as running, pytest.raises(StorageError) as caught:
        Jobs(running.address).follow(name, lambda _: None)
    assert str(caught.value) == f"no such job: {running.address}: {name}. `unet status` lists them."
    assert running.num_tails == 0


def test_a_number_in_a_jobs_name_is_no_code_of_an_answer() -> None:
    with gateway(500) as running, pytest.raises(StorageError, match=r"^Ray's Jobs API refused: "):
        Jobs(running.address).find("unet-20260404-101500-ab12")


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with ray_head() as running:
        yield running


@pytest.fixture
def token(head: RayHead, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in head.environment().items():
        monkeypatch.setenv(name, value)


class Proxy:
    """Passes bytes on to an address, until it is cut."""

    def __init__(self, target: str) -> None:
        host, port = re.fullmatch(r"http://(.*):(\d+)", target).groups()  # type: ignore[union-attr]
        self._target = (host, int(port))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._is_cut = False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._is_cut = True
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self.cut()
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if self._is_cut:
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                sink.sendall(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(head: RayHead, token) -> Iterator[Proxy]:
    between = Proxy(head.address)
    yield between
    between.close()


def start(jobs: Jobs, folder: Path, script: str) -> str:
    name = f"unet-{uuid.uuid4().hex[:8]}"
    (folder / "tree").mkdir(exist_ok=True)
    (folder / "tree" / "script.py").write_text(script, encoding="utf-8")
    (folder / "tree" / "name").write_text(name, encoding="utf-8")
    package = Path(shutil.make_archive(str(folder / name), "zip", folder / "tree"))
    jobs.submit(name, package, entrypoint="python script.py", variables={"UNET_WORKERS": "3"}, metadata={"a": "b"})
    return name


@pytest.mark.slow
def test_a_lost_connection_is_taken_up_again_and_no_line_comes_twice(proxy: Proxy, tmp_path: Path) -> None:
    jobs = Jobs(proxy.address)
    script = (
        "import os, time\nprint('workers', os.environ['UNET_WORKERS'])\n"
        "for number in range(12):\n    print('line', number)\n    time.sleep(1)\nraise SystemExit(7)\n"
    )
    name = start(jobs, tmp_path, script)
    pieces: list[str] = []
    ended: list[Job] = []
    thread = threading.Thread(target=lambda: ended.append(jobs.follow(name, pieces.append)))
    thread.start()
    deadline = time.monotonic() + 60
    while "line 2" not in "".join(pieces):
        assert time.monotonic() < deadline, pieces
        time.sleep(0.1)
    proxy.cut()
    time.sleep(4)
    proxy.mend()
    thread.join(timeout=90)
    (job,) = ended
    assert (job.name, job.status, job.exit_code, job.is_over, job.metadata["a"]) == (name, "FAILED", 7, True, "b")
    lines = [line for line in "".join(pieces).splitlines() if line.startswith(("line", "workers"))]
    assert lines == ["workers 3", *(f"line {number}" for number in range(12))]
    assert jobs.newest()[0].name == name


@pytest.mark.slow
def test_a_job_that_is_not_there_is_named(head: RayHead, token) -> None:
    with pytest.raises(StorageError) as caught:
        Jobs(head.address).find("unet-none")
    assert str(caught.value) == f"no such job: {head.address}: unet-none. `unet status` lists them."


@pytest.mark.slow
def test_the_head_tells_of_itself(head: RayHead, token) -> None:
    import ray

    jobs = Jobs(head.address)
    assert jobs.ray_version() == ray.__version__
    deadline = time.monotonic() + 30
    while (nodes := jobs.nodes())[0].used is None:
        assert time.monotonic() < deadline, nodes
        time.sleep(1)
    (node,) = nodes
    assert (node.address, node.is_head) == ("127.0.0.2", True)
    assert (node.total, node.used) == ({"CPU": 2.0, "GPU": 0.0}, {"CPU": 0.0})
