"""What comes back from a registry, and what is refused: with real artifacts in real stores."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import tracking
from pipeline.fetched_model import fetch_model, find_model
from pipeline.registration import ensure_version
from unet_core.checkpoint import model_hash, read_model, weights_hash
from unet_core.errors import ModelError, RegistryError, UnetError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]
MODEL = Path("models/final")


class Trap:
    """Says that it was unpickled by making a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("sprung"),)


@pytest.fixture
def version(client, tree, write_model_dir) -> tracking.Version:
    write_model_dir(MODEL)
    made, _ = ensure_version(client, "unet", MODEL)
    return made


def stored(name: str) -> Path:
    """A file of the one artifact in the store."""
    (path,) = (path for path in Path("mlruns").rglob(name))
    return path


def refused(version: tracking.Version) -> str:
    """Why the version is not loaded."""
    with pytest.raises(UnetError) as caught:
        read_model(fetch_model(version, Path("download")))
    assert not Path("sprung").exists()
    return str(caught.value)


def tagged_as_it_is(client, version: tracking.Version) -> tracking.Version:
    """As by somebody who may write tags too: the hash agrees with the poisoned files."""
    folder = stored("model.safetensors").parent
    tags = {tracking.MODEL_TAG: model_hash(folder), tracking.WEIGHTS_TAG: weights_hash(folder)}
    tracking.set_version_tags(client, version, tags)
    found = tracking.version_by_number(client, version.name, version.number)
    assert found is not None
    return found


def test_a_model_comes_back_as_it_was_registered_and_nothing_else_with_it(client, version, tmp_path: Path) -> None:
    tracking.set_alias(client, version, tracking.CHAMPION)
    for number, address in enumerate(("models:/unet@champion", f"models:/unet/{version.number}")):
        assert find_model(client, address) == version
        directory = fetch_model(version, tmp_path / f"download {number}")
        assert model_hash(directory) == model_hash(MODEL)
        assert sorted(path.name for path in directory.iterdir()) == ["model.json", "model.safetensors"]
        assert not list((tmp_path / f"download {number}").rglob("*.py"))
        read_model(directory)


def test_a_missing_champion_is_named_with_what_to_do(client) -> None:
    with pytest.raises(RegistryError) as caught:
        find_model(client, "models:/unet@champion")
    assert str(caught.value) == (
        "no such model: models:/unet@champion: the registry has no such version or alias. Run `unet promote` first."
    )


@pytest.mark.parametrize("address", ["models:/unet@challenger", "models:/unet/7", "models:/other/1"])
def test_a_missing_model_is_named(client, version, address: str) -> None:
    with pytest.raises(RegistryError, match=rf"^no such model: {address}: .* Look with `make ui`\.$"):
        find_model(client, address)


@pytest.mark.parametrize("address", ["no-such-folder", "models:/unet/1/../2", "runs:/abc/model", "models:/a/b/3"])
def test_what_is_no_address_is_named(client, address: str) -> None:
    with pytest.raises(RegistryError, match=r"^not a model's address: .* Give models:/NAME@ALIAS"):
        find_model(client, address)


def test_an_alias_that_points_to_a_missing_artifact_is_named(client, version) -> None:
    stored("model.safetensors").unlink()
    text = refused(version)
    assert text.startswith(
        "a file of unet version 1 can't be fetched: models:/unet/1/artifacts/final/model.safetensors"
    )
    assert text.endswith(
        "If it is gone, delete the version and run `unet promote` where the model lies, or `unet rollback`."
    )


def test_files_that_were_changed_are_refused(client, version, write_model_dir) -> None:
    write_model_dir(Path("other"), inverted=True)
    stored("model.safetensors").write_bytes(Path("other/model.safetensors").read_bytes())
    assert refused(version).startswith("files of unet version 1 have changed since it was registered: ")


def test_a_description_that_was_changed_is_refused(client, version) -> None:
    spec = json.loads(stored("model.json").read_text())
    spec["class_map"]["classes"] = {"background": 0, "tumour": 255}
    stored("model.json").write_text(json.dumps(spec))
    assert refused(version).startswith("files of unet version 1 have changed since it was registered: ")


