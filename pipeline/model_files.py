"""What a user names as a model -> its directory here: a directory, or an address in the registry."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline import tracking
from pipeline.fetched_model import fetch_model, find_model
from pipeline.placement import read_placement
from unet_core.checkpoint import SPEC_NAME, read_spec, weights_hash
from unet_core.hashing import hash_file


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A model directory, and the hashes of what lies there."""

    directory: Path
    weights_sha256: str
    description_sha256: str
    """Of model.json: classes and their values, how images are read."""


@contextmanager
def open_model_files(model: str) -> Iterator[ModelFiles]:
    """The model's files; a registered one lies, meanwhile, in the working tree, where all nodes of a cluster see it.

    Raises ModelError for a directory that is no model, RegistryError where the registry has no such model.
    """
    if Path(model).is_dir():
        yield _hashed(Path(model))
        return
    placement = read_placement()
    version = find_model(tracking.connect(placement.tracking_uri, placement.experiment), model)
    placement.state_dir.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=placement.state_dir) as scratch:
        yield _hashed(fetch_model(version, Path(scratch)))


def _hashed(directory: Path) -> ModelFiles:
    # Tells where it is no model.
    read_spec(directory)
    return ModelFiles(
        directory=directory,
        weights_sha256=weights_hash(directory),
        description_sha256=hash_file(directory / SPEC_NAME),
    )
