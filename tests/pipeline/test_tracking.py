"""Against real SQLite stores; nothing of MLflow is replaced."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import numpy as np
import pytest

from pipeline import tracking
from pipeline.receipt import Receipt, registered_version
from pipeline.training_run import TrainingRun
from unet_core.checkpoint import read_model, weights_hash
from unet_core.errors import RegistryError
from unet_core.samples import ClassMap, ImageConfig

pytestmark = [
    pytest.mark.slow,
    # MLflow asks for type hints and input examples whenever a model is logged.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
MODEL = Path("models/final")


@pytest.fixture
def model(tree, write_model_dir) -> Path:
    write_model_dir(MODEL)
    return MODEL


def versions(client: tracking.Client) -> list[str]:
    return sorted(str(found.version) for found in client.search_model_versions("name = 'unet'"))


def test_weights_are_registered_once(client, model: Path) -> None:
    first, made = tracking.ensure_version(client, "unet", model, {"git.commit": "abc"})
    again, made_again = tracking.ensure_version(client, "unet", model, {"git.commit": "def"})
    assert (made, made_again) == (True, False)
    assert first == again
    assert versions(client) == [first.number]
    assert first.weights_sha256 == weights_hash(model)
    assert first.tags["git.commit"] == "abc"


def test_other_weights_are_another_version(client, model: Path, write_model_dir) -> None:
    first, _ = tracking.ensure_version(client, "unet", model, {})
    write_model_dir(Path("other"), inverted=True)
    second, made = tracking.ensure_version(client, "unet", Path("other"), {})
    assert made
    assert second.number != first.number
    assert tracking.find_version(client, "unet", first.weights_sha256) == first
    assert tracking.find_version(client, "unet", second.weights_sha256) == second


def test_a_version_is_found_by_its_hash_in_its_own_model_only(client, model: Path) -> None:
    version, _ = tracking.ensure_version(client, "unet", model, {})
    assert tracking.find_version(client, "unet", version.weights_sha256) == version
    assert tracking.find_version(client, "unet", "0" * 64) is None
    assert tracking.find_version(client, "other", version.weights_sha256) is None


def test_an_alias_names_the_version_it_was_set_to(client, model: Path, write_model_dir) -> None:
    first, _ = tracking.ensure_version(client, "unet", model, {})
    write_model_dir(Path("other"), inverted=True)
    second, _ = tracking.ensure_version(client, "unet", Path("other"), {})
    for version in (first, second):
        tracking.set_alias(client, version, tracking.CHAMPION)
        assert tracking.version_by_alias(client, "unet", tracking.CHAMPION) == version


def test_without_model_or_alias_there_is_no_version(client, model: Path) -> None:
    assert tracking.version_by_alias(client, "unet", tracking.CHAMPION) is None
    tracking.ensure_version(client, "unet", model, {})
    assert tracking.version_by_alias(client, "unet", tracking.CHAMPION) is None


def test_tags_are_added_to_a_version(client, model: Path) -> None:
    version, _ = tracking.ensure_version(client, "unet", model, {"git.commit": "abc"})
    tracking.set_version_tags(client, version, {"gate.decision": "promoted"})
    tags = tracking.find_version(client, "unet", version.weights_sha256).tags
    assert (tags["gate.decision"], tags["git.commit"]) == ("promoted", "abc")


def test_a_model_comes_back_with_the_weights_it_was_registered_with(client, model: Path, tmp_path: Path) -> None:
    version, _ = tracking.ensure_version(client, "unet", model, {})
    tracking.set_alias(client, version, tracking.CHAMPION)
    for number, address in enumerate(("models:/unet@champion", f"models:/unet/{version.number}")):
        directory = tracking.fetch_model(address, tmp_path / f"download {number}")
        assert weights_hash(directory) == weights_hash(model)
        read_model(directory)


def test_a_missing_champion_is_named_with_what_to_do(client, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"^no such model: models:/unet@champion: .*Run `unet promote` first\.$"):
        tracking.fetch_model("models:/unet@champion", tmp_path / "download")


@pytest.mark.parametrize("address", ["models:/unet@challenger", "models:/unet/7", "models:/other/1", "no-such-folder"])
def test_a_missing_model_is_named(client, model: Path, tmp_path: Path, address: str) -> None:
    tracking.ensure_version(client, "unet", model, {})
    with pytest.raises(RegistryError) as caught:
        tracking.fetch_model(address, tmp_path / "download")
    assert str(caught.value).startswith(f"no such model: {address}: ")
    assert "\n" not in str(caught.value)


def test_a_model_of_another_project_is_refused(client, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "model.pkl").write_bytes(b"")
    run = client.create_run(client.create_experiment("foreign"))
    client.log_artifacts(run.info.run_id, str(tmp_path / "foreign"), "foreign")
    with pytest.raises(RegistryError, match=r"^not a model of this project: .*: 0 weights files"):
        tracking.fetch_model(f"runs:/{run.info.run_id}/foreign", tmp_path / "download")


@pytest.mark.parametrize(
    ("class_map", "shape"),
    [
        (ClassMap(kind="multiclass", classes={"background": 0, "cell": 255}), (2, 6, 9)),
        (ClassMap(kind="multilabel", classes={"ring": 255, "plus": 255, "mesh": 255}), (2, 6, 9, 3)),
    ],
    ids=["multiclass", "multilabel"],
)
def test_plain_mlflow_predicts_a_batch_of_bytes(
    client, tree, write_model_dir, class_map: ClassMap, shape: tuple[int, ...]
) -> None:
    write_model_dir(MODEL, class_map, channels=3)
    version, _ = tracking.ensure_version(client, "unet", MODEL, {})
    loaded = mlflow.pyfunc.load_model(f"models:/unet/{version.number}")
    images = np.zeros((2, 6, 9, 3), dtype=np.uint8)
    images[:, 2:5, 3:7] = 255
    masks = loaded.predict(images)
    assert masks.dtype == np.uint8
    assert masks.shape == shape
    # The model finds what is bright.
    bright = images[..., 0] == 255
    assert (masks == (bright if len(shape) == 3 else bright[..., None])).all()
    with pytest.raises(mlflow.exceptions.MlflowException, match=r"float|uint8"):
        loaded.predict(images.astype(np.float64))


def test_a_model_of_deep_images_takes_sixteen_bits(client, tree, write_model_dir) -> None:
    write_model_dir(MODEL, images=ImageConfig(channels=1, bits=16, value_range=[0, 4095]))
    version, _ = tracking.ensure_version(client, "unet", MODEL, {})
    loaded = mlflow.pyfunc.load_model(f"models:/unet/{version.number}")
    images = np.zeros((1, 6, 9, 1), dtype=np.uint16)
    images[:, 2:5, 3:7] = 65535
    assert (loaded.predict(images) == (images[..., 0] > 0)).all()


def test_what_is_registered_holds_no_pickle_and_its_own_source(client, model: Path, tree) -> None:
    tracking.ensure_version(client, "unet", model, {})
    files = [path for path in (tree.root / "mlruns").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"model.safetensors", "model.json", "serving.py", "inference.py"} <= names
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib")]
    # No pickle under another name either: protocols 2 to 5 begin so.
    assert not [path for path in files if path.read_bytes()[:1] == b"\x80" and path.read_bytes()[1:2] in b"\2\3\4\5"]


def test_a_version_that_was_deleted_is_made_anew_from_the_working_tree(client, model: Path) -> None:
    first, _ = tracking.ensure_version(client, "unet", model, {})
    receipt = Receipt(model="unet", weights_sha256=first.weights_sha256)
    assert registered_version(client, receipt, model) == first
    client.delete_model_version("unet", first.number)
    assert tracking.find_version(client, "unet", first.weights_sha256) is None
    second = registered_version(client, receipt, model)
    assert second.number != first.number
    assert second.weights_sha256 == first.weights_sha256
    assert versions(client) == [second.number]
    assert tracking.version_by_alias(client, "unet", tracking.CHALLENGER) == second


def test_a_version_made_anew_keeps_its_lineage(client, model: Path) -> None:
    lineage = {"git.commit": "abc", "data.index_sha256": "def"}
    TrainingRun(client, training="abc", params={}).finish(model, lineage)
    first, _ = tracking.ensure_version(client, "unet", model, lineage)
    client.delete_model_version("unet", first.number)
    second = registered_version(client, Receipt(model="unet", weights_sha256=first.weights_sha256), model)
    assert second.run_id == first.run_id
    assert {key: second.tags.get(key) for key in lineage} == lineage


def test_another_registry_gets_the_version_too(client, model: Path, tree, empty_store: Path) -> None:
    first, _ = tracking.ensure_version(client, "unet", model, {})
    (tree.root / "other.db").write_bytes(empty_store.read_bytes())
    other = tracking.connect(f"sqlite:///{tree.root / 'other.db'}")
    receipt = Receipt(model="unet", weights_sha256=first.weights_sha256)
    assert registered_version(other, receipt, model).weights_sha256 == first.weights_sha256


def test_a_receipt_without_version_and_with_other_weights_is_refused(client, model: Path) -> None:
    receipt = Receipt(model="unet", weights_sha256="0" * 64)
    with pytest.raises(RegistryError) as caught:
        registered_version(client, receipt, model)
    assert str(caught.value) == (
        "the registry lacks the model of the receipt (000000000000) and models/final holds other weights. "
        "Run `dvc checkout` or `dvc repro`."
    )


def test_a_server_that_is_away_is_named_with_what_to_do() -> None:
    with pytest.raises(RegistryError) as caught:
        tracking.connect("http://user:secret@127.0.0.1:9/path")
    text = str(caught.value)
    assert text.startswith("tracking server can't be reached: http://127.0.0.1:9: ")
    assert text.endswith("Start it, correct MLFLOW_TRACKING_URI, or unset it to use the working tree's own store.")
    assert "secret" not in text


@pytest.mark.parametrize("uri", ["http://u:secret@localhost:five", "ftp://127.0.0.1/store", "mlflow.db", "http://"])
def test_an_address_that_cannot_work_is_named(tree, uri: str) -> None:
    with pytest.raises(RegistryError, match="MLFLOW_TRACKING_URI") as caught:
        tracking.connect(uri)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_mlflow_is_named_without_the_password(tree) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # Answers 501 to everything.
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(RegistryError) as caught:
            tracking.connect(f"http://user:secret@127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert f"127.0.0.1:{server.server_port}" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_store_is_named(tree) -> None:
    (tree.root / "mlflow.db").write_bytes(b"no database, but longer than sixteen bytes")
    with pytest.raises(RegistryError, match=r"mlflow\.db"):
        tracking.connect(f"sqlite:///{tree.root / 'mlflow.db'}")


def test_registering_takes_the_model_that_the_training_logged(client, model: Path) -> None:
    run = TrainingRun(client, training="abc", params={})
    run.finish(model, {})
    version, made = tracking.ensure_version(client, "unet", model, {})
    assert made
    assert version.run_id == run.run_id
    assert len(client.search_logged_models([client.get_run(run.run_id).info.experiment_id])) == 1


def test_scores_are_added_to_a_run_that_has_ended(client, model: Path, tree) -> None:
    version, _ = tracking.ensure_version(client, "unet", model, {})
    (tree.root / "scores.json").write_text("{}", encoding="utf-8")
    tracking.log_to_run(client, version.run_id, metrics={"test_dice": 0.9}, files=[Path("scores.json")])
    assert client.get_run(version.run_id).data.metrics["test_dice"] == 0.9
    assert [entry.path for entry in client.list_artifacts(version.run_id, "evaluation")] == ["evaluation/scores.json"]
