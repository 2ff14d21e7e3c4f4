"""infra/mlflow_server.py: compose's command starts it, and it lets in who has the password."""

import os
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from benchmarks.postgres import find_programs, free_port, postgres
from infra.mlflow_server import REQUIRED, USER, server_environment

ROOT = Path(__file__).parents[2]
PASSWORD = "long enough, with 100 %"


def test_only_its_owner_reads_the_file_with_the_password_and_a_percent_sign_is_one(tmp_path: Path) -> None:
    uri = "postgresql://mlflow:50%25@postgres/mlflow"
    environment = server_environment(tmp_path, dict(zip(REQUIRED, (uri, PASSWORD, "key"), strict=True)))
    path = Path(environment["MLFLOW_AUTH_CONFIG_PATH"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    config = ConfigParser()
    config.read(path)
    assert config["mlflow"]["database_uri"] == uri
    assert environment["MLFLOW_AUTH_ADMIN_PASSWORD"] == PASSWORD


def test_it_says_which_variables_it_misses() -> None:
    words = [sys.executable, "-m", "infra.mlflow_server", "--artifacts", "s3://mlflow/artifacts"]
    without = {name: value for name, value in os.environ.items() if name not in REQUIRED}
    done = subprocess.run(
        words, cwd=ROOT, env={**without, REQUIRED[0]: "sqlite://"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"environment variables are not set: {REQUIRED[1]}, {REQUIRED[2]}" in done.stderr


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The server of compose.yaml, by its own command line; only addresses and paths are this machine's."""
    service = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text(encoding="utf-8"))["services"]["mlflow"]
    port = free_port()
    here = {"python": sys.executable, "0.0.0.0": "127.0.0.1", "s3://mlflow/artifacts": (tmp_path / "files").as_uri()}
    words = [here.get(word, word).replace("5000", str(port)) for word in service["command"]]
    assert set(REQUIRED) <= set(service["environment"])
    with postgres() as database, (tmp_path / "log").open("w") as log:
        known = dict(zip(REQUIRED, (database, PASSWORD, "key"), strict=True))
        process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, **known}, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 180
            while answer(port, "/health", host=f"mlflow:{port}") != 200:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.5)
            yield port
        finally:
            process.terminate()
            process.wait(timeout=120)
    assert PASSWORD not in (tmp_path / "log").read_text()


def answer(port: int, path: str, *, host: str, password: str | None = None) -> int:
    """The status of an answer; 0 where nobody listens."""
    headers = {"Host": host}
    if password is not None:
        headers["Authorization"] = f"Basic {b64encode(f'{USER}:{password}'.encode()).decode()}"
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as got:
            return int(got.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (urllib.error.URLError, ConnectionError):
        return 0


@pytest.mark.slow
@pytest.mark.skipif(find_programs() is None, reason="PostgreSQL is not installed")
def test_composes_server_lets_in_the_password_under_its_own_names_only(port: int) -> None:
    path = "/api/2.0/mlflow/registered-models/search"
    assert answer(port, path, host=f"mlflow:{port}", password=PASSWORD) == 200
    assert answer(port, path, host=f"127.0.0.1:{port}", password=PASSWORD) == 200
    assert answer(port, path, host=f"mlflow:{port}", password="another") == 401
    assert answer(port, path, host=f"mlflow:{port}") == 401
    assert answer(port, path, host="elsewhere.example", password=PASSWORD) == 403
