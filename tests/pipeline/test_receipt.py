import dataclasses
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import tracking
from pipeline.fetched_model import fetch_model
from pipeline.lineage_record import RECORD_NAME, Inputs, read_lineage
from pipeline.params import read_sections
from pipeline.receipt import Receipt, read_receipt, registered_version, write_receipt
from pipeline.registration import ensure_version
from pipeline.stages.split import read_splits
from pipeline.training_run import TrainingRun
from unet_core.checkpoint import model_hash, weights_hash
from unet_core.errors import RegistryError

# MLflow asks for type hints and input examples whenever a model is logged.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
MODEL, SHARDS = Path("models/final"), Path("data/shards")


def test_a_receipt_names_model_and_hashes(tmp_path: Path, write_model_dir) -> None:
    write_model_dir(tmp_path / "model")
    write_receipt(tmp_path / "r.json", model="unet", model_dir=tmp_path / "model")
    known = read_receipt(tmp_path / "r.json")
    assert known.model == "unet"
    assert known.model_sha256 == model_hash(tmp_path / "model")
    assert known.weights_sha256 == weights_hash(tmp_path / "model")


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "7", '{"model": "unet", "weights_sha256": "of an older version"}', '{"more": 1}']
)
def test_what_is_no_receipt_says_that_nothing_is_registered(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(RegistryError) as caught:
        read_receipt(path)
    assert str(caught.value) == f"nothing is registered: {path} can't be read. Run `dvc repro` first."


# With a registry


@pytest.fixture
def model(tree, write_model_dir) -> Path:
    write_model_dir(MODEL)
    return MODEL


@pytest.fixture
def receipt(model: Path) -> Receipt:
    write_receipt(Path("models/receipt.json"), model="unet", model_dir=model)
    return read_receipt(Path("models/receipt.json"))


def said(caplog: pytest.LogCaptureFixture, receipt: Receipt) -> bool:
    return f"the registry lacks model {receipt.model_sha256[:12]}: registering it anew" in caplog.text


@pytest.mark.slow
def test_a_version_that_was_deleted_is_made_anew_from_the_working_tree(
    client, model: Path, receipt: Receipt, caplog
) -> None:
    first, _ = ensure_version(client, "unet", model)
    assert registered_version(client, receipt, model) == first
    assert not said(caplog, receipt)
    client.delete_model_version("unet", first.number)
    assert tracking.find_version(client, "unet", first.model_sha256) is None
    second = registered_version(client, receipt, model)
    assert said(caplog, receipt)
    assert second.number != first.number
    assert second.model_sha256 == first.model_sha256
    assert [str(found.version) for found in client.search_model_versions("name = 'unet'")] == [second.number]
    assert tracking.version_by_alias(client, "unet", tracking.CHALLENGER) == second


@pytest.mark.slow
def test_a_version_made_anew_keeps_its_lineage(registered, client) -> None:
    known = read_receipt(Path("models/receipt.json"))
    first = tracking.find_version(client, "unet", known.model_sha256)
    recorded = read_lineage(client, first)
    client.delete_model_version("unet", first.number)
    second = registered_version(client, known, MODEL)
    assert (second.number, second.run_id) == ("2", first.run_id)
    assert read_lineage(client, second) == recorded
    assert dict(second.tags) == dict(first.tags)


@pytest.mark.slow
def test_a_version_made_anew_in_another_registry_has_the_lineage_of_the_tree_that_trained_it(
    registered, client, tmp_path: Path
) -> None:
    known = read_receipt(Path("models/receipt.json"))
    recorded = read_lineage(client, tracking.find_version(client, "unet", known.model_sha256))
    other = tracking.connect(f"sqlite:///{tmp_path / 'other.db'}")
    splits = read_splits(Path("data/splits.csv"))
    inputs = Inputs(root=Path.cwd(), shards=SHARDS, accepted=Path("data/accepted.parquet"), splits=splits)
    lock_training()
    first = registered_version(other, known, MODEL, inputs)
    lineage = read_lineage(other, tracking.version_by_number(other, "unet", first.number))
    assert lineage == dataclasses.replace(recorded, run_id=first.run_id, lock=lineage.lock)


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["recipe", "code", "shards", "never locked"])
def test_a_tree_that_has_changed_since_says_nothing_of_a_version_made_anew(
    registered, client, tmp_path: Path, changed: str
) -> None:
    known = read_receipt(Path("models/receipt.json"))
    splits = read_splits(Path("data/splits.csv"))
    inputs = Inputs(root=Path.cwd(), shards=SHARDS, accepted=Path("data/accepted.parquet"), splits=splits)
    lock_training()
    if changed == "recipe":
        registered.write_recipe(train={"learning_rate": 0.5})
    elif changed == "never locked":
        Path("dvc.lock").unlink()
    else:
        path = {"code": Path("code.py"), "shards": SHARDS / "index.json"}[changed]
        path.write_bytes(path.read_bytes() + b" ")
    other = tracking.connect(f"sqlite:///{tmp_path / 'other.db'}")
    version = registered_version(other, known, MODEL, inputs)
    with pytest.raises(RegistryError, match=r"^no lineage was recorded of unet version 1"):
        read_lineage(other, version)


