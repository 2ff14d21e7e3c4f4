"""What a prediction leaves behind for one image: files below a folder, each complete or not there at all."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image
from torch import Tensor

from pipeline.pictures import overlay
from unet_core.errors import DataError
from unet_core.inference import predict_mask
from unet_core.model import ModelSpec
from unet_core.outputs import class_probabilities, geojson, mask_planes, separate_objects, uncertainty
from unet_core.samples import Array, ClassMap

#: What can be saved, and where it lies below the folder of results.
FOLDERS = {
    "mask": "masks",
    "overlay": "overlays",
    "probabilities": "probabilities",
    "uncertainty": "uncertainty",
    "polygons": "polygons",
    "instances": "instances",
}
#: Results that are computed from a whole mask.
OF_WHOLE_MASKS = frozenset({"polygons", "instances"})
TILE_PX = 512


def pixel_results(logits: Tensor, mask: Array, spec: ModelSpec, save: frozenset[str]) -> dict[str, Array]:
    """Rows of results with a value at each pixel, by folder: those of `save`, from logits (K, rows, W)."""
    results = encode_mask(mask, spec.class_map) if "mask" in save else {}
    if save & {"probabilities", "uncertainty"}:
        probabilities = class_probabilities(logits, spec.class_map)
        if "probabilities" in save:
            results[FOLDERS["probabilities"]] = _as_bytes(probabilities.permute(1, 2, 0))
        if "uncertainty" in save:
            results[FOLDERS["uncertainty"]] = _as_bytes(uncertainty(probabilities, spec.class_map))
    return results


def _as_bytes(fractions: Tensor) -> npt.NDArray[np.uint8]:
    """0 to 1 -> 0 to 255."""
    return np.asarray((fractions.clamp(0, 1) * 255).round().byte().numpy())


def encode_mask(mask: Array, class_map: ClassMap) -> dict[str, Array]:
    """Masks as a user would bring them, by folder: the recipe's pixel values; overlapping classes in a folder each."""
    values = class_map.values
    dtype = np.uint8 if max(values) < 256 else np.uint16
    if class_map.kind == "multilabel":
        return {
            f"masks/{name}": np.where(mask[..., number], values[number], 0).astype(dtype)
            for number, name in enumerate(class_map.names)
        }
    if class_map.has_colours:
        colours = np.array([[value >> 16, value >> 8 & 255, value & 255] for value in values], dtype=np.uint8)
        return {"masks": colours[mask]}
    return {"masks": np.array(values, dtype=dtype)[mask]}


def write_results(
    out: Path, name: str, image: Array, logits: Tensor, spec: ModelSpec, save: frozenset[str]
) -> list[Path]:
    """Write the results of an image in memory, and give their paths."""
    mask = predict_mask(logits, spec)
    written = []
    for folder, pixels in pixel_results(logits, mask, spec, save).items():
        # PNG has one or three channels.
        ending, write = (".tif", _write_tiff) if folder == FOLDERS["probabilities"] else (".png", _write_png)
        written.append(_write(out / folder / f"{name}{ending}", write, pixels))
    if "overlay" in save:
        written.append(
            _write(out / FOLDERS["overlay"] / f"{name}.png", _write_png, overlay(image, mask, spec.class_map))
        )
    if "polygons" in save:
        found = geojson(mask, spec.class_map)
        written.append(_write(out / FOLDERS["polygons"] / f"{name}.geojson", _write_json, found))
    if "instances" in save:
        written += _write_instances(out / FOLDERS["instances"], name, mask, spec.class_map)
    return written


def _write_instances(folder: Path, name: str, mask: Array, class_map: ClassMap) -> Iterator[Path]:
    """Ids of objects as uint16, or a folder a class where there are several."""
    planes = mask_planes(mask, class_map)
    for class_name, plane in planes.items():
        ids = separate_objects(plane)
        if ids.max(initial=0) > np.iinfo(np.uint16).max:
            raise DataError(f"too many objects for 16 bits: {name}: {class_name}: {ids.max()}. Predict parts of it.")
        path = (folder / class_name if len(planes) > 1 else folder) / f"{name}.png"
        yield _write(path, _write_png, ids.astype(np.uint16))


class TiffRowsFile:
    """A tiled TIFF that is written from top to bottom, without the whole image in memory."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self.path, self._shape, self._dtype = path, shape, np.dtype(dtype)
        path.parent.mkdir(parents=True, exist_ok=True)
        # TIFF's writer pulls tiles and the network pushes rows, for several files at once: rows wait on disk.
        self._rows = path.with_name(path.name + ".rows.partial").open("w+b")

    def append(self, rows: Array) -> None:
        """Add the next rows, (rows, W) or (rows, W, C)."""
        self._rows.write(np.ascontiguousarray(rows, dtype=self._dtype).data)

    def finish(self) -> Path:
        """Write the TIFF, after its last row."""
        self._rows.flush()
        return _write(
            self.path, lambda path, tiles: _write_tiff(path, tiles, shape=self._shape, dtype=self._dtype), self._tiles()
        )

    def close(self) -> None:
        """Remove the rows that waited."""
        self._rows.close()
        Path(self._rows.name).unlink(missing_ok=True)

    def _tiles(self) -> Iterator[Array]:
        height, width = self._shape[:2]
        row_values = int(np.prod(self._shape[1:]))
        self._rows.seek(0)
        for top in range(0, height, TILE_PX):
            rows = np.fromfile(self._rows, dtype=self._dtype, count=min(TILE_PX, height - top) * row_values)
            rows = rows.reshape(-1, *self._shape[1:])
            for left in range(0, width, TILE_PX):
                yield np.ascontiguousarray(rows[:, left : left + TILE_PX])


@contextmanager
def open_tiff_files() -> Iterator[Callable[[Path, tuple[int, ...], npt.DTypeLike], TiffRowsFile]]:
    """A function that makes files of rows; what waits on disk for them is removed at the end, however it comes."""
    files: list[TiffRowsFile] = []

    def make(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> TiffRowsFile:
        files.append(TiffRowsFile(path, shape, dtype))
        return files[-1]

    try:
        yield make
    finally:
        for file in files:
            file.close()


def _write(path: Path, write: Callable[[Path, Any], None], content: Any) -> Path:
    """Write a file beside its place and put it there when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial, content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_png(path: Path, pixels: Array) -> Path:
    """Write a PNG; equal pixels are equal bytes."""
    return _write(path, _write_png, pixels)


def write_json(path: Path, body: Mapping[str, Any]) -> Path:
    """Write JSON on one line."""
    return _write(path, _write_json, body)


def _write_png(path: Path, pixels: Array) -> None:
    Image.fromarray(pixels).save(path, format="PNG", compress_level=6)


def _write_json(path: Path, body: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(body) + "\n", encoding="utf-8")


def _write_tiff(path: Path, pixels: Array | Iterator[Array], **about: Any) -> None:
    """Tiles, compressed; whole pixels, or tiles with shape and dtype."""
    shape = about.get("shape") or np.shape(pixels)  # type: ignore[arg-type]
    is_colour = len(shape) == 3 and shape[2] == 3
    tifffile.imwrite(
        path,
        pixels,
        tile=(TILE_PX, TILE_PX),
        compression="zlib",
        photometric="rgb" if is_colour else "minisblack",
        planarconfig="contig" if len(shape) == 3 else None,
        bigtiff=int(np.prod(shape)) > 2**31,
        # Equal pixels are equal bytes.
        metadata=None,
        software=False,
        **about,
    )
