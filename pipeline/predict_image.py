"""One image -> its results, in whichever process. Large TIFF files go through by rows."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from pipeline.memory import give_back_memory, keep_freed_memory
from pipeline.model_files import ModelFiles
from pipeline.pictures import overlay
from pipeline.prediction_log import Logbook, append_entry, small_copy
from pipeline.public_text import public
from pipeline.results import (
    FOLDERS,
    OF_WHOLE_MASKS,
    TiffRowsFile,
    open_tiff_files,
    pixel_results,
    write_png,
    write_results,
)
from pipeline.results_record import forget, record
from pipeline.storage import RESTORE, fetch_file, is_url, read_file, split_address
from unet_core.checkpoint import read_model
from unet_core.errors import DataError, UnetError
from unet_core.folding import fold_batch_norm
from unet_core.image_rows import FileRows, open_image_rows
from unet_core.images import FileBytes, read_image
from unet_core.inference import Band, predict_bands, predict_logits, predict_mask, predict_symmetric
from unet_core.model import ModelSpec, Network
from unet_core.samples import Array
from unet_core.trait_meter import MeasuredRows, TraitMeter, watched

#: TIFF files of more pixels are read and written by rows: 4096 x 4096.
LARGE_PIXELS = 2**24
#: The longer side of a large image's overlay.
OVERLAY_PX = 2048


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to predict, and what to save."""

    exact: bool
    tta: bool
    save: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One image."""

    address: str
    name: str
    about: Mapping[str, Any]
    """What its record will say: image, model, options."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How it went."""

    address: str
    failure: str | None = None
    """Why there are no results."""
    has_no_copy: bool = False
    """Whether the log was to hold a copy of it and has no place."""


