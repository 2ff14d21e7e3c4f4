"""Image files -> arrays: the only place that decodes them.

A file comes as its bytes, wherever it lies; what can't be read as the recipe says is a DataError that names the file.

PNG, and the strips of TIFF compressed by deflate, carry checksums: damage there is refused, or decodes to the same
pixels. BMP, GIF, JPEG, WebP and other TIFF carry none; no decoder can tell a changed pixel from a drawn one. That is
why the ledger records the sha256 of every file, and the stages compare it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from unet_core.decode import decode
from unet_core.errors import DataError
from unet_core.picture import Picture, Pixels, UnusableError
from unet_core.samples import ImageConfig

__all__ = ["FileBytes", "ImageConfig", "convert_image", "read_image", "read_picture"]

#: How many values are scaled at a time, so that a large image needs no copy of itself in float64.
BLOCK = 2**22


@dataclass(frozen=True, kw_only=True)
class FileBytes:
    """A file's content, and its name for messages."""

    name: str
    data: bytes


def read_picture(file: FileBytes, what: str, page: int | None = None) -> Picture:
    """Decode a file; DataError says why it can't be read, whatever the decoder raised."""
    try:
        return decode(file.data, page)
    except UnusableError as error:
        raise DataError(f"{what} {error.reason}: {file.name}: {error.detail}. {error.remedy}") from error
    except Exception as error:
        # Decoders raise all kinds of errors on damage: struct.error, IndexError, MemoryError, their own.
        raise DataError(
            f"{what} can't be read: {file.name}: {str(error).rstrip('.') or repr(error)}. "
            "Export the file again, or remove the sample."
        ) from error


def read_image(file: FileBytes, config: ImageConfig) -> npt.NDArray[np.uint8 | np.uint16]:
    """Read an image as (H, W, channels), uint8 or uint16 as `config.bits` says; the orientation tag is obeyed.

    Gray and RGB convert into each other, alpha is dropped. Raises DataError for a file that can't be read, and for more
    than 8 bits a channel where the recipe does not say what is black and what is white.
    """
    return convert_image(read_picture(file, "image", config.page), config, where=file.name)


def convert_image(
    picture: Picture, config: ImageConfig, *, where: str, limits: tuple[float, float] | None = None
) -> npt.NDArray[np.uint8 | np.uint16]:
    """What `read_image` gives, from a picture that is decoded already.

    Where the picture is a part of an image, `limits` are the values of the whole at the percentiles of `config`.
    """
    pixels = picture.pixels
    is_plain = pixels.dtype == np.uint8 and picture.bits <= 8
    if not is_plain and config.value_range is None and config.percentiles is None:
        raise DataError(
            f"more than 8 bits a channel: {where}: {pixels.dtype}, values {pixels.min()} to {pixels.max()}. Say what "
            "is black and white: images.value_range: [low, high] for all, or images.percentiles: [1, 99] of each image."
        )
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise DataError(f"image has values that are no numbers: {where}: NaN or infinity. Export it without.")
    pixels = pick_channels(picture, config, where=where)
    if config.value_range is not None:
        pixels = _scale(pixels, *config.value_range, white=config.white)
    elif config.percentiles is not None:
        low, high = limits or np.percentile(pixels, config.percentiles, method="inverted_cdf")
        pixels = _scale(pixels, float(low), float(high), white=config.white)
    elif config.bits == 16:
        pixels = pixels.astype(np.uint16) * 257  # 255 becomes 65535
    return np.ascontiguousarray(pixels)


def pick_channels(picture: Picture, config: ImageConfig, *, where: str) -> Pixels:
    """The picture's values in as many channels as the recipe says, not scaled yet."""
    return _as_channels(_as_gray_levels(picture), picture, config.channels, where)


def _as_gray_levels(picture: Picture) -> Pixels:
    """Palette indices become colours, fewer than 8 bits are spread over 0 to 255."""
    if picture.palette is not None:
        return picture.palette[picture.pixels[..., 0]]
    return picture.pixels * np.uint8(255 // (2**picture.bits - 1)) if picture.bits < 8 else picture.pixels


def _as_channels(pixels: Pixels, picture: Picture, channels: int, where: str) -> Pixels:
    if pixels.shape[2] == channels and picture.colour == "channels":
        return pixels
    # Four channels asked for are all four: another sensor's band is often stored as alpha.
    if picture.has_alpha and not (channels not in (1, 3) and pixels.shape[2] == channels):
        pixels = pixels[..., :-1]
    found = pixels.shape[2]
    if found == channels:
        return pixels
    if picture.colour != "channels" and channels == 3 and found == 1:
        return np.repeat(pixels, 3, axis=2)
    if picture.colour != "channels" and channels == 1 and found == 3:
        return _luma(pixels)
    raise DataError(
        f"wrong number of channels: {where}: {found}, expected {channels} (the recipe's images.channels, or the "
        f"model's). Export the image with as many, or train with images.channels: {found}."
    )


def _luma(pixels: Pixels) -> Pixels:
    """Gray of a colour image (ITU-R BT.601), (H, W, 1); gray content keeps its exact values."""
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[..., None]
    if pixels.dtype.kind == "f":
        gray = pixels @ np.array([0.299, 0.587, 0.114])
        return np.where((pixels == pixels[..., :1]).all(axis=2), pixels[..., 0], gray)[..., None]
    # Pillow's own fractions of 65536, in whole numbers.
    gray = (pixels.astype(np.int64) @ np.array([19595, 38470, 7471]) + 32768) >> 16
    return gray.astype(pixels.dtype)[..., None]


def _scale(pixels: Pixels, low: float, high: float, *, white: int) -> Pixels:
    """From low, 0, to high, white; cut beyond, rounded. Of a constant image (both are one) all is 0."""
    dtype = np.uint8 if white == 255 else np.uint16
    if pixels.dtype in (np.uint8, np.uint16):
        return _scale_values(np.arange(np.iinfo(pixels.dtype).max + 1), low, high, white).astype(dtype)[pixels]
    scaled = np.empty(pixels.shape, dtype=dtype)
    flat, source = scaled.reshape(-1), np.ascontiguousarray(pixels).reshape(-1)
    for start in range(0, flat.size, BLOCK):
        block = slice(start, start + BLOCK)
        flat[block] = _scale_values(source[block], low, high, white)
    return scaled


def _scale_values(values: Pixels, low: float, high: float, white: int) -> npt.NDArray[np.float64]:
    if high <= low:
        return np.where(values > low, float(white), 0.0)
    fraction = (values.astype(np.float64) - low) / (high - low)
    return np.floor(np.clip(fraction, 0, 1) * white + 0.5)