def lock_training() -> None:
    """As DVC leaves it when the stage `train` has run."""
    Path("code.py").write_text("1\n", encoding="utf-8")
    digest = hashlib.md5(Path("code.py").read_bytes(), usedforsecurity=False).hexdigest()
    deps = [{"path": "data/shards", "md5": "0" * 32 + ".dir"}, {"path": "code.py", "hash": "md5", "md5": digest}]
    stage = {"cmd": "unet stage train", "deps": deps, "params": {"params.yaml": {"train": read_sections()["train"]}}}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"train": stage}}), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"{}"), gzip.compress(b"[]"), "of another model"],
    ids=["no gzip", "empty", "a list", "of another model"],
)
def test_a_record_that_is_damaged_or_another_models_is_not_taken_for_the_lineage(
    registered, client, content: bytes | str, caplog: pytest.LogCaptureFixture
) -> None:
    known = read_receipt(Path("models/receipt.json"))
    (stored,) = Path("mlruns").rglob(RECORD_NAME)
    if isinstance(content, str):
        body = json.loads(gzip.decompress(stored.read_bytes()))
        content = gzip.compress(json.dumps({**body, "model_sha256": "0" * 64}).encode())
    stored.write_bytes(content)
    client.delete_model_version("unet", "1")
    second = registered_version(client, known, MODEL)
    assert second.number == "2"
    assert f"version 2 has no lineage: its run's {RECORD_NAME} can't be read: " in caplog.text
    with pytest.raises(RegistryError, match=r"^no lineage was recorded of unet version 2"):
        read_lineage(client, second)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_version_made_anew_has_whole_files_also_where_those_of_the_run_are_damaged(
    client, model: Path, receipt: Receipt, damage: str
) -> None:
    TrainingRun(client, training="abc", params={}).finish(model, {"git.commit": "abc"})
    first, _ = ensure_version(client, "unet", model)
    (stored,) = Path("mlruns").rglob("model.safetensors")
    if damage == "gone":
        stored.unlink()
    else:
        stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    # As the error tells people to do who want to fetch it.
    client.delete_model_version("unet", first.number)
    second = registered_version(client, receipt, model)
    assert model_hash(fetch_model(second, Path("download"))) == receipt.model_sha256
    assert (second.run_id, second.tags["git.commit"]) == (first.run_id, "abc")
    # And it is found there the next time.
    client.delete_model_version("unet", second.number)
    registered_version(client, receipt, model)
    assert len(list(Path("mlruns").rglob("model.json"))) == 2


@pytest.mark.slow
def test_another_registry_gets_the_version_too(
    client, model: Path, receipt: Receipt, tree, empty_store: Path, caplog
) -> None:
    first, _ = ensure_version(client, "unet", model)
    (tree.root / "other.db").write_bytes(empty_store.read_bytes())
    other = tracking.connect(f"sqlite:///{tree.root / 'other.db'}")
    assert registered_version(other, receipt, model).model_sha256 == first.model_sha256
    assert said(caplog, receipt)


@pytest.mark.slow
def test_a_receipt_without_version_and_with_another_model_is_refused(client, model: Path) -> None:
    unknown = Receipt(model="unet", model_sha256="0" * 64, weights_sha256=weights_hash(model))
    with pytest.raises(RegistryError) as caught:
        registered_version(client, unknown, model)
    assert str(caught.value) == (
        "the registry lacks the model of the receipt (000000000000) and models/final holds another. "
        "Run `dvc checkout` or `dvc repro`."
    )


# With DVC: a receipt comes without its version


