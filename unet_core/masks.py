"""Mask files -> encoded masks: the only place that decodes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_core.coco import check_num_objects, is_coco, paint_objects, read_coco
from unet_core.errors import DataError
from unet_core.images import FileBytes, read_picture
from unet_core.picture import Picture
from unet_core.samples import IGNORE_INDEX, Array, ClassMap

Values = npt.NDArray[np.integer[Any]]

#: A smoothed edge has many levels; one or two odd values are rather classes that the recipe does not name.
FEW_VALUES = 3
#: How many pixels are counted at a time: numpy counts in int64, eight times the size of a mask.
BLOCK = 2**22


def read_mask(files: Sequence[FileBytes], class_map: ClassMap) -> Array:
    """Read and encode a sample's mask, as `Sample.mask` describes.

    One file for multiclass, one file per class, in order, for multilabel; for instances one file of ids or one file per
    object. Annotations in COCO's form are one file for all kinds.
    """
    if is_coco(files[0].data):
        if len(files) > 1:
            raise DataError(f"annotations and other masks: {files[0].name}: {len(files)} files. Keep one kind of them.")
        return read_coco(files[0].data, class_map, where=files[0].name)
    match class_map.kind:
        case "multiclass":
            values = read_mask_values(files[0], in_colour=class_map.has_colours)
            return encode_mask(values, class_map, where=files[0].name)
        case "multilabel":
            planes = [
                encode_plane(read_mask_values(file), value, where=file.name, threshold=class_map.threshold)
                for file, value in zip(files, class_map.values, strict=True)
            ]
            _check_sizes([plane.shape for plane in planes], files)
            return np.stack(planes, axis=-1)
        case "instances":
            if len(files) == 1 and class_map.threshold is None:
                return encode_ids(read_mask_values(files[0]), where=files[0].name)
            # Sorted by name: a tie between overlapping objects must not depend on how a folder is listed.
            return read_objects(sorted(files, key=lambda file: file.name), class_map)


def read_mask_values(file: FileBytes, *, in_colour: bool = False) -> Values:
    """Read a mask's pixel values, (H, W): palette images give their indices, 1-bit images 0 and 1.

    `in_colour` gives 0xRRGGBB instead, of palette and gray images too.
    """
    picture = read_picture(file, "mask")
    pixels = picture.pixels
    if pixels.dtype.kind not in "iu" or picture.colour in ("cmyk", "channels"):
        raise DataError(
            f"a mask of another kind: {file.name}: {picture.colour}, {pixels.dtype}. "
            "Export it as an index image, a whole number a pixel."
        )
    if in_colour:
        return _colour_numbers(picture, file.name)
    colours = pixels[..., :-1] if picture.has_alpha else pixels
    if (colours != colours[..., :1]).any():
        raise DataError(
            f"mask is a colour image: {file.name}: {len(np.unique(_pack(colours)))} colours. Export it as an index "
            "image, a number a pixel, or give the classes their colours in masks.classes."
        )
    return colours[..., 0]


def _colour_numbers(picture: Picture, name: str) -> Values:
    if picture.bits > 8:
        raise DataError(f"more than 8 bits a channel: mask {name}: {picture.bits}. Export colours with 8 bits.")
    pixels = picture.pixels[..., :-1] if picture.has_alpha else picture.pixels
    if picture.palette is not None:
        return _pack(picture.palette)[pixels[..., 0]]
    # One bit of white is white.
    return _pack(pixels * np.uint8(255 // (2**picture.bits - 1)))


def _pack(colours: Values) -> Values:
    """(..., 3) or (..., 1) gray -> 0xRRGGBB."""
    red, green, blue = (colours[..., min(channel, colours.shape[-1] - 1)].astype(np.uint64) for channel in range(3))
    shift = colours.dtype.itemsize * 8
    return (red << np.uint64(2 * shift) | green << np.uint64(shift) | blue).astype(np.int64)


def encode_mask(values: Values, class_map: ClassMap, *, where: str) -> Array:
    """Turn the pixel values of a multiclass mask into class indices, (H, W) uint8, `IGNORE_INDEX` where ignored."""
    table = {value: index for index, value in enumerate(class_map.values)}
    ignored = class_map.ignored_value
    if ignored is not None:
        table[ignored] = IGNORE_INDEX
    if class_map.threshold is not None:
        low, high = sorted(class_map.values)
        cut = np.where(values >= class_map.threshold, high, low)
        values = cut if ignored is None else np.where(values == ignored, ignored, cut)
    present = distinct(values)
    unknown = [value for value in present if value not in table]
    if unknown:
        if len(class_map.classes) == 2 and not class_map.has_colours:
            low, high = sorted(class_map.values)
            _refuse_smoothed(values, unknown, low, high, where)
        raise DataError(
            f"class value outside the recipe: {where}: {_some(unknown, class_map)}. "
            f"The recipe knows [{_some(sorted(table), class_map)}]; "
            "add the value to masks.classes (or masks.ignore), or correct the mask."
        )
    if present and present[0] >= 0 and present[-1] < 2**16:
        lookup = np.zeros(present[-1] + 1, dtype=np.uint8)
        lookup[present] = [table[value] for value in present]
        return lookup[values]
    encoded = np.empty(values.shape, dtype=np.uint8)
    for value in present:
        encoded[values == value] = table[value]
    return encoded


def encode_plane(values: Values, value: int, *, where: str, threshold: int | None = None) -> Array:
    """Turn one class's binary mask into zeros and ones, (H, W) uint8."""
    if threshold is not None:
        return (values >= threshold).astype(np.uint8)
    unknown = [found for found in distinct(values) if found not in (0, value)]
    if unknown:
        _refuse_smoothed(values, unknown, 0, value, where)
        raise DataError(
            f"class value outside the recipe: {where}: {_some(unknown)}. This class is drawn with {value} on 0; "
            "correct masks.classes, or threshold the mask."
        )
    return (values == value).astype(np.uint8)


