"""Models and training states <-> directories: safetensors and JSON, strict, no pickle.

model directory        model.safetensors  model.json
checkpoint directory   the same (best on validation so far), and
                       last.safetensors  train_state.safetensors  curve.safetensors  train_state.json

A model directory appears whole by a rename. A checkpoint counts once its train_state.json is there, which is written
last: an object store, to which checkpoints are copied, has no rename.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unet_core.encoders import build_network
from unet_core.errors import ModelError, RecipeError, StorageError, TrainingError
from unet_core.hashing import hash_file
from unet_core.loss_scale import LossScale
from unet_core.model import ModelConfig, ModelSpec, Network
from unet_core.samples import ClassMap, ImageConfig
from unet_core.typed import check_types

FORMAT_VERSION = 2
#: Models of version 1 say how many channels their images have, and nothing else of them; all had 8 bits.
READABLE_VERSIONS = (1, 2)
AVERAGE_NAME = "averaged.safetensors"
WEIGHTS_NAME = "model.safetensors"
SPEC_NAME = "model.json"
CURVE_NAME = "curve.safetensors"
#: The file that makes a checkpoint: names and hashes of the others.
MANIFEST_NAME = "train_state.json"


def write_model(directory: Path, spec: ModelSpec, state: Mapping[str, Tensor]) -> None:
    """Write a model directory: it appears complete or not at all, and replaces an older one."""
    partial = _new_partial(directory)
    _write_model_files(partial, spec, state)
    _put_in_place(partial, directory)


def read_spec(directory: Path) -> ModelSpec:
    """Read what network a model directory holds."""
    body = _read_json(directory / SPEC_NAME)
    _check_format(body, directory / SPEC_NAME)
    try:
        images = body["images"] if body["format"] > 1 else {"channels": body["channels"]}
        own = {name: body[name] for name in ("mean", "deviation", "precision")}
        check_types(ModelConfig, body["config"], "config")
        check_types(ImageConfig, images, "images")
        check_types(ClassMap, body["class_map"], "class_map")
        check_types(ModelSpec, own, "model")
        return ModelSpec(
            config=ModelConfig(**body["config"]),
            images=ImageConfig(**images),
            class_map=ClassMap(**body["class_map"]),
            mean=tuple(own["mean"]),
            deviation=tuple(own["deviation"]),
            precision=own["precision"],
        )
    except (KeyError, TypeError, AttributeError, RecipeError) as error:
        raise ModelError(f"model description is damaged: {directory / SPEC_NAME}: {str(error).rstrip('.')}.") from error


def read_model(directory: Path) -> tuple[Network, ModelSpec]:
    """Build the network of a model directory with its weights, ready to predict.

    ModelError before any memory is taken, where the description asks for another network than the weights are of: who
    wrote it may be a stranger.
    """
    spec = read_spec(directory)
    _check_layout(spec, directory / WEIGHTS_NAME)
    model = build_network(spec)
    model.load_state_dict(read_tensors(directory / WEIGHTS_NAME))
    return model.eval(), spec


def _check_layout(spec: ModelSpec, path: Path) -> None:
    """ModelError where the network's tensors, laid out without memory, are not those in the header of the weights."""
    found = _read_shapes(path)
    config = spec.config
    # The deepest level has width * 2**depth channels, and a number at least for each: no need to lay out more levels.
    if config.depth > path.stat().st_size.bit_length():
        raise ModelError(f"weights do not fit the network: {path}: they are too few for depth {config.depth}.")
    try:
        with torch.device("meta"):
            wanted = {name: tuple(tensor.shape) for name, tensor in build_network(spec).state_dict().items()}
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:  # such as larger than any tensor
        text = str(error).splitlines()[0]
        raise ModelError(f"weights do not fit the network: {path}: it can't be laid out: {text}") from error
    odd = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if odd:
        there, asked = (shapes.get(odd[0], "nothing") for shapes in (found, wanted))
        raise ModelError(
            f"weights do not fit the network: {path}: {odd[0]}: the file has {there}, {SPEC_NAME} asks for {asked} "
            f"({len(odd)} tensors differ). Get both from where the model was trained."
        )


def weights_hash(directory: Path) -> str:
    """sha256 of the weights of a model directory: what a repeated training is compared by."""
    return hash_file(directory / WEIGHTS_NAME)


def model_hash(directory: Path) -> str:
    """sha256 of weights and description: the name of the model. Equal weights may mean other classes."""
    hashes = [hash_file(directory / name) for name in (WEIGHTS_NAME, SPEC_NAME)]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where training stands: between two steps."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    """Steps since the start of training."""


@dataclass(frozen=True, kw_only=True)
class ValidationRecord:
    """Scores of the validation split at some time of the training."""

    step: int
    """The last step before."""
    epoch: int
    """Epochs that were done."""
    loss: float
    dice: float | None
    class_dice: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a training has told since its start."""

    losses: Sequence[float] = ()
    """Of each step."""
    learning_rates: Sequence[float] = ()
    """Of each step."""
    validations: Sequence[ValidationRecord] = ()


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything beside the network that decides how training goes on."""

    position: Position
    best_score: float | None
    """Validation score (larger is better) of the best weights so far."""
    best_weights: Mapping[str, Tensor]
    last_weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    """The optimizer's own state_dict."""
    averaged_weights: Mapping[str, Tensor] | None = None
    """Their moving average, where the recipe asks for one."""
    validations_since_best: int = 0
    num_decays: int = 0
    """How often a plateau has lowered the learning rate."""
    loss_scale: LossScale | None = None
    """In float16."""
    scores: Scores = Scores()


