"""infra/servers.py: the registry behind a server, with PostgreSQL, an S3-compatible store and passwords."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks.postgres import find_programs
from benchmarks.promotions import DIES, WRONG, make_versions, measure
from benchmarks.workspace import ROOT
from infra.servers import mlflow_server
from pipeline import tracking
from pipeline.history import Move, move_champion
from pipeline.model_files import fetch_model, find_model
from pipeline.receipt import read_receipt, registered_version, write_receipt
from pipeline.registration import ensure_version
from unet_core.checkpoint import model_hash, read_model
from unet_core.errors import RegistryError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.skipif(find_programs() is None, reason="PostgreSQL is not installed"),
]
MODEL, RECEIPT = Path("models/final"), Path("models/receipt.json")


@pytest.fixture
def server(s3_server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A server whose clients have its password, and no keys of the object store."""
    import s3fs

    store = s3fs.S3FileSystem(key=s3_server.key, secret=s3_server.secret, endpoint_url=s3_server.endpoint)
    store.makedirs("registry", exist_ok=True)
    storage = {**s3_server.environment(), "MLFLOW_S3_ENDPOINT_URL": s3_server.endpoint}
    monkeypatch.chdir(tmp_path)
    with mlflow_server("s3://registry/models", storage) as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield running


def test_a_model_goes_to_the_object_store_and_comes_back_and_the_champion_moves(
    server, s3_server, write_model_dir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model_dir(MODEL)
    write_receipt(RECEIPT, model="cells", model_dir=MODEL)
    client = tracking.connect(server.uri)
    version = registered_version(client, read_receipt(RECEIPT), MODEL)
    assert ensure_version(client, "cells", MODEL) == (version, False)
    forced = Move(action="forced", version=version.number, reason="the first")
    assert move_champion(client, "cells", lambda _: forced).is_done
    directory = fetch_model(find_model(client, "models:/cells@champion"), tmp_path / "download")
    assert model_hash(directory) == model_hash(MODEL)
    read_model(directory)
    # What nobody stored is not there, which is no error.
    assert tracking.list_run_files(client, str(version.run_id), "evaluation") == []
    # Made anew, a version has the same files and no copy of them.
    source = client.get_model_version("cells", version.number).source
    client.delete_model_version("cells", version.number)
    again = registered_version(client, read_receipt(RECEIPT), MODEL)
    assert client.get_model_version("cells", again.number).source == source
    # Without its password nobody gets in, and the password is in no message.
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not the password")
    with pytest.raises(RegistryError) as caught:
        tracking.connect(server.uri)
    assert "not the password" not in str(caught.value)


@pytest.mark.chaos
def test_make_servers_brings_all_parts_and_leaves_nothing_when_it_is_terminated(
    write_model_dir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not below tmp_path, which PostgreSQL's user may not enter.
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        monkeypatch.setenv("TMPDIR", scratch)
        _try_make_servers(write_model_dir, tmp_path, monkeypatch)
        assert list(Path(scratch).iterdir()) == []


def _try_make_servers(write_model_dir, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [sys.executable, "-m", "infra.servers"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(7)]
            told = dict(line.removeprefix("export ").strip().split("=", 1) for line in lines)
            for name, value in told.items():
                monkeypatch.setenv(name, value)
            monkeypatch.chdir(folder)
            write_model_dir(MODEL)
            ensure_version(tracking.connect(told["MLFLOW_TRACKING_URI"]), "cells", MODEL)
            store = [sys.executable, "-m", "benchmarks.object_store", "list"]
            kept = subprocess.run([*store, "s3://mlflow"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
            assert "/model.safetensors\n" in kept
            subprocess.run([*store, "s3://dvc"], cwd=ROOT, capture_output=True, check=True)
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not the key")
            assert subprocess.run([*store, "s3://mlflow"], cwd=ROOT, capture_output=True, check=False).returncode
        finally:
            process.terminate()
        assert process.wait(timeout=60) == 0


@pytest.mark.chaos
def test_a_killed_promoter_and_several_at_once_lose_nothing_on_postgresql(server) -> None:
    make_versions(server.uri)
    words = [sys.executable, "-c", DIES, server.uri, "3", "alias", "before"]
    assert subprocess.run(words, capture_output=True, check=False).returncode == -signal.SIGKILL
    found = measure(server.uri, moves=6, processes=2)
    assert {name: found[name] for name in WRONG} == {**dict.fromkeys(WRONG, 0), "unasked": 1}
