"""A registered model -> a model directory: two files, checked, and no code of the artifact. Part of the door to MLflow.

An artifact of MLflow is a program: its MLmodel names what a loader imports, and `code/` lies on the path. Nothing of
that is used here: of the artifact the weights (safetensors) and the description (JSON) are fetched, each by its name.
"""

import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from pipeline.public_text import public
from pipeline.tracking import (
    CHAMPION,
    MODEL_TAG,
    Client,
    Version,
    version_by_alias,
    version_by_number,
)
from unet_core.checkpoint import SPEC_NAME, WEIGHTS_NAME, model_hash
from unet_core.errors import RegistryError

ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>\d+))")
#: What MLflow's loader imports for a model from code: serving.py beside `code/`.
LOADER = {"loader_module": "mlflow.pyfunc.loaders.code_model", "code": "code"}


def find_model(client: Client, address: str) -> Version:
    """The version at `models:/unet@champion` or `models:/unet/3`; RegistryError where there is none."""
    parts = ADDRESS.fullmatch(address)
    if parts is None:
        raise RegistryError(
            f"not a model's address: {address}. Give models:/NAME@ALIAS, models:/NAME/VERSION, or a model directory."
        )
    if parts["alias"]:
        version = version_by_alias(client, parts["name"], parts["alias"])
    else:
        version = version_by_number(client, parts["name"], parts["number"])
    if version is None:
        hint = "Run `unet promote` first." if parts["alias"] == CHAMPION else "Look with `make ui`."
        raise RegistryError(f"no such model: {address}: the registry has no such version or alias. {hint}")
    return version


def fetch_model(version: Version, directory: Path) -> Path:
    """Download a version's model directory below `directory`.

    RegistryError where files are missing, are not what was registered, or the artifact is another kind of model.
    """
    name = f"{version.name} version {version.number}"
    model_dir = fetch_files(f"models:/{version.name}/{version.number}", directory, name)
    if not version.model_sha256:
        raise RegistryError(f"not a model of this project: {name} has no tag {MODEL_TAG}. Register it by `dvc repro`.")
    if (found := model_hash(model_dir)) != version.model_sha256:
        raise RegistryError(
            f"files of {name} have changed since it was registered: {found[:12]}, tagged {version.model_sha256[:12]}. "
            "Do not use it; delete the version and register the model again."
        )
    return model_dir


def fetch_files(root: str, directory: Path, name: str) -> Path:
    """Download weights and description of the artifact at `root`, whatever they are; `name` stands in errors."""
    place = _place(_download(f"{root}/MLmodel", directory, name), name)
    model_dir = directory / "model"
    model_dir.mkdir(parents=True)
    for file in (WEIGHTS_NAME, SPEC_NAME):
        shutil.move(_download(f"{root}/{place}/{file}", directory, name), model_dir / file)
    return model_dir


def _download(uri: str, directory: Path, name: str) -> Path:
    """A file of the artifact; MLflow gives no file from outside of the artifact, and neither do we."""
    try:
        local = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(directory)))
    except (MlflowException, OSError) as error:
        text = public(" ".join(str(error).split()).rstrip(". "))
        raise RegistryError(
            f"a file of {name} can't be fetched: {uri}: {text}. If it is gone, delete the version and run `unet "
            "promote` where the model lies, or `unet rollback`."
        ) from error
    if not local.resolve().is_relative_to(directory.resolve()) or not local.is_file() or local.is_symlink():
        raise RegistryError(f"not a file of {name}: {uri} leads to {local}. Do not use it; look who wrote it.")
    return local


def _place(mlmodel: Path, name: str) -> str:
    """Where the model directory lies in the artifact; RegistryError for another kind of model."""
    try:
        flavours: dict[str, Any] = Model.load(str(mlmodel)).flavors
        flavour = flavours["python_function"]
        place = PurePosixPath(flavour["artifacts"]["model"]["path"])
        told = {key: flavour.get(key) for key in LOADER} | {"flavours": sorted(flavours)}
    except Exception as error:  # whatever a stranger's file makes of MLflow's parser
        raise RegistryError(
            f"not a model of this project: {name}: MLmodel: {error!r}. Register one of this project."
        ) from error
    wanted = {**LOADER, "flavours": ["python_function"]}
    if told != wanted or PurePosixPath(str(flavour.get("model_code_path"))).name != "serving.py":
        raise RegistryError(
            f"not a model of this project: {name}: MLmodel names other code to load: {told}. Do not load it by MLflow."
        )
    if place.parts[:1] != ("artifacts",) or len(place.parts) != 2 or ".." in place.parts:
        raise RegistryError(f"a path out of the artifact: {name}: MLmodel: {place}. Do not use it.")
    return str(place)