def as_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"head.bias": Trap()}))


def as_torch_file(path: Path) -> None:
    torch.save({"head.bias": Trap()}, path)


def with_huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])


def with_header_of_huge_tensor(path: Path) -> None:
    header = json.dumps({"head.bias": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))


def of_another_shape(path: Path) -> None:
    state = load_file(path)
    save_file({**state, "head.bias": torch.zeros(77)}, path)


@pytest.mark.parametrize(
    "poison", [as_pickle, as_torch_file, with_huge_header, with_header_of_huge_tensor, of_another_shape]
)
@pytest.mark.parametrize("knows_tags", [False, True])
def test_poisoned_weights_are_refused_and_run_nothing(
    client, version, poison: Callable[[Path], None], knows_tags: bool
) -> None:
    poison(stored("model.safetensors"))
    if not knows_tags:
        assert refused(version).startswith("files of unet version 1 have changed since it was registered: ")
        return
    text = refused(tagged_as_it_is(client, version))
    if poison is of_another_shape:
        assert text.startswith("weights do not fit the network: ")
    else:
        assert text.startswith("weights can't be read: ")


@pytest.mark.parametrize("poison", [as_pickle, with_huge_header, of_another_shape])
def test_plain_mlflow_refuses_poisoned_weights_too(client, version, poison: Callable[[Path], None]) -> None:
    poison(stored("model.safetensors"))
    with pytest.raises(ModelError, match=r"^weights (can't be read|do not fit)"):
        mlflow.pyfunc.load_model("models:/unet/1")
    assert not Path("sprung").exists()


def test_a_link_out_of_the_artifact_is_refused(client, version) -> None:
    path = stored("model.safetensors")
    outside = Path("outside.safetensors").resolve()
    path.rename(outside)
    path.symlink_to(outside)
    text = refused(version)
    assert text.startswith("a file of unet version 1 can't be fetched: ")
    assert "outside the artifact directory" in text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mlflow.pyfunc.loaders.code_model", "mlflow.sklearn"),
        ("mlflow.pyfunc.loaders.code_model", "os"),
        ("    code: code\n", "    code: ../../elsewhere\n"),
        ("pipeline/serving.py", "pipeline/other.py"),
        ("flavors:\n", "flavors:\n  sklearn:\n    pickled_model: model.pkl\n"),
    ],
)
def test_an_mlmodel_that_names_other_code_is_refused(client, version, old: str, new: str) -> None:
    text = stored("MLmodel").read_text()
    assert old in text
    stored("MLmodel").write_text(text.replace(old, new))
    assert refused(version).startswith(
        "not a model of this project: unet version 1: MLmodel names other code to load: "
    )


@pytest.mark.parametrize("place", ["../../elsewhere", "/etc", "artifacts/../..", "artifacts", "artifacts/.."])
def test_a_path_out_of_the_artifact_is_refused(client, version, place: str) -> None:
    text = stored("MLmodel").read_text()
    stored("MLmodel").write_text(text.replace("path: artifacts/final", f"path: {place}"))
    assert refused(version) == f"a path out of the artifact: unet version 1: MLmodel: {place}. Do not use it."


@pytest.mark.parametrize("text", ["", "7", "{", "flavors: 7", "flavors: {}", "!!python/object/apply:os.getpid []"])
def test_an_mlmodel_that_is_none_is_refused(client, version, text: str) -> None:
    stored("MLmodel").write_text(text)
    assert refused(version).startswith("not a model of this project: unet version 1: MLmodel: ")


def test_a_model_of_another_project_is_refused(client, tree) -> None:
    class Doubles(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: list[str]) -> list[str]:
            return model_input * 2

    with mlflow.start_run():
        mlflow.pyfunc.log_model(name="m", python_model=Doubles(), registered_model_name="foreign")
    version = find_model(client, "models:/foreign/1")
    assert refused(version).startswith("not a model of this project: foreign version 1: MLmodel")
