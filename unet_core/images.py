"""Image files -> arrays: the only place that decodes them.

A file comes as its bytes, wherever it lies; what can't be read as the recipe says is a DataError that names the file.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from unet_core.errors import DataError
from unet_core.samples import Array


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Recipe section `images`: how image files become arrays."""

    channels: int
    """What images are read as: 1 gray, 3 RGB, another number for TIFF with as many channels."""


@dataclass(frozen=True, kw_only=True)
class FileBytes:
    """A file's content, and its name for messages."""

    name: str
    data: bytes


def open_picture(file: FileBytes, what: str) -> Image.Image:
    """Open an image file completely, or raise DataError that says why it can't be read."""
    try:
        picture = Image.open(io.BytesIO(file.data))
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{what} can't be read: {file.name}: {error}. Export the file again, or remove the sample."
        ) from error
    num_pages = getattr(picture, "n_frames", 1)
    if num_pages > 1:
        raise DataError(
            f"{what} has {num_pages} pages: {file.name}. Export the page that you mean as a file of its own."
        )
    return picture


def refuse_deep_colour(picture: Image.Image, file: FileBytes, what: str) -> None:
    """Pillow cuts 16-bit colour to 8 bits without a word; the depth stands in a PNG's byte 24 and a TIFF's tag 258."""
    head = file.data[:26]
    is_png = head[:8] == b"\x89PNG\r\n\x1a\n"
    tags = getattr(picture, "tag_v2", {})
    deepest = head[24] if is_png else max(np.atleast_1d(tags.get(258, 8)))
    if deepest > 8 and picture.mode not in ("F", "I", "I;16", "I;16B", "I;16L"):
        raise DataError(f"more than 8 bits a channel: {what} {file.name}: {deepest}. Export it with 8 bits a channel.")


def read_image(file: FileBytes, config: ImageConfig) -> Array:
    """Read an image as (H, W, channels) uint8; gray and RGB convert into each other, alpha is dropped.

    Raises DataError for a file that can't be read and for more than 8 bits a channel, since how to scale
    those is a decision that we must not take silently.
    """
    picture = open_picture(file, "image")
    refuse_deep_colour(picture, file, "image")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        raise DataError(
            f"more than 8 bits a channel: {file.name}: mode {picture.mode}. Export the image with 8 bits a channel."
        )
    wanted = {1: "L", 3: "RGB"}[config.channels]
    if picture.mode != wanted:
        # Palette images may carry transparency; through RGBA its index never turns into a colour.
        picture = picture.convert("RGBA") if picture.mode in ("P", "PA", "LA", "RGBA") else picture
        picture = picture.convert(wanted)
    array = np.asarray(picture, dtype=np.uint8)
    return array.reshape(array.shape[0], array.shape[1], config.channels)