@pytest.fixture(scope="module")
def recorded_once(
    tmp_path_factory: pytest.TempPathFactory, sharded_once: Path, empty_store: Path, write_model_dir, repository: Path
) -> Path:
    """A repository in which the stages `register` and `evaluate` of dvc.yaml ran, below them real git and DVC."""
    root = tmp_path_factory.mktemp("recorded") / "tree"
    shutil.copytree(sharded_once, root)
    shutil.copy(empty_store, root / "mlflow.db")
    write_model_dir(root / MODEL)
    stages = yaml.safe_load((repository / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    chosen = {name: stages[name] for name in ("register", "evaluate")}
    for stage in chosen.values():
        stage["cmd"] = stage["cmd"].replace("unet ", f"{sys.executable} -m pipeline.cli ", 1)
        stage["deps"] = [path for path in stage["deps"] if path.startswith(("data/", "models/"))]
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": chosen}), encoding="utf-8")
    (root / ".gitignore").write_text("/mlflow.db\n/mlruns\n/.dvc-site\n/.unet\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        command("git", "init", "--quiet")
        command("dvc", "init", "--quiet")
        command("dvc", "add", "--quiet", "data/shards", "models/final")
        command("dvc", "repro")
        command("git", "add", ".")
        command("git", "-c", "user.name=n", "-c", "user.email=n@example.invalid", "commit", "--quiet", "-m", "trained")
    return root


@pytest.fixture
def recorded(tree, recorded_once: Path):
    """A copy of that repository as working tree."""
    shutil.copytree(recorded_once, tree.root, dirs_exist_ok=True)
    return tree


def command(*words: str, **environment: str) -> str:
    if words[0] in ("dvc", "unet"):
        words = (sys.executable, "-m", "dvc" if words[0] == "dvc" else "pipeline.cli", *words[1:])
    # MLflow writes the address that it was connected to last into this process's environment.
    outside = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    outside |= {"PYTHONPATH": str(Path(__file__).parents[2]), "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(words, env={**outside, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def assert_registers_anew(promoted: str, uri: str) -> None:
    """What `unet promote` said, and what stands in the registry afterwards."""
    known = read_receipt(Path("models/receipt.json"))
    assert f"the registry lacks model {known.model_sha256[:12]}: registering it anew" in promoted
    version = tracking.version_by_alias(tracking.connect(uri), "unet", tracking.CHAMPION)
    assert version is not None
    assert version.model_sha256 == known.model_sha256
    # What it was trained on is known, so that no test asks it about that.
    assert version.tags["data.index_sha256"] == known.index_sha256 != ""


def empty(empty_store: Path, path: Path) -> str:
    """The URI of an empty store."""
    shutil.rmtree(path.parent / "mlruns", ignore_errors=True)
    path.parent.mkdir(exist_ok=True)
    shutil.copy(empty_store, path)
    return f"sqlite:///{path}"


@pytest.mark.slow
def test_the_run_cache_brings_no_receipt_so_that_the_version_is_registered_anew(recorded, empty_store: Path) -> None:
    """The receipt is not DVC's to keep (`cache: false`): the stage runs, where others are restored."""
    uri = empty(empty_store, recorded.root / "mlflow.db")
    before = read_receipt(Path("models/receipt.json"))
    for name in ("models/receipt.json", "dvc.lock", "metrics/evaluate.json"):
        Path(name).unlink()
    told = command("dvc", "repro")
    assert "Stage 'evaluate' is cached - skipping run, checking out outputs" in told
    assert "Running stage 'register'" in told
    assert read_receipt(Path("models/receipt.json")) == before
    version = tracking.version_by_alias(tracking.connect(uri), "unet", tracking.CHALLENGER)
    assert version is not None
    assert version.model_sha256 == before.model_sha256


@pytest.mark.slow
def test_a_receipt_that_a_colleague_pulled_is_noticed(
    recorded, empty_store: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("colleague")
    command("dvc", "remote", "add", "--default", "shared", str(elsewhere / "remote"))
    command("dvc", "push", "--quiet")
    command("git", "clone", "--quiet", str(recorded.root), str(elsewhere / "clone"))
    shutil.copy(".dvc/config", elsewhere / "clone" / ".dvc" / "config")
    monkeypatch.chdir(elsewhere / "clone")
    command("dvc", "pull", "--quiet")
    assert "up to date" in command("dvc", "repro")
    assert_registers_anew(command("unet", "promote"), f"sqlite:///{elsewhere / 'clone' / 'mlflow.db'}")


@pytest.mark.slow
def test_the_receipt_of_a_deleted_version_is_noticed(recorded) -> None:
    uri = f"sqlite:///{recorded.root / 'mlflow.db'}"
    tracking.connect(uri).delete_model_version("unet", "1")
    assert "up to date" in command("dvc", "repro")
    assert_registers_anew(command("unet", "promote"), uri)


@pytest.mark.slow
def test_a_receipt_of_another_tracking_server_is_noticed(recorded, empty_store: Path) -> None:
    uri = empty(empty_store, recorded.root / "other" / "mlflow.db")
    assert "up to date" in command("dvc", "repro", MLFLOW_TRACKING_URI=uri)
    assert_registers_anew(command("unet", "promote", MLFLOW_TRACKING_URI=uri), uri)
    # Evaluation needs the version too.
    assert "registering it anew" not in command("dvc", "repro", "--force", "--single-item", "evaluate")
    uri = empty(empty_store, recorded.root / "third" / "mlflow.db")
    assert "registering it anew" in command("dvc", "repro", "-f", "-s", "evaluate", MLFLOW_TRACKING_URI=uri)
