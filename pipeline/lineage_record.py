"""The lineage of a version: one JSON file with its run, and the part that one searches by as tags of the version.

What decided the training was recorded with it (identity.py). Where the registry does not have that run, since the model
was trained against another server, the working tree of the registration stands in, and the record says so.
"""

import gzip
import hashlib
import json
import logging
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import tracking
from pipeline.catalog import read_catalog
from pipeline.lineage import Source, data_state, source_state
from pipeline.params import RECIPE, keep_stages, read_sections
from pipeline.tracking import WORKERS_TAG
from unet_core.errors import RegistryError
from unet_core.splits import Split

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
RECORD_NAME = "lineage.json.gz"
#: Set last: a version with this tag has its record.
RECORD_TAG = "lineage.record_sha256"
#: Of a record's text: a sample takes some hundred, the patch of a tree perhaps millions.
MAX_BYTES = 2**30
#: Tag of versions whose training began with the weights of a file.
INITIAL_WEIGHTS_TAG = "recipe.initial_weights_sha256"
#: As identity.py writes it; read as plain JSON, since its module brings the trainer along.
IDENTITY_NAME = "identity.json"
#: What a record that is damaged, or that others wrote, ends in.
UNREADABLE = (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, AttributeError, RecursionError)
#: What a lineage takes from there.
OF_IDENTITY = ("source", "recipe", "processor", "versions", "scores")
#: The stages that lead to a model.
TRAINING_STAGES = ("ingest", "validate", "split", "shard", "train")


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where a version comes from."""

    model_sha256: str
    weights_sha256: str
    run_id: str
    recorded_at: str
    """`training`, or `registration`: then processor, versions and scores are unknown."""
    source: Source
    recipe: str
    """Text of params.yaml."""
    lock: str | None
    """Text of dvc.lock, up to the stage that trained the model."""
    index_sha256: str
    test_set_sha256: str
    """Over keys, images and masks of the test split."""
    processor: str
    versions: Mapping[str, str]
    workers: str
    """How many trained, from which step on; empty where that is unknown."""
    scores: Mapping[str, Any]
    samples: Mapping[str, Mapping[str, tuple[str, str]]]
    """Split -> key -> first digits of the hashes of image and mask."""

    def tags(self) -> dict[str, str]:
        """What one searches by; each fits into any registry."""
        patch = self.source.patch.encode("utf-8", "surrogateescape")
        return {
            "git.commit": self.source.commit,
            "git.patch_sha256": hashlib.sha256(patch).hexdigest() if patch else "",
            "data.index_sha256": self.index_sha256,
            "data.test_set_sha256": self.test_set_sha256,
            "recipe.sha256": _sha256(self.recipe),
            "recipe.seed": str(recipe_sections(self.recipe).get("train", {}).get("seed", "")),
            INITIAL_WEIGHTS_TAG: _initial_weights(self.recipe),
            "lock.sha256": _sha256(self.lock) if self.lock else "",
            "identity.processor": self.processor,
            "identity.versions": json.dumps(dict(self.versions), sort_keys=True),
            "lineage.recorded_at": self.recorded_at,
        }


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where the stages left what the record needs."""

    root: Path
    shards: Path
    accepted: Path
    splits: Mapping[str, Split | None]


def record_lineage(client: tracking.Client, version: tracking.Version, inputs: Inputs) -> None:
    """Write the record of a version, unless it has one."""
    if RECORD_TAG in version.tags or version.run_id is None:
        return
    with tempfile.TemporaryDirectory() as scratch:
        found = _read_identity(client, version.run_id, Path(scratch))
        workers = tracking.run_tags(client, version.run_id).get(WORKERS_TAG, "")
        lineage = _lineage(version, inputs, found, workers=workers)
        path = Path(scratch) / RECORD_NAME
        body = json.dumps({"format": FORMAT_VERSION, **asdict(lineage)}).encode("ascii")
        path.write_bytes(gzip.compress(body, mtime=0))
        tracking.log_run_file(client, version.run_id, path)
    tracking.set_version_tags(client, version, _all_tags(lineage, body))


def restore_lineage(client: tracking.Client, version: tracking.Version) -> None:
    """Give a version that was made anew the record of its model that still lies with its run, if there is one."""
    if version.run_id is None or RECORD_NAME not in tracking.list_run_files(client, version.run_id):
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = tracking.fetch_run_file(client, version.run_id, RECORD_NAME, Path(scratch))
        try:
            text = _unpack(path)
            lineage = _parse(text)
            if lineage.model_sha256 != version.model_sha256:
                raise ValueError("it is another model's")
        except UNREADABLE as error:
            log.warning("version %s has no lineage: its run's %s can't be read: %s", version.number, RECORD_NAME, error)
            return
    tracking.set_version_tags(client, version, _all_tags(lineage, text))


