"""What recent images are compared with: traits of training images, computed once for a model and its shards."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.placement import Placement
from unet_core.index import ShardIndex, read_index
from unet_core.traits import Traits, parse_traits

FORMAT_VERSION = 1
#: A model's numbers take up to 20 MB, and each new champion has its own.
MAX_KEPT = 8


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Traits of training images."""

    training_sha256: str
    """Of what the training shards hold."""
    num_images: int
    """Of the training split; `images` may be a choice of them."""
    images: tuple[Traits, ...]
    mask_shares: Mapping[str, float | None]
    """Class -> share of the pixels of all training masks; None where no pixel has a class."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is kept."""

    num_images: int
    images: tuple[Traits, ...]


def find_reference(
    model: str, *, model_sha256: str, shards: Path, most: int, placement: Placement, may_store: bool
) -> Reference:
    """Read what was computed before, or compute it, from `most` training images at most; `may_store`: and keep it.

    `model` is a registry address or a directory, `model_sha256` its hash. DataError where the shards are not of such
    images and classes as the model was trained on.
    """
    index = read_index(shards)
    training_sha256 = hash_training_set(index)
    depends_on = json.dumps([FORMAT_VERSION, model_sha256, training_sha256, most])
    path = placement.state_dir / "drift" / f"{hashlib.sha256(depends_on.encode()).hexdigest()[:32]}.json"
    found = _read(path)
    if found is None:
        # Needs torch, which takes seconds.
        from pipeline.drift_measure import measure_training

        measured = measure_training(model, shards=shards, most=most, placement=placement)
        found = _Known(num_images=measured.num_images, images=measured.images)
        if may_store:
            _write(path, found)
    return Reference(
        training_sha256=training_sha256,
        num_images=found.num_images,
        images=found.images,
        mask_shares=_mask_shares(index),
    )


def hash_training_set(index: ShardIndex) -> str:
    """sha256 of what the training shards hold: keys, files, and how they were read."""
    contents = sorted(shard.content for shard in index.of_split("train"))
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()


def _mask_shares(index: ShardIndex) -> dict[str, float | None]:
    pixels = index.class_pixels("train")
    # Ignored pixels count in no class.
    num_pixels = sum(shard.num_pixels for shard in index.of_split("train"))
    total = num_pixels if index.class_map.kind == "multilabel" else sum(pixels.values())
    return {name: count / total if total else None for name, count in pixels.items()}


def _read(path: Path) -> _Known | None:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return _Known(num_images=body["num_images"], images=tuple(map(parse_traits, body["images"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # None yet, or damaged: it is computed again.
        return None


def _write(path: Path, known: _Known) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several may look at once.
    partial_file = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial_file.write_text(json.dumps(asdict(known)) + "\n", encoding="utf-8")
    partial_file.replace(path)
    _forget(path)


def _forget(written: Path) -> None:
    """Keep the newest files; what a killed process left half written grows old too. One too few is measured again."""
    ages = []
    for path in written.parent.iterdir():
        # Another process may do the same at once.
        with suppress(FileNotFoundError):
            ages.append((path.stat().st_mtime_ns, path))
    others = sorted((age, path) for age, path in ages if path != written)
    for _, path in others[: max(0, len(others) - MAX_KEPT + 1)]:
        path.unlink(missing_ok=True)
