"""`unet predict`: images or folders -> masks at the original size, and overlays."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline import tracking
from pipeline.command import say
from pipeline.pictures import overlay, write_picture
from pipeline.placement import read_placement
from pipeline.progress import progress
from pipeline.scoring import predict_sample
from pipeline.source import PICTURE_SUFFIXES
from pipeline.storage import read_file
from unet_core.checkpoint import read_model
from unet_core.errors import DataError
from unet_core.images import read_image
from unet_core.samples import Array, ClassMap

log = logging.getLogger(__name__)


def predict(paths: Sequence[Path], *, out: Path, model: str, exact: bool = False, tta: bool = False) -> None:
    """Predict all images; `model` is a registry address or a model directory."""
    images = [path for path in find_images(paths) if not path.resolve().is_relative_to(out.resolve())]
    if not images:
        raise DataError(f"no images: {paths[0]}: what is there are results in {out}. Give image files or folders.")
    if Path(model).is_dir():
        network, spec = read_model(Path(model))
    else:
        placement = read_placement()
        tracking.connect(placement.tracking_uri, placement.experiment)
        with tempfile.TemporaryDirectory() as scratch:
            network, spec = read_model(tracking.fetch_model(model, Path(scratch)))
    names = _names(images)
    for path in progress(images, total=len(images), label="predict", unit="images"):
        image = read_image(read_file("", str(path)), spec.images)
        mask = predict_sample(network, spec, image, exact=exact, tta=tta)
        _write_mask(out / "masks", names[path], mask, spec.class_map)
        write_picture(out / "overlays" / f"{names[path]}.png", overlay(image, mask, spec.class_map))
    say(f"{len(images)} masks in {out / 'masks'}, overlays in {out / 'overlays'}")


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Image files: the paths themselves, and all below a folder; DataError for a path without one."""
    found = []
    for path in paths:
        inside = (
            sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith("."))
            if path.is_dir()
            else [path]
        )
        if not inside or not path.exists():
            raise DataError(f"no images: {path}. Give image files, or folders with {sorted(PICTURE_SUFFIXES)}.")
        found += inside
    return list(dict.fromkeys(found))


def _names(images: Sequence[Path]) -> dict[Path, str]:
    """Names of results: the image's own; DataError where two images would write one file."""
    names: dict[str, Path] = {}
    for path in images:
        if path.stem in names:
            raise DataError(f"two images of one name: {names[path.stem]} and {path}. Predict them into two folders.")
        names[path.stem] = path
    return {path: name for name, path in names.items()}


def _write_mask(folder: Path, name: str, mask: Array, class_map: ClassMap) -> None:
    """Masks as a user would bring them: the recipe's pixel values; overlapping classes in a folder each."""
    values = class_map.values
    dtype = np.uint8 if max(values) < 256 else np.uint16
    if class_map.kind == "multilabel":
        for number, class_name in enumerate(class_map.names):
            _write_png(
                folder / class_name / f"{name}.png", np.where(mask[..., number], values[number], 0).astype(dtype)
            )
        return
    if class_map.has_colours:
        colours = np.array([[value >> 16, value >> 8 & 255, value & 255] for value in values], dtype=np.uint8)
        _write_png(folder / f"{name}.png", colours[mask])
        return
    _write_png(folder / f"{name}.png", np.array(values, dtype=dtype)[mask])


def _write_png(path: Path, values: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