def predict_job(
    job: Job, *, model: ModelFiles, root: Path, out: Path, options: Options, log: Logbook | None = None
) -> Outcome:
    """Predict an image and record it; a foreseen mistake is this image's alone. Paths are relative to `root`."""
    # Ray starts workers elsewhere.
    os.chdir(root)
    try:
        network, spec = load_model(model)
        forget(out, job.name)
        results, is_logged = _predict_and_log(job, network, spec, out, options, log)
        record(out, job.name, job.about, results)
    except UnetError as error:
        return Outcome(address=job.address, failure=str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return Outcome(address=job.address, failure="no memory. Predict fewer at a time: lower UNET_PROCESSES.")
    except OSError as error:
        return Outcome(address=job.address, failure=f"{error.strerror or error}: {error.filename or out}.")
    return Outcome(address=job.address, has_no_copy=not is_logged)


def is_out_of_memory(error: Exception) -> bool:
    """NumPy's and Python's error, a GPU's, or that of torch on a CPU, which has no class of its own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def died(job: Job) -> Outcome:
    """The outcome of an image whose process ended."""
    why = "its process ended: no memory, or a crash in a decoder. Lower UNET_PROCESSES, or look at the file."
    return Outcome(address=job.address, failure=why)


@lru_cache(maxsize=1)
def load_model(model: ModelFiles) -> tuple[Network, ModelSpec]:
    """The network, folded for prediction; read once in a process."""
    keep_freed_memory()
    network, spec = read_model(model.directory)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return fold_batch_norm(network).to(device), spec


class Witness:
    """Collects what is to be logged of an image."""

    def __init__(self, spec: ModelSpec) -> None:
        self.meter = TraitMeter(spec)
        self.shape: tuple[int, ...] = ()
        self.picture: Array | None = None

    def note(self, image: Array, mask: Array) -> None:
        """An image in memory, and what was predicted."""
        self.meter.see_pixels(image)
        self.meter.see_mask(mask)
        self.shape, self.picture = image.shape, image


def _predict_and_log(
    job: Job, network: Network, spec: ModelSpec, out: Path, options: Options, log: Logbook | None
) -> tuple[list[Path], bool]:
    """The results, and whether all that is to be logged is; before they are recorded, so that no image is left out."""
    if log is None:
        return _predict(job, network, spec, out, options, None), True
    witness = Witness(spec)
    with watched(network, witness.meter):
        results = _predict(job, network, spec, out, options, witness)
    assert witness.picture is not None
    height, width = witness.shape[:2]
    is_logged = append_entry(
        log,
        image=public(job.address),
        version=str(job.about["version"]),
        traits=witness.meter.read(height=height, width=width),
        copy=small_copy(witness.picture) if log.what == "images" else None,
    )
    return results, is_logged


def _predict(
    job: Job, network: Network, spec: ModelSpec, out: Path, options: Options, witness: Witness | None
) -> list[Path]:
    with _copy_of_tiff(job.address) as path:
        if path.is_file():
            with open_image_rows(path, spec.images, min_pixels=LARGE_PIXELS, where=public(job.address)) as rows:
                if rows is not None:
                    return _predict_large(job.name, rows, network, spec, out, options=options, witness=witness)
            file = FileBytes(name=job.address, data=read_file("", str(path)).data)
        else:
            file = read_file(*split_address(job.address))
    image = read_image(file, spec.images)
    predict = predict_symmetric if options.tta else predict_logits
    logits = predict(network, spec, image, exact=options.exact)
    if witness is not None:
        witness.note(image, predict_mask(logits, spec))
    return write_results(out, job.name, image, logits, spec, options.save)


@contextmanager
def _copy_of_tiff(address: str) -> Iterator[Path]:
    """The path of a copy, on this machine for the time, of a TIFF file at a URL; any other address is its own path.

    The rows of a large one are read here and there. Errors are those of `read_file`.
    """
    if not is_url(address) or not public(address).lower().endswith((".tif", ".tiff")):
        yield Path(address)
        return
    with TemporaryDirectory(prefix="unet-predict-") as folder:
        fetch_file(*split_address(address), Path(folder, "image.tif"), missing=RESTORE)
        yield Path(folder, "image.tif")


def _predict_large(  # noqa: PLR0913 each says one thing of the work
    name: str,
    image: FileRows,
    network: Network,
    spec: ModelSpec,
    out: Path,
    *,
    options: Options,
    witness: Witness | None,
) -> list[Path]:
    """As `write_results`, by bands of rows; pixels go to TIFF files, and the overlay is a small one."""
    height, width = image.shape[:2]
    refused = sorted(options.save & OF_WHOLE_MASKS) + ["--tta"] * options.tta
    if refused:
        raise DataError(
            f"too large for {refused[0]}: {name}: {height}x{width} pixels, at most {LARGE_PIXELS:,} are possible. "
            "Leave it out, or cut the image into parts."
        )
    thumbnail = Thumbnail(image)
    rows = thumbnail if witness is None else MeasuredRows(thumbnail, witness.meter)
    bands = predict_bands(network, spec, rows, exact=options.exact)
    with open_tiff_files() as make:
        files: dict[str, TiffRowsFile] = {}
        for band in bands:
            mask = predict_mask(band.logits, spec)
            thumbnail.note_mask(band, mask)
            if witness is not None:
                witness.meter.see_mask(mask)
            for folder, part in pixel_results(band.logits, mask, spec, options.save).items():
                if folder not in files:
                    files[folder] = make(out / folder / f"{name}.tif", (height, *part.shape[1:]), part.dtype)
                files[folder].append(part)
            give_back_memory()
        results = [file.finish() for file in files.values()]
    picture, small_mask = thumbnail.picture()
    if witness is not None:
        witness.shape, witness.picture = image.shape, picture
    if "overlay" in options.save:
        picture = overlay(picture, small_mask, spec.class_map)
        results.append(write_png(out / FOLDERS["overlay"] / f"{name}.png", picture))
    return results


class Thumbnail:
    """Rows that pass through; every so many pixels of them and of their masks are kept."""

    def __init__(self, image: FileRows) -> None:
        self._image, self.shape = image, image.shape
        self._step = -(-max(image.shape[:2]) // OVERLAY_PX)
        self._pixels: dict[int, Array] = {}
        self._masks: list[Array] = []

    def read_rows(self, top: int, bottom: int) -> Array:
        """As the image's own."""
        rows = self._image.read_rows(top, bottom)
        for row in self._kept(top, bottom):
            self._pixels[row] = rows[row - top, :: self._step].copy()
        return rows

    def note_mask(self, band: Band, mask: Array) -> None:
        """The mask of the next rows."""
        self._masks += [
            mask[row - band.top, :: self._step].copy() for row in self._kept(band.top, band.top + len(mask))
        ]

    def picture(self) -> tuple[Array, Array]:
        """The small image and its mask, when all rows have passed."""
        return np.stack([self._pixels[row] for row in sorted(self._pixels)]), np.stack(self._masks)

    def _kept(self, top: int, bottom: int) -> Iterable[int]:
        return range(-(-top // self._step) * self._step, bottom, self._step)
