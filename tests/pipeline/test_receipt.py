from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.receipt import Receipt, read_receipt, registered_version, write_receipt
from pipeline.registration import ensure_version
from pipeline.training_run import TrainingRun
from unet_core.checkpoint import model_hash, weights_hash
from unet_core.errors import RegistryError

# MLflow asks for type hints and input examples whenever a model is logged.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
MODEL = Path("models/final")


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
    first, _ = ensure_version(client, "unet", model, {})
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
def test_a_version_made_anew_keeps_its_lineage(client, model: Path, receipt: Receipt) -> None:
    lineage = {"git.commit": "abc", "data.index_sha256": "def"}
    TrainingRun(client, training="abc", params={}).finish(model, lineage)
    first, _ = ensure_version(client, "unet", model, lineage)
    client.delete_model_version("unet", first.number)
    second = registered_version(client, receipt, model)
    assert second.run_id == first.run_id
    assert {key: second.tags.get(key) for key in lineage} == lineage


@pytest.mark.slow
def test_another_registry_gets_the_version_too(
    client, model: Path, receipt: Receipt, tree, empty_store: Path, caplog
) -> None:
    first, _ = ensure_version(client, "unet", model, {})
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