def encode_ids(values: Values, *, where: str) -> Array:
    """Object ids of any size -> 1 to n in their order, (H, W) uint16; 0 is background."""
    present = distinct(values)
    if present and present[0] < 0:
        raise DataError(f"negative object id: {where}: {present[0]}. Number objects from 1, background is 0.")
    ids = [value for value in present if value]
    check_num_objects(len(ids), where)
    return np.searchsorted(np.array([0, *ids]), values).astype(np.uint16)


def read_objects(files: Sequence[FileBytes], class_map: ClassMap) -> Array:
    """One binary image per object -> ids in the order of the files, (H, W) uint16; overlaps as `paint_objects` says."""
    shapes, regions = [], []
    for file in files:
        values = read_mask_values(file)
        shapes.append(values.shape)
        # Numbers of an object's pixels: hundreds of whole planes would fill the memory.
        regions.append(np.flatnonzero(_is_object(values, class_map.threshold, where=file.name)))
    _check_sizes(shapes, files)
    return paint_objects(regions, shapes[0], where=files[0].name)


def _is_object(values: Values, threshold: int | None, *, where: str) -> npt.NDArray[np.bool_]:
    if threshold is not None:
        return values >= threshold
    present = [value for value in distinct(values) if value]
    if len(present) > 1:
        _refuse_smoothed(values, present[:-1], 0, present[-1], where)
        raise DataError(
            f"several values in the mask of one object: {where}: {_some(present)}. Draw it with one value on 0, or put "
            "all ids of an image into one file."
        )
    return values != 0


def distinct(values: Values) -> list[int]:
    """The values that occur, sorted."""
    if values.dtype not in (np.uint8, np.uint16):
        return [int(value) for value in np.unique(values)]
    counts = np.zeros(np.iinfo(values.dtype).max + 1, dtype=np.int64)
    flat = values.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        counts += np.bincount(flat[start : start + BLOCK], minlength=len(counts))
    return [int(value) for value in np.flatnonzero(counts)]


def _refuse_smoothed(values: Values, unknown: list[int], low: int, high: int, where: str) -> None:
    """Refuse values between the two of a binary mask with the remedy; others are another mistake."""
    if len(unknown) < FEW_VALUES or not all(low < value < high for value in unknown):
        return
    fraction = float(np.isin(values, unknown).mean())
    raise DataError(
        f"mask is not binary: {where}: {_some(unknown)} between {low} and {high}, {fraction:.2%} of its pixels. If its "
        f"edges are smoothed (anti-aliased, JPEG), cut them with masks.threshold: {(low + high + 1) // 2}; if it has "
        "more classes, name them in masks.classes; or correct the mask."
    )


def _check_sizes(shapes: Sequence[tuple[int, ...]], files: Sequence[FileBytes]) -> None:
    if len(set(shapes)) > 1:
        found = sorted(f"{width}x{height}" for height, width in set(shapes))
        raise DataError(f"masks of one image differ in size: {files[0].name}: {', '.join(found)}. Export them again.")


def _some(values: list[int], class_map: ClassMap | None = None) -> str:
    in_colour = class_map is not None and class_map.has_colours
    shown = ", ".join(f"#{value:06x}" if in_colour else str(value) for value in values[:8])
    return f"{shown} and {len(values) - 8} more" if len(values) > 8 else shown
