"""The whole pipeline against a tracking server with PostgreSQL, an S3-compatible store and passwords."""

from pathlib import Path

import pytest

from benchmarks.object_store import ObjectStore
from benchmarks.postgres import find_programs
from benchmarks.workspace import change_recipe, make_workspace, run
from infra.servers import Server, mlflow_server
from pipeline import tracking
from pipeline.fetched_model import fetch_model, find_model
from pipeline.receipt import read_receipt
from unet_core.checkpoint import model_hash, read_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(find_programs() is None, reason="PostgreSQL is not installed"),
]
#: Small and quick: one epoch on 24 images.
TINY = {
    "model.width": 4,
    "model.depth": 2,
    "train.epochs": 1,
    "train.validate_every_epochs": 1,
    "evaluate.bootstrap_draws": 100,
    "promote.min_score": 0.0,
    "promote.min_groups": 2,
    "shard.target_mb": 1.0,
}
RECEIPT, MODEL = Path("models/receipt.json"), Path("models/final")


@pytest.fixture
def server(s3_server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A server whose clients have its password, and no keys of the object store."""
    import s3fs

    store = s3fs.S3FileSystem(key=s3_server.key, secret=s3_server.secret, endpoint_url=s3_server.endpoint)
    store.makedirs("pipeline", exist_ok=True)
    storage = {**s3_server.environment(), "MLFLOW_S3_ENDPOINT_URL": s3_server.endpoint}
    with mlflow_server("s3://pipeline/models", storage) as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield running


def test_a_pipeline_registers_promotes_and_rolls_back_on_a_server_and_leaves_no_password(
    server: Server, s3_server: ObjectStore, tmp_path: Path
) -> None:
    tree = make_workspace(tmp_path / "tree", "shapes", TINY)
    told: list[str] = []

    def unet(*words: str) -> str:
        told.append(run(tree, *words, env=server.environment()))
        return told[-1]

    unet("unet", "shapes", "data/raw/shapes", "--count", "24")
    unet("unet", "add")
    unet("dvc", "repro")
    assert "promoted: the first champion" in unet("unet", "promote")
    first = check_model_comes_back(server, tree, tmp_path / "first")
    # The working tree has no store of its own: all of it went to the server.
    assert not (tree / "mlflow.db").exists()
    assert not (tree / "mlruns").exists()
    assert any(name.endswith("model.safetensors") for name in s3_server.names("s3://pipeline/models"))

    change_recipe(tree, None, {"train.seed": 1})
    unet("dvc", "repro")
    assert "is champion, without the gate" in unet("unet", "promote", "--force", "--reason", "to try a rollback")
    second = check_model_comes_back(server, tree, tmp_path / "second")
    assert second != first
    assert "version 1 is champion again, before it was version 2" in unet("unet", "rollback", "--reason", "tried")
    lines = [line for line in unet("unet", "history").splitlines() if line[:1].isdigit()]
    assert [word in line for word, line in zip(("promoted", "forced", "rolled back"), lines, strict=True)] == [True] * 3
    assert "recipe" in unet("unet", "lineage", "models:/unet@champion")
    assert "train.seed" in unet("unet", "diff", "models:/unet/1", "models:/unet/2")
    assert not any("View run unet" in text for text in told)

    check_pages(server)
    check_no_password(server.password, tree, told)


def check_model_comes_back(server: Server, tree: Path, download: Path) -> str:
    """The champion is the tree's model to the bit, and the receipt fits it."""
    client = tracking.connect(server.uri)
    directory = fetch_model(find_model(client, "models:/unet@champion"), download)
    read_model(directory)
    found = model_hash(directory)
    receipt = read_receipt(tree / RECEIPT)
    assert found == model_hash(tree / MODEL) == receipt.model_sha256
    return found


def check_pages(server: Server) -> None:
    """Both runs share an experiment and tell the same names, and the versions have text, example and pictures."""
    client = tracking.connect(server.uri)
    runs = client.search_runs([client.experiment_id()])
    assert len(runs) == 2
    assert runs[0].data.params.keys() == runs[1].data.params.keys()
    assert {"test_dice", "val_loss"} <= runs[0].data.metrics.keys() & runs[1].data.metrics.keys()
    for version in client.search_model_versions("name = 'unet'"):
        assert "### Test scores" in version.description
        assert "### Use" in version.description
        files = {entry.path for entry in client.list_artifacts(version.run_id, "evaluation")}
        assert {"evaluation/cases.png", "evaluation/calibration.png"} <= files


def check_no_password(password: str, tree: Path, told: list[str]) -> None:
    """Neither in what was said nor in any file, git's and DVC's own among them."""
    assert not [text for text in told if password in text]
    files = [path for path in tree.rglob("*") if path.is_file()]
    assert any(path.suffix == ".jsonl" for path in files)
    assert not [path for path in files if password.encode() in path.read_bytes()]
