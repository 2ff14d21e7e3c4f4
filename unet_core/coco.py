"""Annotations in COCO's form -> encoded masks, one JSON text per image:

    {"height": 480, "width": 640, "annotations": [{"category": "cell", "segmentation": ..., "iscrowd": 0}]}

A segmentation is a list of polygons ([x, y, x, y ...]), or runs in column order: {"size": [480, 640], "counts": ...}
as numbers or COCO's compressed text. Runs are decoded here, since the reference library's C code trusts its input;
polygons are drawn by it (pycocotools), so that their edges are COCO's.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_core.errors import DataError, RecipeError
from unet_core.picture import UnusableError, check_size
from unet_core.samples import IGNORE_INDEX, Array, ClassMap

#: Pixels of a region, as numbers in row order: objects are small, masks of the whole image are not.
Region = npt.NDArray[np.int64]


#: Of all regions of an image: half a gigabyte of numbers.
MAX_REGION_PIXELS = 2**26


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One annotated region."""

    category: str
    is_crowd: bool
    region: Region


def is_coco(data: bytes) -> bool:
    """Whether a mask's bytes are annotations and no picture."""
    return data[:64].lstrip().startswith(b"{")


def read_coco(data: bytes, class_map: ClassMap, *, where: str) -> Array:
    """Encode annotations as `Sample.mask` describes.

    Multiclass: larger regions first, so that small ones stay visible, of equal ones the later on top; a crowd is
    ignored where the recipe has an ignore value. Multilabel: a plane per class. Instances: an id per annotation, as
    `paint_objects` gives them.
    """
    try:
        shape, annotations = _parse(data)
    except DataError as error:
        raise DataError(f"annotations can't be used: {where}: {error}") from error
    except RecipeError:
        raise
    except UnusableError as error:
        raise DataError(f"mask {error.reason}: {where}: {error.detail}. {error.remedy}") from error
    except Exception as error:
        raise DataError(
            f"annotations can't be read: {where}: {error!r}. Export them again, or remove the sample."
        ) from error
    for annotation in annotations:
        if annotation.category not in class_map.classes:
            raise DataError(
                f"class outside the recipe: {where}: {annotation.category!r}. The recipe knows {list(class_map.names)}"
                "; add it to masks.classes, or remove its annotations."
            )
    match class_map.kind:
        case "multiclass":
            return _paint_classes(shape, annotations, class_map, where)
        case "multilabel":
            planes = np.zeros((shape[0] * shape[1], class_map.num_classes), dtype=np.uint8)
            for annotation in annotations:
                planes[annotation.region, class_map.names.index(annotation.category)] = 1
            return planes.reshape(*shape, class_map.num_classes)
        case "instances":
            if any(annotation.is_crowd for annotation in annotations):
                raise DataError(
                    f"a crowd among instances: {where}: iscrowd marks many objects as one region. "
                    "Remove these annotations, or train classes (masks.kind: multiclass)."
                )
            return paint_objects([annotation.region for annotation in annotations], shape, where=where)


def paint_objects(regions: Sequence[Region], shape: tuple[int, int], *, where: str) -> Array:
    """Regions -> ids 1 to n in their order, (H, W) uint16 on 0.

    A pixel of several goes to the smaller region, of equally small ones to the later. Regions without a pixel of their
    own have no id.
    """
    check_num_objects(len(regions), where)
    ids = np.zeros(shape[0] * shape[1], dtype=np.uint16)
    for number in _large_first(regions):
        ids[regions[number]] = number + 1
    seen = np.flatnonzero(np.bincount(ids, minlength=1)[1:])
    renumbered = np.zeros(len(regions) + 1, dtype=np.uint16)
    renumbered[seen + 1] = np.arange(1, len(seen) + 1)
    return renumbered[ids].reshape(shape)


def check_num_objects(num_objects: int, where: str) -> None:
    """Refuse more objects than uint16 can number."""
    if num_objects > np.iinfo(np.uint16).max:
        raise DataError(f"too many objects: {where}: {num_objects}, at most 65535 are possible. Cut the image.")


def _large_first(regions: Sequence[Region]) -> list[int]:
    return sorted(range(len(regions)), key=lambda number: -len(regions[number]))


