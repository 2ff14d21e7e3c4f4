"""Mask files -> encoded masks: the only place that decodes them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from unet_core.errors import DataError
from unet_core.images import FileBytes, open_picture, refuse_deep_colour
from unet_core.samples import IGNORE_INDEX, Array, ClassMap

#: Pillow's modes that hold one whole number a pixel, or gray written as colour.
MASK_MODES = frozenset({"1", "L", "P", "LA", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L"})


def read_mask_values(file: FileBytes) -> npt.NDArray[np.int64]:
    """Read a mask's pixel values, (H, W): palette images give their indices, 1-bit images 0 and 1."""
    picture = open_picture(file, "mask")
    refuse_deep_colour(picture, file, "mask")
    if picture.mode not in MASK_MODES:
        raise DataError(
            f"a mask of another kind: {file.name}: mode {picture.mode}. "
            "Export it as an index image, a whole number a pixel."
        )
    if picture.mode == "1":
        picture = picture.convert("L").point([min(value, 1) for value in range(256)])
    if picture.mode in ("RGB", "RGBA", "LA"):
        values = np.asarray(picture)
        colours = values[..., :3] if picture.mode != "LA" else values[..., :1]
        if (colours != colours[..., :1]).any():
            raise DataError(
                f"mask is a colour image: {file.name}: mode {picture.mode}. "
                "Export it as an index image, a number a pixel."
            )
        return colours[..., 0].astype(np.int64)
    return np.asarray(picture).astype(np.int64)


def encode_mask(values: npt.NDArray[np.int64], class_map: ClassMap, *, where: str) -> Array:
    """Turn the pixel values of a multiclass mask into class indices, (H, W) uint8, `IGNORE_INDEX` where ignored."""
    table = {value: index for index, value in enumerate(class_map.classes.values())}
    if class_map.ignore is not None:
        table[class_map.ignore] = IGNORE_INDEX
    present = np.unique(values)
    unknown = [int(value) for value in present if int(value) not in table]
    if unknown:
        raise DataError(
            f"class value outside the recipe: {where}: {_some(unknown)}. The recipe knows {sorted(table)}; "
            "add the value to masks.classes (or masks.ignore), or correct the mask."
        )
    encoded = np.empty(values.shape, dtype=np.uint8)
    for value in present:
        encoded[values == value] = table[int(value)]
    return encoded


def encode_plane(values: npt.NDArray[np.int64], value: int, *, where: str) -> Array:
    """Turn one class's binary mask into zeros and ones, (H, W) uint8."""
    unknown = [int(found) for found in np.unique(values) if found not in (0, value)]
    if unknown:
        raise DataError(
            f"class value outside the recipe: {where}: {_some(unknown)}. This class is drawn with {value} on 0; "
            "correct masks.classes, or threshold the mask."
        )
    return (values == value).astype(np.uint8)


def read_mask(files: Sequence[FileBytes], class_map: ClassMap) -> Array:
    """Read and encode a sample's mask: one file for multiclass, one file per class, in order, for multilabel."""
    if class_map.kind == "multiclass":
        return encode_mask(read_mask_values(files[0]), class_map, where=files[0].name)
    planes = [
        encode_plane(read_mask_values(file), value, where=file.name)
        for file, value in zip(files, class_map.classes.values(), strict=True)
    ]
    shapes = {plane.shape for plane in planes}
    if len(shapes) > 1:
        raise DataError(f"masks of one image differ in size: {files[0].name}: {sorted(shapes)}. Export them again.")
    return np.stack(planes, axis=-1)


def _some(values: list[int]) -> str:
    shown = ", ".join(str(value) for value in values[:8])
    return f"{shown} and {len(values) - 8} more" if len(values) > 8 else shown
