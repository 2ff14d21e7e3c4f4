"""Runs, model versions and aliases: the door to MLflow."""

import contextlib
import logging
import os
import re
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# A server that is away is an error after seconds, not after minutes of silent retries.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from unet_core.errors import RegistryError

log = logging.getLogger(__name__)

CHAMPION, CHALLENGER = "champion", "challenger"
#: Tag of runs and versions: the hash of the weights is the model's name everywhere.
WEIGHTS_TAG = "unet.weights_sha256"
TRAINING_TAG = "unet.training"
MODEL_TAG = "unet.model_uri"
SERVING_CODE = Path(__file__).with_name("serving.py")


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version in the model registry."""

    name: str
    number: str
    run_id: str | None
    weights_sha256: str
    tags: Mapping[str, str]


class Client(MlflowClient):  # type: ignore[misc]
    """MLflow's client, and the experiment that our runs belong to."""

    def __init__(self, uri: str, experiment: str) -> None:
        super().__init__(uri)
        self.experiment = experiment
        # Beside the store's file: MLflow would choose the working directory, and a queued experiment's is deleted.
        database = uri.removeprefix("sqlite:///")
        self._artifacts = (Path(database).resolve().parent / "mlruns").as_uri() if database != uri else None

    def experiment_id(self) -> str:
        """The experiment's id; it is made if there is none."""
        found = self.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        return str(self.create_experiment(self.experiment, artifact_location=self._artifacts))


def connect(uri: str, experiment: str = "unet") -> Client:
    """A client of the tracking store; RegistryError within seconds where nothing answers."""
    # Without user and password, which stand before the last @.
    scheme, _, rest = uri.rpartition("@")[0].partition("://")
    shown = f"{scheme}://...@{uri.rpartition('@')[2]}" if rest else uri
    try:
        address = urlsplit(uri)
        port = address.port or (443 if address.scheme == "https" else 80)
    except ValueError as error:
        raise RegistryError(f"not an address: {shown}: {error}. Correct MLFLOW_TRACKING_URI.") from error
    if address.scheme in ("http", "https"):
        try:
            socket.create_connection((address.hostname or "", port), timeout=5).close()
        except OSError as error:
            shown = f"{address.scheme}://{address.hostname}:{port}"
            raise RegistryError(
                f"tracking server can't be reached: {shown}: {error}. Start it, correct MLFLOW_TRACKING_URI, "
                "or unset it to use the working tree's own store."
            ) from error
    try:
        mlflow.set_tracking_uri(uri)
        client = Client(uri, experiment)
        client.search_experiments(max_results=1)
    except Exception as error:  # SQLAlchemy's drivers raise errors of their own, each another
        text = str(error).splitlines()[0]
        raise RegistryError(f"not a tracking store: {shown}: {text}. Correct MLFLOW_TRACKING_URI.") from error
    return client


@contextlib.contextmanager
def registry_errors(doing: str) -> Iterator[None]:
    """Turn MLflow's errors into one sentence."""
    try:
        yield
    except MlflowException as error:
        text = str(error).splitlines()[0]
        raise RegistryError(f"MLflow refused: {doing}: {text}") from error


def log_model(client: Client, run_id: str, model_dir: Path) -> str:
    """Log the model with the active run as a pyfunc model from code: safetensors, JSON and source, no pickle."""
    # Here, since it brings torch along: `unet summary` needs none.
    from unet_core.checkpoint import read_spec, weights_hash

    spec = read_spec(model_dir)
    shape_out = (-1, -1, -1) if spec.class_map.kind != "multilabel" else (-1, -1, -1, spec.class_map.num_classes)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(f"uint{spec.images.bits}"), (-1, -1, -1, spec.channels), "images")]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), shape_out, "masks")]),
    )
    with warnings.catch_warnings():
        # It asks for type hints in serving.py, which the signature makes needless.
        warnings.filterwarnings("ignore", message=".*Add type hints to the `predict` method")
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(SERVING_CODE),
            artifacts={"model": str(model_dir)},
            code_paths=[str(SERVING_CODE.parents[1] / "unet_core")],
            signature=signature,
            # Named, not inferred: inferring runs the model in a new process.
            pip_requirements=[
                "mlflow",
                "torch",
                "safetensors",
                "numpy",
                "pillow",
                "tifffile",
                "imagecodecs",
                "webdataset",
            ],
        )
    client.log_batch(run_id, tags=[RunTag(MODEL_TAG, info.model_uri), RunTag(WEIGHTS_TAG, weights_hash(model_dir))])
    return str(info.model_uri)


def find_version(client: Client, name: str, weights_sha256: str) -> Version | None:
    """The version with these weights, or None."""
    found = versions_tagged(client, name, WEIGHTS_TAG, weights_sha256)
    return min(found, key=lambda version: int(version.number)) if found else None


def versions_tagged(client: Client, name: str, key: str, value: str) -> list[Version]:
    """All versions that carry a tag."""
    with registry_errors("searching the registry"):
        return [
            _version(found) for found in client.search_model_versions(f"name = '{name}' and tag.`{key}` = '{value}'")
        ]