def read_lineage(client: tracking.Client, version: tracking.Version) -> Lineage:
    """The record of a version; RegistryError where it has none, or another than it was registered with."""
    name = f"{version.name} version {version.number}"
    if RECORD_TAG not in version.tags or version.run_id is None:
        raise RegistryError(
            f"no lineage was recorded of {name}: it was registered by an older version of the project, or anew from a "
            "receipt. Run `dvc repro -f -s register` where it was trained."
        )
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = tracking.fetch_run_file(client, version.run_id, RECORD_NAME, Path(scratch))
        except RegistryError as error:
            raise RegistryError(
                f"the lineage of {name} was recorded, and its file can't be had: {RECORD_NAME} of run "
                f"{version.run_id}. Bring MLflow's artifacts back."
            ) from error
        try:
            text = _unpack(path)
            if hashlib.sha256(text).hexdigest() != version.tags[RECORD_TAG]:
                raise ValueError("it has changed since it was recorded")
            return _parse(text)
        except UNREADABLE as error:
            raise RegistryError(f"the lineage of {name} can't be read: {RECORD_NAME}: {error}.") from error


def _unpack(path: Path) -> bytes:
    """The text of a record; ValueError where it is larger than any, before it takes the memory.

    MLflow tells an object store that it is gzip by its ending, and a download through its server comes unpacked.
    """
    with path.open("rb") as stream:
        is_unpacked = stream.read(1) == b"{"
    with path.open("rb") if is_unpacked else gzip.open(path) as stream:
        text = stream.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise ValueError(f"it holds more than {MAX_BYTES:,} bytes")
    return text


def _parse(text: bytes) -> Lineage:
    body = json.loads(text)
    if (number := body.pop("format")) != FORMAT_VERSION:
        raise ValueError(f"format {number}, this version reads {FORMAT_VERSION}")
    return Lineage(**{**body, "source": Source(**body["source"])})


def _all_tags(lineage: Lineage, text: bytes) -> dict[str, str]:
    return {**lineage.tags(), RECORD_TAG: hashlib.sha256(text).hexdigest()}


def _read_identity(client: tracking.Client, run_id: str, scratch: Path) -> dict[str, Any] | None:
    """What the training recorded of itself; None where this registry does not have the training, or it is damaged."""
    if IDENTITY_NAME not in tracking.list_run_files(client, run_id):
        return None
    path = tracking.fetch_run_file(client, run_id, IDENTITY_NAME, scratch)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
        Source(**found["source"])
        return {name: found[name] for name in OF_IDENTITY}
    except UNREADABLE as error:
        log.warning("lineage: the working tree stands in: %s of run %s can't be read: %s", path.name, run_id, error)
        return None


def _lineage(version: tracking.Version, inputs: Inputs, identity: Mapping[str, Any] | None, *, workers: str) -> Lineage:
    samples = _samples(inputs)
    here: dict[str, Any] = {
        "source": asdict(source_state(inputs.root)),
        "recipe": (inputs.root / RECIPE).read_text(encoding="utf-8"),
        "processor": "",
        "versions": {},
        "scores": {},
    }
    told = here if identity is None else identity
    return Lineage(
        model_sha256=version.model_sha256,
        weights_sha256=version.weights_sha256,
        run_id=version.run_id or "",
        recorded_at="registration" if identity is None else "training",
        source=Source(**told["source"]),
        **{name: told[name] for name in OF_IDENTITY if name != "source"},
        lock=_training_lock(inputs.root / "dvc.lock"),
        index_sha256=data_state(inputs.shards)["data.index_sha256"],
        test_set_sha256=_sha256(json.dumps(samples["test"], sort_keys=True)),
        workers=workers,
        samples=samples,
    )


def _training_lock(path: Path) -> str | None:
    """Of the lock as it is now: when the training began, it still spoke of the model before."""
    if not path.exists():
        return None
    return keep_stages(path.read_text(encoding="utf-8"), TRAINING_STAGES)


def _samples(inputs: Inputs) -> dict[str, dict[str, tuple[str, str]]]:
    """Sixteen digits tell two files apart, and the record of a large data set stays small."""
    found: dict[str, dict[str, tuple[str, str]]] = {"train": {}, "val": {}, "test": {}}
    for row in read_catalog(inputs.accepted):
        split = inputs.splits.get(row.key)
        if split is not None:
            found[split][row.key] = (row.image_sha256[:16], row.mask_sha256[:16])
    return found


def began_with(client: tracking.Client, version: tracking.Version) -> str:
    """sha256 of the file of weights with which the training of a version began; empty where with random ones.

    RegistryError where its record must tell, and can't be read.
    """
    if INITIAL_WEIGHTS_TAG in version.tags:
        return version.tags[INITIAL_WEIGHTS_TAG]
    # Registered by an earlier version of the project.
    return _initial_weights(read_lineage(client, version).recipe) if RECORD_TAG in version.tags else ""


def _initial_weights(recipe: str) -> str:
    return str((recipe_sections(recipe).get("train", {}).get("initial_weights") or {}).get("sha256", ""))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def recipe_sections(text: str) -> dict[str, Any]:
    """The sections of a recorded recipe."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / RECIPE
        path.write_text(text, encoding="utf-8")
        return read_sections(path)
