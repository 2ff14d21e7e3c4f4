"""PostgreSQL, an S3-compatible store and an MLflow server with passwords, as plain processes on loopback: the parts of
compose.yaml, to try things out, and for tests.

    python -m infra.servers                      artifacts in a store of its own, with a bucket for DVC beside them
    python -m infra.servers --artifacts s3://bucket/models     with AWS_* as boto3 reads them

It prints what a client sets, runs until Ctrl-C, and leaves nothing behind: this is no place to keep models.
"""

import argparse
import contextlib
import os
import secrets
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.object_store import object_store
from benchmarks.postgres import free_port, postgres
from infra.mlflow_server import REQUIRED, USER, server_command, server_environment

#: For MLflow and for DVC, as in compose.yaml.
BUCKETS = ("mlflow", "dvc")


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running MLflow server."""

    uri: str
    password: str

    def environment(self) -> dict[str, str]:
        """What a client sets to reach it; the password stands in no address, since addresses get into logs."""
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }


@contextlib.contextmanager
def mlflow_server(
    artifacts: str | None = None, storage: Mapping[str, str] | None = None, *, host: str = "127.0.0.1"
) -> Iterator[Server]:
    """An MLflow server before a PostgreSQL of its own; clients reach artifacts through it and need no other keys.

    `artifacts` is the URL below which they lie, by default a folder; `storage` the environment that opens it.
    """
    with postgres() as database, tempfile.TemporaryDirectory(prefix="unet-mlflow-") as scratch:
        folder = Path(scratch)
        port = free_port()
        server = Server(uri=f"http://{host}:{port}", password=secrets.token_hex(16))
        where = artifacts or (folder / "artifacts").as_uri()
        words = server_command(host=host, port=port, artifacts=where)
        known = dict(zip(REQUIRED, (database, server.password, secrets.token_hex(32)), strict=True))
        # MLflow leaves a lock file for each database in the folder for temporary files.
        environment = {**os.environ, "TMPDIR": scratch, **(storage or {}), **server_environment(folder, known)}
        with (folder / "log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            _wait(server, process, folder / "log")
            yield server
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers; making the tables takes a while."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"{server.uri}/health", timeout=5).close()
            return
        time.sleep(0.3)
    raise RuntimeError(log.read_text(errors="replace")[-4000:])


def main() -> None:
    """Start, print what a client sets, and wait."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", help="URL below which artifacts lie; by default in a store that is started, too")
    parser.add_argument("--host", default="127.0.0.1", help="where MLflow listens; all others stay on loopback")
    parsed = parser.parse_args()
    # A service manager's way to end it, and a shell ignores Ctrl-C for what it started in the background.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as running:
        where, storage = parsed.artifacts, dict[str, str]()
        if where is None:
            store = running.enter_context(object_store(secret=secrets.token_hex(16)))
            for bucket in BUCKETS:
                store.make_bucket(bucket)
            where, storage = f"s3://{BUCKETS[0]}", store.environment()
        server = running.enter_context(mlflow_server(where, storage, host=parsed.host))
        for name, value in {**server.environment(), **storage}.items():
            print(f"export {name}={value}", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