def write_checkpoint(directory: Path, spec: ModelSpec, state: TrainState, made_by: Mapping[str, Any]) -> None:
    """Write a checkpoint to a new directory. `made_by` is what decides the training (JSON values by name)."""
    directory.mkdir(parents=True)
    _write_model_files(directory, spec, state.best_weights)
    _save(_storable(state.last_weights), directory / "last.safetensors")
    if state.averaged_weights is not None:
        _save(_storable(state.averaged_weights), directory / AVERAGE_NAME)
    tensors, plain = _split_optimizer(state.optimizer)
    _save(tensors, directory / "train_state.safetensors")
    # 64 bits, as they were told: a JSON of a million steps would take thrice the space.
    curve = {"losses": state.scores.losses, "learning_rates": state.scores.learning_rates}
    _save({name: torch.tensor(values, dtype=torch.float64) for name, values in curve.items()}, directory / CURVE_NAME)
    about = {
        "format": FORMAT_VERSION,
        "made_by": dict(made_by),
        "position": asdict(state.position),
        "best_score": state.best_score,
        "validations_since_best": state.validations_since_best,
        "num_decays": state.num_decays,
        "loss_scale": None if state.loss_scale is None else asdict(state.loss_scale),
        "validations": [asdict(record) for record in state.scores.validations],
        "optimizer": plain,
        "sha256": {path.name: hash_file(path) for path in sorted(directory.glob("*.safetensors"))},
    }
    _sync_files(directory)
    manifest = directory / f"{MANIFEST_NAME}.partial"
    _write_text(manifest, json.dumps(about, indent=1))
    _sync_files(directory)
    manifest.replace(directory / MANIFEST_NAME)


def read_checkpoint(directory: Path, made_by: Mapping[str, Any]) -> TrainState:
    """Read a checkpoint; ModelError if a file is missing or its hash is not the recorded one.

    TrainingError if something else made it: its training can't be gone on with.
    """
    about = _read_json(directory / MANIFEST_NAME)
    _check_format(about, directory / MANIFEST_NAME)
    missing = sorted(
        {"sha256", "made_by", "position", "best_score", "validations", "validations_since_best", "optimizer"}
        - set(about)
    )
    if missing:
        raise ModelError(f"checkpoint is damaged: {directory / MANIFEST_NAME}: no {missing[0]}.")
    _check_maker(about["made_by"], json.loads(json.dumps(dict(made_by))), directory)
    for name, expected in about["sha256"].items():
        if not (directory / name).is_file() or hash_file(directory / name) != expected:
            raise ModelError(f"checkpoint is damaged: {directory / name}.")
    return TrainState(
        position=Position(**about["position"]),
        best_score=about["best_score"],
        best_weights=read_tensors(directory / WEIGHTS_NAME),
        last_weights=read_tensors(directory / "last.safetensors"),
        optimizer=_join_optimizer(read_tensors(directory / "train_state.safetensors"), about["optimizer"]),
        averaged_weights=read_tensors(directory / AVERAGE_NAME) if AVERAGE_NAME in about["sha256"] else None,
        num_decays=about.get("num_decays", 0),
        loss_scale=LossScale(**about["loss_scale"]) if about.get("loss_scale") else None,
        validations_since_best=about["validations_since_best"],
        scores=Scores(
            **{name: tuple(values.tolist()) for name, values in read_tensors(directory / CURVE_NAME).items()},
            validations=tuple(ValidationRecord(**record) for record in about["validations"]),
        ),
    )


def _check_maker(there: Mapping[str, Any], here: Mapping[str, Any], directory: Path) -> None:
    differences = [
        f"{name}: {there.get(name, 'nothing')} there, {here.get(name, 'nothing')} here"
        for name in sorted({*there, *here})
        if there.get(name, ...) != here.get(name, ...)
    ]
    if differences:
        raise TrainingError(
            f"checkpoint was made by another recipe, data or code: {directory}: {'; '.join(differences)}. "
            "Go back to what made it, or remove it to start anew."
        )


def _write_model_files(directory: Path, spec: ModelSpec, state: Mapping[str, Tensor]) -> None:
    body = {"format": FORMAT_VERSION, **asdict(spec)}
    _save(_storable(state), directory / WEIGHTS_NAME)
    _write_text(directory / SPEC_NAME, json.dumps(body, indent=1))


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except (SafetensorError, OSError) as error:
        shutil.rmtree(path.parent, ignore_errors=True)
        what = "disk full while writing" if "No space left" in str(error) else "can't write"
        raise StorageError(f"{what} weights: {path}: {error}. Free some space and start again.") from error


def _storable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors: equal weights are equal bytes, whatever their layout in memory was."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {
        f"{number}.{name}": value.detach().cpu().contiguous()
        for number, values in state["state"].items()
        for name, value in values.items()
    }
    return tensors, {"param_groups": state["param_groups"]}


def _join_optimizer(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    return {"state": state, **plain}


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"weights can't be read: {path}: {error}. Restore the file, or train again.") from error


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a file's tensors, from its header alone."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no mapping
    except (SafetensorError, OSError) as error:
        raise ModelError(f"weights can't be read: {path}: {error}. Restore the file, or train again.") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"not a model directory: {path}: {error}.") from error


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")


def _check_format(body: Any, path: Path) -> None:
    found = body.get("format") if isinstance(body, dict) else None
    if found not in READABLE_VERSIONS:
        raise ModelError(f"another format: {path}: version {found}, this code reads {FORMAT_VERSION}.")


def _new_partial(directory: Path) -> Path:
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _sync_files(directory: Path) -> None:
    for path in directory.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def _put_in_place(partial: Path, directory: Path) -> None:
    _sync_files(partial)
    old = directory.with_name(directory.name + ".old.partial")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.replace(old)
    partial.replace(directory)
    shutil.rmtree(old, ignore_errors=True)


def clone_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of all weights and buffers that later training steps don't change."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
