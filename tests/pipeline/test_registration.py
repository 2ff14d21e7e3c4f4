"""Against real SQLite stores; nothing of MLflow is replaced."""

from pathlib import Path

import mlflow
import numpy as np
import pytest

from pipeline import tracking
from pipeline.registration import ensure_version
from unet_core.checkpoint import model_hash, weights_hash
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
    first, made = ensure_version(client, "unet", model)
    again, made_again = ensure_version(client, "unet", model)
    assert (made, made_again) == (True, False)
    assert first == again
    assert versions(client) == [first.number]
    assert (first.weights_sha256, first.model_sha256) == (weights_hash(model), model_hash(model))


def test_other_weights_are_another_version(client, model: Path, write_model_dir) -> None:
    first, _ = ensure_version(client, "unet", model)
    write_model_dir(Path("other"), inverted=True)
    second, made = ensure_version(client, "unet", Path("other"))
    assert made
    assert second.number != first.number
    assert tracking.find_version(client, "unet", first.model_sha256) == first
    assert tracking.find_version(client, "unet", second.model_sha256) == second


def test_the_version_brings_an_example_that_the_model_takes(client, model: Path) -> None:
    version, _ = ensure_version(client, "unet", model)
    loaded = mlflow.pyfunc.load_model(f"models:/unet/{version.number}")
    masks = loaded.predict(loaded.input_example)
    # Its bright disc is what the model finds.
    assert 100 < masks.sum() < 300
    assert loaded.metadata.saved_input_example_info["artifact_path"] == "input_example.json"


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
    version, _ = ensure_version(client, "unet", MODEL)
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
    version, _ = ensure_version(client, "unet", MODEL)
    loaded = mlflow.pyfunc.load_model(f"models:/unet/{version.number}")
    images = np.zeros((1, 6, 9, 1), dtype=np.uint16)
    images[:, 2:5, 3:7] = 65535
    assert (loaded.predict(images) == (images[..., 0] > 0)).all()


def test_what_is_registered_holds_no_pickle_and_its_own_source(client, model: Path, tree) -> None:
    ensure_version(client, "unet", model)
    files = [path for path in (tree.root / "mlruns").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"model.safetensors", "model.json", "serving.py", "inference.py"} <= names
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib")]
    # No pickle under another name either: protocols 2 to 5 begin so.
    assert not [path for path in files if path.read_bytes()[:1] == b"\x80" and path.read_bytes()[1:2] in b"\2\3\4\5"]