def _paint_classes(shape: tuple[int, int], annotations: Sequence[Annotation], class_map: ClassMap, where: str) -> Array:
    ground = class_map.background or next((n for n, v in class_map.classes.items() if v in (0, "#000000")), None)
    if ground is None:
        raise RecipeError(
            f"masks: {where} has annotations, and no class stands for pixels without one. Set masks.background."
        )
    mask = np.full(shape[0] * shape[1], class_map.names.index(ground), dtype=np.uint8)
    for number in _large_first([annotation.region for annotation in annotations]):
        annotation = annotations[number]
        is_ignored = annotation.is_crowd and class_map.ignore is not None
        mask[annotation.region] = IGNORE_INDEX if is_ignored else class_map.names.index(annotation.category)
    return mask.reshape(shape)


def _parse(data: bytes) -> tuple[tuple[int, int], list[Annotation]]:
    body = json.loads(data)
    height, width = body["height"], body["width"]
    if type(height) is not int or type(width) is not int:
        raise DataError(f"height {height!r} and width {width!r} are no whole numbers. Export them again.")
    check_size(width=width, height=height)
    annotations, num_pixels = [], 0
    for entry in body["annotations"]:
        region = _read_region(entry["segmentation"], height, width)
        num_pixels += region.size
        if num_pixels > MAX_REGION_PIXELS:
            raise DataError(
                f"regions of more than {MAX_REGION_PIXELS / 1e6:.0f} million pixels together, taken for a "
                "decompression bomb. Cut the image into parts, or remove the sample."
            )
        is_crowd = bool(entry.get("iscrowd", 0))
        annotations.append(Annotation(category=str(entry["category"]), is_crowd=is_crowd, region=region))
    return (height, width), annotations


def _read_region(segmentation: Any, height: int, width: int) -> Region:
    if isinstance(segmentation, list):
        return _draw_polygons(segmentation, height, width)
    if list(segmentation["size"]) != [height, width]:
        raise DataError(f"runs of size {segmentation['size']} in an image of {[height, width]}. Export them again.")
    counts = segmentation["counts"]
    runs = _uncompress(counts) if isinstance(counts, str) else counts
    return _decode_runs(runs, height, width)


def _decode_runs(runs: Sequence[int], height: int, width: int) -> Region:
    """Runs of other and own pixels in turn, down the columns -> pixel numbers in row order."""
    if not all(type(run) is int and 0 <= run <= height * width for run in runs) or sum(runs) != height * width:
        raise DataError(f"runs don't add up to {height} x {width} pixels. Export the annotations again.")
    lengths = np.array(runs, dtype=np.int64)
    if 16 * lengths[1::2].sum() > lengths.sum():
        # A region that covers much of the image: turning a plane over is quicker than sorting its numbers.
        own = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
        return np.flatnonzero(own.reshape(width, height).T)
    ends = np.cumsum(lengths)
    places = [np.arange(start, end) for start, end in zip(ends[::2], ends[1::2], strict=False)]
    in_columns = np.concatenate(places) if places else np.zeros(0, dtype=np.int64)
    return np.sort(in_columns % height * width + in_columns // height)


def _uncompress(text: str) -> list[int]:
    """COCO's compressed runs: groups of five bits, the sixth says that more follow; from the third run on, differences
    to the run before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for byte in text.encode("ascii"):
        group = byte - 48
        if not 0 <= group < 64 or shift > 40:
            raise DataError("compressed runs are damaged. Export the annotations again.")
        value |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        if group & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise DataError("compressed runs are cut short. Export the annotations again.")
    return runs


def _draw_polygons(polygons: list[Any], height: int, width: int) -> Region:
    try:
        from pycocotools import mask as reference
    except ImportError as error:
        raise RecipeError(
            "polygons need pycocotools, which is not installed. Run `pip install 'unet-pipeline[coco]'`."
        ) from error
    # Its C code turns coordinates into whole numbers and sizes of memory without looking at them.
    reach = 2 * max(height, width) + 100
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise DataError(f"a polygon of {len(polygon)} numbers; it takes x and y of three corners. Correct it.")
        if not all(isinstance(value, int | float) and math.isfinite(value) and abs(value) < reach for value in polygon):
            raise DataError(f"a polygon's corner lies far outside {width}x{height} pixels. Correct it.")
    if not polygons:
        raise DataError("an annotation without a region: only a box? Export polygons or runs, or remove the sample.")
    drawn = reference.merge(reference.frPyObjects(polygons, height, width))
    return _decode_runs(_uncompress(drawn["counts"].decode("ascii")), height, width)
