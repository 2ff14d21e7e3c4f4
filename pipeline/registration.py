"""A model directory -> an MLflow model without pickle -> a version: part of the door to MLflow."""

import contextlib
import logging
import tempfile
import warnings
from pathlib import Path

import mlflow
import numpy as np
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from pipeline.fetched_model import fetch_files
from pipeline.model_page import describe_model, describe_use, describe_version, example_images, with_section
from pipeline.tracking import (
    MODEL_TAG,
    WEIGHTS_TAG,
    Client,
    Version,
    find_version,
    registry_errors,
)
from unet_core.checkpoint import model_hash, read_spec, weights_hash
from unet_core.errors import RegistryError

log = logging.getLogger(__name__)

#: Tag of runs: where their model lies.
URI_TAG = "unet.model_uri"
SERVING_CODE = Path(__file__).with_name("serving.py")
#: Named, not inferred: inferring runs the model in a new process.
REQUIREMENTS = ["mlflow", "torch", "safetensors", "numpy", "pillow", "tifffile", "imagecodecs", "webdataset"]


def ensure_version(client: Client, name: str, model_dir: Path) -> tuple[Version, bool]:
    """The version of this model directory, made only if there is none; and whether it was made."""
    model = model_hash(model_dir)
    old = find_version(client, name, model)
    if old is not None:
        return old, False
    with registry_errors("registering the model"):
        with contextlib.suppress(MlflowException):
            client.create_registered_model(name, description=describe_model(name))
        run_id, model_uri = _find_logged_model(client, model, model_dir)
        of_run, spec = client.get_run(run_id).data, read_spec(model_dir)
        lineage = {key: value for key, value in of_run.tags.items() if key.startswith(("git.", "data."))}
        tags = {**lineage, WEIGHTS_TAG: weights_hash(model_dir), MODEL_TAG: model}
        # A server takes a logged model as source only together with its id.
        model_id = model_uri.removeprefix("models:/")
        text = describe_version(spec, of_run.params, of_run.tags)
        made = client.create_model_version(
            name, source=model_uri, run_id=run_id, tags=tags, model_id=model_id, description=text
        )
    first = find_version(client, name, model)
    assert first is not None
    if first.number == str(made.version):
        put_section(client, first, "Use", describe_use(spec, f"models:/{name}/{first.number}"))
        return first, True
    with registry_errors("removing a version that another process made at the same time"):
        client.delete_model_version(name, str(made.version))
    return first, False


def put_section(client: Client, version: Version, title: str, body: str) -> None:
    """Put a section into the text that people read on the version's page; nothing is written where it stands there."""
    with registry_errors("describing a version"):
        old = client.get_model_version(version.name, version.number).description or ""
        new = with_section(old, title, body)
        if body not in new:
            log.warning(
                "no room for all of %r on the page of version %s: shorten what stands there", title, version.number
            )
        if new != old:
            client.update_model_version(version.name, version.number, new)


def _find_logged_model(client: Client, model: str, model_dir: Path) -> tuple[str, str]:
    """The training run that logged this model here, and where it lies; it is logged anew where no run has it whole.

    A run may have lost its files. The newest one stays the version's, since what it recorded is true all the same; a
    model that was trained against another server gets a run of its own.
    """
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`{MODEL_TAG}` = '{model}'")
    for run in runs:
        if _is_whole(client, run.data.tags[URI_TAG], model):
            return run.info.run_id, run.data.tags[URI_TAG]
    name = f"model {model[:8]} from the working tree"
    with mlflow.start_run(experiment_id=client.experiment_id(), run_name=name) as holder:
        run_id = runs[0].info.run_id if runs else holder.info.run_id
        return run_id, log_model(client, run_id, model_dir)


def _is_whole(client: Client, uri: str, model: str) -> bool:
    """Whether a logged model still has the files that it was logged with."""
    try:
        with registry_errors("looking for the model of a run"):
            # Files of a model without a version have no models:/ address.
            place = client.get_logged_model(uri.removeprefix("models:/")).artifact_location
        with tempfile.TemporaryDirectory() as scratch:
            found = model_hash(fetch_files(place, Path(scratch), uri))
    except RegistryError as error:
        log.warning("the model is logged anew: %s", error)
        return False
    if found != model:
        log.warning("the model is logged anew: files of %s have changed since", uri)
    return found == model


def log_model(client: Client, run_id: str, model_dir: Path) -> str:
    """Log the model with the active run as a pyfunc model from code: safetensors, JSON and source, no pickle.

    Tags of run `run_id`, which is the active one or that of the training, say where it lies.
    """
    # It asks for type hints in serving.py, which the signature makes needless. Caught and not filtered: MLflow sets
    # filters of its own inside, which come first.
    with warnings.catch_warnings(record=True) as caught:
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(SERVING_CODE),
            artifacts={"model": str(model_dir)},
            code_paths=[str(SERVING_CODE.parents[1] / "unet_core")],
            signature=_signature(model_dir),
            input_example=example_images(read_spec(model_dir)),
            pip_requirements=_requirements(model_dir),
        )
    for warning in caught:
        if "Add type hints to the `predict` method" not in str(warning.message):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    tags = {URI_TAG: info.model_uri, WEIGHTS_TAG: weights_hash(model_dir), MODEL_TAG: model_hash(model_dir)}
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    return str(info.model_uri)


def _requirements(model_dir: Path) -> list[str]:
    with_encoder = read_spec(model_dir).config.encoder is not None
    return [*REQUIREMENTS, "segmentation-models-pytorch"] if with_encoder else REQUIREMENTS


def _signature(model_dir: Path) -> ModelSignature:
    """Images (N, H, W, C) in; masks (N, H, W) out or, where classes overlap, (N, H, W, K)."""
    spec = read_spec(model_dir)
    shape_out = (-1, -1, -1) if spec.class_map.kind != "multilabel" else (-1, -1, -1, spec.class_map.num_classes)
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(f"uint{spec.images.bits}"), (-1, -1, -1, spec.channels), "images")]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), shape_out, "masks")]),
    )
