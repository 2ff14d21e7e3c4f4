"""A sample is an image, its mask and a key: read files, encode masks, check one pair.

First on the road: `validate` and `shard` turn the user's files into arrays here, and nowhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from unet_core.errors import DataError, RecipeError

Array = npt.NDArray[np.uint8]

#: Pillow's modes that hold one whole number a pixel, or gray written as colour.
MASK_MODES = frozenset({"1", "L", "P", "LA", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L"})

#: The index in an encoded multiclass mask of pixels that belong to no class and are not scored.
IGNORE_INDEX = 255


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """Recipe section `masks`: what the pixels of a mask mean."""

    kind: Literal["multiclass", "multilabel"]
    """multiclass: one index image per sample; multilabel: one binary image per class, free to overlap."""
    classes: Mapping[str, int]
    """Class name -> its pixel value. The order of the names is the order of the model's outputs."""
    ignore: int | None = None
    """Pixel value (multiclass only) that is neither trained on nor scored."""
    background: str | None = None
    """A class that is trained but not scored, since its score flatters every model."""

    def __post_init__(self) -> None:
        if self.kind == "multiclass" and len(self.classes) < 2:
            raise RecipeError(
                f"too few classes: masks.classes: {list(self.classes)}. A multiclass mask needs at least two, "
                "background included; for one class on a background add it, or choose kind: multilabel."
            )
        if not 1 <= len(self.classes) <= IGNORE_INDEX:
            raise RecipeError(f"masks.classes: {len(self.classes)} classes: between 1 and {IGNORE_INDEX} are possible.")
        if self.kind == "multilabel" and 0 in self.classes.values():
            raise RecipeError("masks.classes: value 0 in a multilabel mask: 0 is where the class is not. Use 255 or 1.")
        if self.background is not None and self.background not in self.classes:
            raise RecipeError(
                f"unknown class: masks.background: {self.background!r}. Name one of {list(self.classes)}, or null."
            )
        if self.kind == "multilabel" and (self.ignore is not None or self.background is not None):
            raise RecipeError(
                "masks.ignore and masks.background: only multiclass masks have them, kind is multilabel. "
                "Set both to null."
            )
        values = list(self.classes.values()) + ([] if self.ignore is None else [self.ignore])
        if self.kind == "multiclass" and len(set(values)) != len(values):
            raise RecipeError(f"one pixel value for two classes: masks: {values}. Give each class its own value.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return tuple(self.classes)

    @property
    def num_classes(self) -> int:
        """How many channels the model's output has."""
        return len(self.classes)

    @property
    def scored(self) -> tuple[int, ...]:
        """Indices of the classes that count in a score."""
        return tuple(i for i, name in enumerate(self.names) if name != self.background)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training example in memory."""

    key: str
    image: Array
    """(H, W, C) uint8."""
    mask: Array
    """Encoded: (H, W) class indices for multiclass, (H, W, K) zeros and ones for multilabel."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def open_picture(path: Path, what: str) -> Image.Image:
    """Open an image file completely, or raise DataError that says why it can't be read."""
    try:
        picture = Image.open(path)
        picture.load()
    except FileNotFoundError as error:
        raise DataError(f"{what} is missing: {path}. Restore the file, or remove the sample.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{what} can't be read: {path}: {error}. Export the file again, or remove the sample."
        ) from error
    num_pages = getattr(picture, "n_frames", 1)
    if num_pages > 1:
        raise DataError(f"{what} has {num_pages} pages: {path}. Export the page that you mean as a file of its own.")
    return picture


def _refuse_deep_colour(picture: Image.Image, path: Path, what: str) -> None:
    """Pillow cuts 16-bit colour to 8 bits without a word; the depth stands in a PNG's byte 24 and a TIFF's tag 258."""
    with path.open("rb") as stream:
        head = stream.read(26)
    is_png = head[:8] == b"\x89PNG\r\n\x1a\n"
    tags = getattr(picture, "tag_v2", {})
    deepest = head[24] if is_png else max(np.atleast_1d(tags.get(258, 8)))
    if deepest > 8 and picture.mode not in ("F", "I", "I;16", "I;16B", "I;16L"):
        raise DataError(f"more than 8 bits a channel: {what} {path}: {deepest}. Export it with 8 bits a channel.")


def read_image(path: Path, *, channels: int) -> Array:
    """Read an image as (H, W, `channels`) uint8; gray and RGB convert into each other, alpha is dropped.

    Raises DataError for a file that can't be read and for more than 8 bits a channel, since how to scale
    those is a decision that we must not take silently.
    """
    picture = open_picture(path, "image")
    _refuse_deep_colour(picture, path, "image")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        raise DataError(
            f"more than 8 bits a channel: {path}: mode {picture.mode}. Export the image with 8 bits a channel."
        )
    wanted = {1: "L", 3: "RGB"}[channels]
    if picture.mode != wanted:
        # Palette images may carry transparency; through RGBA its index never turns into a colour.
        picture = picture.convert("RGBA") if picture.mode in ("P", "PA", "LA", "RGBA") else picture
        picture = picture.convert(wanted)
    array = np.asarray(picture, dtype=np.uint8)
    return array.reshape(array.shape[0], array.shape[1], channels)


def read_mask_values(path: Path) -> npt.NDArray[np.int64]:
    """Read a mask's pixel values, (H, W): palette images give their indices, 1-bit images 0 and 1."""
    picture = open_picture(path, "mask")
    _refuse_deep_colour(picture, path, "mask")
    if picture.mode not in MASK_MODES:
        raise DataError(
            f"a mask of another kind: {path}: mode {picture.mode}. Export it as an index image, a whole number a pixel."
        )
    if picture.mode == "1":
        picture = picture.convert("L").point([min(value, 1) for value in range(256)])
    if picture.mode in ("RGB", "RGBA", "LA"):
        values = np.asarray(picture)
        colours = values[..., :3] if picture.mode != "LA" else values[..., :1]
        if (colours != colours[..., :1]).any():
            raise DataError(
                f"mask is a colour image: {path}: mode {picture.mode}. Export it as an index image, a number a pixel."
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


def read_mask(paths: Sequence[Path], class_map: ClassMap) -> Array:
    """Read and encode a sample's mask: one file for multiclass, one file per class, in order, for multilabel."""
    if class_map.kind == "multiclass":
        return encode_mask(read_mask_values(paths[0]), class_map, where=str(paths[0]))
    planes = [
        encode_plane(read_mask_values(path), value, where=str(path))
        for path, value in zip(paths, class_map.classes.values(), strict=True)
    ]
    shapes = {plane.shape for plane in planes}
    if len(shapes) > 1:
        raise DataError(f"masks of one image differ in size: {paths[0]}: {sorted(shapes)}. Export them again.")
    return np.stack(planes, axis=-1)


def read_sample(key: str, image: Path, masks: Sequence[Path], class_map: ClassMap, *, channels: int) -> Sample:
    """Read one image-mask pair and check that they belong together; DataError says what is wrong."""
    pixels = read_image(image, channels=channels)
    encoded = read_mask(masks, class_map)
    if pixels.shape[:2] != encoded.shape[:2]:
        raise DataError(
            f"mask size differs from image: {key}: image {pixels.shape[1]}x{pixels.shape[0]}, "
            f"mask {encoded.shape[1]}x{encoded.shape[0]}. Export the mask again, or remove the pair."
        )
    return Sample(key=key, image=pixels, mask=encoded)


def count_class_pixels(mask: Array, class_map: ClassMap) -> tuple[int, ...]:
    """Pixels of each class in an encoded mask."""
    if class_map.kind == "multilabel":
        return tuple(int(count) for count in mask.sum(axis=(0, 1), dtype=np.int64))
    counts = np.bincount(mask.ravel(), minlength=256)
    return tuple(int(counts[index]) for index in range(class_map.num_classes))


def _some(values: list[int]) -> str:
    shown = ", ".join(str(value) for value in values[:8])
    return f"{shown} and {len(values) - 8} more" if len(values) > 8 else shown
