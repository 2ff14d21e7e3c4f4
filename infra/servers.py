"""PostgreSQL and an MLflow server with passwords, as plain processes on loopback: to try things out, and for tests.

    python -m infra.servers                      artifacts in a folder
    python -m infra.servers --artifacts s3://bucket/models     with AWS_* as boto3 reads them

It prints what a client sets, runs until Ctrl-C, and leaves nothing behind: this is no place to keep models.
"""

import argparse
import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.postgres import free_port, postgres

USER = "admin"


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
def mlflow_server(artifacts: str | None = None, storage: Mapping[str, str] | None = None) -> Iterator[Server]:
    """An MLflow server before a PostgreSQL of its own; clients reach artifacts through it and need no other keys.

    `artifacts` is the URL below which they lie, by default a folder; `storage` the environment that opens it.
    """
    with postgres() as database, tempfile.TemporaryDirectory(prefix="unet-mlflow-") as scratch:
        folder = Path(scratch)
        server = Server(uri=f"http://127.0.0.1:{free_port()}", password=secrets.token_hex(16))
        words = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
        words += ["--host", "127.0.0.1", "--port", server.uri.rpartition(":")[2]]
        words += ["--artifacts-destination", artifacts or (folder / "artifacts").as_uri()]
        environment = {**os.environ, **(storage or {}), **_secrets(folder, database, server)}
        with (folder / "log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            _wait(server, process, folder / "log")
            yield server
        finally:
            process.terminate()
            process.wait(timeout=30)


def _secrets(folder: Path, database: str, server: Server) -> dict[str, str]:
    """Passwords go by the environment and a file, never by a command line, which every user of the machine can read."""
    config = folder / "auth.ini"
    lines = ["[mlflow]", "default_permission = READ", f"database_uri = {database}", f"admin_username = {USER}"]
    lines += ["authorization_function = mlflow.server.auth:authenticate_request_basic_auth"]
    config.touch(mode=0o600)
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": server.password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Six processes of 250 MB, which only its features for language models use.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


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
    parser.add_argument("--artifacts", help="URL below which artifacts lie; by default a folder of its own")
    parsed = parser.parse_args()
    with mlflow_server(parsed.artifacts) as server, contextlib.suppress(KeyboardInterrupt):
        for name, value in server.environment().items():
            print(f"export {name}={value}", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
