"""Proof of identity: what decided the weights of a training, and their hash, as one JSON file with its run.

`begin` is called before training (what changes meanwhile did not make the model), `finish` after it.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import unet_core
from pipeline.lineage import Source, code_hash, data_state, source_state
from pipeline.params import RECIPE, read_sections
from unet_core.checkpoint import weights_hash
from unet_core.errors import RegistryError, TrainingError
from unet_core.hashing import hash_file
from unet_core.index import read_index
from unet_core.reader import ShardReader
from unet_core.train_config import TrainConfig

FORMAT_VERSION = 1
IDENTITY_NAME = "identity.json"
#: Sections of the recipe that decide a training, beside the index of shards.
SECTIONS = ("images", "model", "augment", "train")
#: Packages through which the numbers of a training go.
LIBRARIES = (
    "torch", "numpy", "albumentations", "opencv-python-headless", "webdataset", "imagecodecs", "pillow", "ray",
    "segmentation-models-pytorch",
)  # fmt: skip
#: Where the code lies that runs here: a host may have it installed, and no working tree.
CODE = Path(unet_core.__path__[0]).parent
#: Up to so many samples an epoch's plan is hashed as it is; above, by what decides it and by its first and last step.
MAX_HASHED_SAMPLES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Identity:
    """All that is recorded of a training."""

    weights_sha256: str
    plans_sha256: list[str]
    """One an epoch."""
    inputs: Mapping[str, str]
    """Name -> sha256: index, code, constraints, recipe.SECTION."""
    processor: str
    versions: Mapping[str, str]
    source: Source
    recipe: str
    """Text of params.yaml."""
    lock: str | None
    """Text of dvc.lock."""
    scores: Mapping[str, Any]
    """What the stage wrote as its metrics."""


def begin(root: Path, shards: Path) -> Identity:
    """What is known before training; there are no weights, plans and scores yet."""
    lock = root / "dvc.lock"
    return Identity(
        weights_sha256="",
        plans_sha256=[],
        inputs=input_hashes(root, shards),
        processor=processor(),
        versions=versions(),
        source=source_state(root),
        recipe=(root / RECIPE).read_text(encoding="utf-8"),
        lock=lock.read_text(encoding="utf-8") if lock.exists() else None,
        scores={},
    )


def finish(begun: Identity, path: Path, *, plans: list[str], model: Path, metrics: Path) -> Path:
    """Add the plans' hashes and what the training gave, and write the record."""
    scores = json.loads(metrics.read_text(encoding="utf-8"))
    whole = replace(begun, weights_sha256=weights_hash(model), plans_sha256=plans, scores=scores)
    # ASCII: a patch may hold bytes that are no UTF-8, which stand there as lone surrogates.
    path.write_text(json.dumps({"format": FORMAT_VERSION, **asdict(whole)}, indent=1) + "\n", encoding="ascii")
    return path


def read_identity(path: Path) -> Identity:
    """Read a record; RegistryError where it is damaged or of another format."""
    try:
        body = json.loads(path.read_text(encoding="ascii"))
        number = body.pop("format")
        if number != FORMAT_VERSION:
            raise RegistryError(f"record of identity has format {number}, this version reads {FORMAT_VERSION}: {path}.")
        return Identity(**{**body, "source": Source(**body["source"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RegistryError(f"record of identity is damaged: {path.name}: {error}. Train again.") from error


def tags(begun: Identity) -> dict[str, str]:
    """The part of the record that one searches by."""
    patch = begun.source.patch.encode("utf-8", "surrogateescape")
    return {
        "identity.processor": begun.processor,
        "identity.code_sha256": begun.inputs["code"],
        "git.patch_sha256": hashlib.sha256(patch).hexdigest() if patch else "",
    }


def input_hashes(root: Path, shards: Path) -> dict[str, str]:
    """Name -> sha256 of everything that decides the weights, apart from processor and versions."""
    constraints = root / "constraints.txt"
    sections = read_sections(root / RECIPE)
    return {
        "index": data_state(shards)["data.index_sha256"],
        "code": code_hash(root, ("unet_core", "pipeline")),
        "constraints": hash_file(constraints) if constraints.exists() else "",
        **{f"recipe.{name}": _hash_json(sections.get(name)) for name in SECTIONS},
    }


def say_other_pins(root: Path) -> str:
    """Which other version of a library is installed than constraints.txt pins; empty where none is.

    dvc.lock names that file, so results would be recorded as those of the pinned one.
    """
    path = root / "constraints.txt"
    lines = path.read_text(encoding="utf-8").split() if path.exists() else []
    pins = dict(line.split("==", 1) for line in lines if "==" in line)
    for name, version in versions().items():
        # What is built for one kind of device has it in its version.
        if version != "not installed" and pins.get(name, version).partition("+")[0] != version.partition("+")[0]:
            return (
                f"constraints.txt pins {name} {pins[name]}, installed is {version}, and dvc.lock will name the former"
            )
    return ""


def host_state() -> dict[str, str]:
    """What all hosts of a training must share beside recipe and index, also when it goes on later."""
    return {
        "code_sha256": code_hash(CODE),
        **{f"versions.{name}": version for name, version in versions().items()},
    }


def check_host(began: Mapping[str, Any]) -> None:
    """TrainingError where this host is in another state than `began`, that of the training's begin."""
    for name, value in host_state().items():
        if began[name] != value:
            raise TrainingError(
                f"{platform.node()} differs from how the training began: {name} was {began[name]}, is {value}. Bring "
                "back what it began with, or end it and run `dvc repro` for a new one."
            )


def plan_hashes(shards: Path, config: TrainConfig) -> list[str]:
    """sha256 of the sample sequence of each epoch, lane after lane, as little-endian 64-bit numbers."""
    index = read_index(shards)
    train = ShardReader(shards, index.of_split("train"))
    sizes = [shard.num_samples for shard in train.shards]
    hashes = []
    for epoch in range(config.epochs):
        about: dict[str, object] = {
            "seed": config.seed,
            "epoch": epoch,
            "lanes": config.lanes,
            "samples_per_lane": config.samples_per_lane,
            "block_shards": config.block_shards,
        }
        if config.oversample:
            about["oversample"] = dict(config.oversample)
        plan = config.plan(train, index.class_map, epoch=epoch)
        if sum(sizes) <= MAX_HASHED_SAMPLES:
            hashes.append(hashlib.sha256(plan.lanes.astype("<i8").tobytes()).hexdigest())
        else:
            ends = [plan.step(number).tolist() for number in (0, plan.num_steps - 1)]
            hashes.append(_hash_json([sizes, about, ends]))
    return hashes


def processor() -> str:
    """Kind of processor of this machine: on another one the same sums may be rounded otherwise."""
    if torch.cuda.is_available():
        return f"GPU {torch.cuda.get_device_name()}"
    return f"{platform.machine()} {_cpu_name()} {torch.backends.cpu.get_cpu_capability()}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries through which the numbers go."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