def ensure_version(client: Client, name: str, model_dir: Path, tags: Mapping[str, str]) -> tuple[Version, bool]:
    """The version with the weights of `model_dir`, made only if there is none; and whether it was made."""
    from unet_core.checkpoint import weights_hash

    weights = weights_hash(model_dir)
    old = find_version(client, name, weights)
    if old is not None:
        return old, False
    with registry_errors("registering the model"):
        with contextlib.suppress(MlflowException):
            client.create_registered_model(name, description="U-Net; the alias champion names the one to use")
        run_id, model_uri = _find_logged_model(client, weights, model_dir)
        of_run = client.get_run(run_id).data.tags
        lineage = {key: value for key, value in of_run.items() if key.startswith(("git.", "data."))}
        made = client.create_model_version(
            name, source=model_uri, run_id=run_id, tags={**lineage, **tags, WEIGHTS_TAG: weights}
        )
    return _version(made), True


def _find_logged_model(client: Client, weights: str, model_dir: Path) -> tuple[str, str]:
    """The training run that logged these weights here, or a new one (the training ran against another server)."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`{WEIGHTS_TAG}` = '{weights}'", max_results=1)
    if runs:
        return runs[0].info.run_id, runs[0].data.tags[MODEL_TAG]
    with mlflow.start_run(
        experiment_id=client.experiment_id(), run_name=f"model {weights[:8]} from the working tree"
    ) as run:
        return run.info.run_id, log_model(client, run.info.run_id, model_dir)


def version_by_alias(client: Client, name: str, alias: str) -> Version | None:
    """The version that an alias names, or None where model or alias does not exist."""
    try:
        return _version(client.get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise RegistryError(f"MLflow refused: reading alias {alias}: {str(error).splitlines()[0]}") from error


def find_run(client: Client, name: str) -> str:
    """The training run that `name` means: a run's id, `models:/unet@champion`, `models:/unet/3` or `unet@champion`."""
    model = re.fullmatch(
        r"(?:models:/)?(?P<name>[^/@]+)@(?P<alias>[^/@]+)|models:/(?P<of>[^/@]+)/(?P<number>\d+)", name
    )
    hint = "Look with `make ui`."
    try:
        if model is None:
            return str(client.get_run(name).info.run_id)
        if model["alias"]:
            found = client.get_model_version_by_alias(model["name"], model["alias"])
        else:
            found = client.get_model_version(model["of"], model["number"])
    except MlflowException as error:
        text = str(error).splitlines()[0].rstrip(".")
        raise RegistryError(f"no such run or model: {name}: {text}. {hint}") from error
    if not found.run_id:
        raise RegistryError(f"model version without a run: {name}. {hint}")
    return str(found.run_id)


def fetch_run_file(client: Client, run_id: str, name: str, directory: Path) -> Path:
    """Download a file of a run; RegistryError where the run has none of this name."""
    try:
        return Path(client.download_artifacts(run_id, name, str(directory)))
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"the run has no {name}: {run_id}: it was not trained by this version of the project, or elsewhere. "
            "Name the training run itself, or train again."
        ) from error


def set_alias(client: Client, version: Version, alias: str) -> None:
    """Let an alias name this version."""
    with registry_errors(f"setting alias {alias}"):
        client.set_registered_model_alias(version.name, alias, version.number)


def set_version_tags(client: Client, version: Version, tags: Mapping[str, str]) -> None:
    """Add tags to a version."""
    with registry_errors("tagging a version"):
        for key, value in tags.items():
            client.set_model_version_tag(version.name, version.number, key, value)


def log_to_run(client: Client, run_id: str, *, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
    """Add scores and files to a run that has ended."""
    with registry_errors("logging scores"):
        client.log_batch(
            run_id, metrics=[Metric(name, value, int(time.time() * 1000), 0) for name, value in metrics.items()]
        )
        for path in files:
            client.log_artifact(run_id, str(path), "evaluation")


def fetch_model(model_uri: str, directory: Path) -> Path:
    """Download a model (`models:/unet@champion`, `models:/unet/3`) and give its model directory.

    Raises RegistryError where there is no such model or alias.
    """
    try:
        local = Path(mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=str(directory)))
    except (MlflowException, OSError) as error:
        hint = "Run `unet promote` first." if model_uri.endswith(f"@{CHAMPION}") else "Look with `make ui`."
        raise RegistryError(f"no such model: {model_uri}: {str(error).splitlines()[0].rstrip('.')}. {hint}") from error
    found = sorted(local.rglob("model.safetensors"))
    if len(found) != 1:
        raise RegistryError(f"not a model of this project: {model_uri}: {len(found)} weights files. Train it again.")
    return found[0].parent


def _version(entity: Any) -> Version:
    return Version(
        name=entity.name,
        number=str(entity.version),
        run_id=entity.run_id or None,
        weights_sha256=entity.tags.get(WEIGHTS_TAG, ""),
        tags=dict(entity.tags),
    )
