"""Bytes of an image file -> its pixels as stored. The content decides what it is, never the name's ending.

PNG, JPEG, BMP, WebP, GIF by Pillow, which is allowed these formats only, so that no file reaches its rarer decoders;
TIFF and plain PNG by others, since Pillow would cut 16-bit colour to 8 bits.
"""

import io
import warnings
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from unet_core.picture import Picture, Pixels, UnusableError, as_palette, check_size, choose_page, is_turned, orient
from unet_core.png import SIGNATURE, PngHeader, check_png, decode_plain_png
from unet_core.tiff import decode_tiff, describe_tiff, measure_tiff

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: How a file of each format begins, and the ending that its name would have.
ENDINGS = {
    **dict.fromkeys(TIFF_SIGNATURES, "tif"),
    SIGNATURE: "png",
    b"\xff\xd8": "jpg",
    b"BM": "bmp",
    b"RIFF": "webp",
    b"GIF8": "gif",
}
ORIENTATION = 274
#: Pillow's modes, in words.
MODES = {"1": "gray", "L": "gray", "LA": "gray and alpha", "P": "palette", "I;16": "gray"}

# A file cut short must be an error, whatever another library of this process has asked of Pillow.
ImageFile.LOAD_TRUNCATED_IMAGES = False
# Our own limit is checked with each header; Pillow's would refuse large scans.
Image.MAX_IMAGE_PIXELS = None
# Odd metadata is no matter for stderr. A filter of one call would not do: it is not safe with threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(data: bytes, page: int | None) -> Picture:
    """One page of a file. Raises UnusableError, or whatever the decoder raises on damage."""
    if not data:
        raise ValueError("the file is empty")
    if data.startswith(TIFF_SIGNATURES):
        return decode_tiff(data, page)
    header = check_png(data) if data.startswith(SIGNATURE) else None
    if header is not None and header.is_plain:
        choose_page(1, page)
        return _decode_plain_png(data, header)
    with _open(data) as picture:
        check_size(width=picture.width, height=picture.height, channels=len(picture.getbands()))
        # A phone's JPEG may hold a second frame (MPO: a depth map, a preview); the photograph is the first.
        num_pages = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
        number = choose_page(num_pages, page)
        if number:
            picture.seek(number)
        picture.load()
        return _interpret(picture, header)


def measure(data: bytes) -> tuple[int, int]:
    """Width and height of the first page, from its header; raises for bombs, and what the decoder raises on damage."""
    if data.startswith(TIFF_SIGNATURES):
        width, height = measure_tiff(data)
    else:
        with _open(data) as picture:
            width, height = picture.size
    check_size(width=width, height=height)
    return width, height


def file_ending(data: bytes) -> str:
    """The ending by which other programs know such a file, from its content; "" for none of ours."""
    return next((ending for signature, ending in ENDINGS.items() if data.startswith(signature)), "")


def _decode_plain_png(data: bytes, header: PngHeader) -> Picture:
    picture = decode_plain_png(data, header)
    if not header.has_metadata:
        return picture
    with _open(data) as about:
        orientation = about.getexif().get(ORIENTATION, 1)
    return replace(picture, pixels=orient(picture.pixels, orientation), is_turned=is_turned(orientation))


def describe(data: bytes) -> str:
    """What an image file is, from its header, for people: "PNG, RGBA, 8 bits" or "TIFF, 3 x uint16"."""
    try:
        if data.startswith(TIFF_SIGNATURES):
            return describe_tiff(data)
        with _open(data) as picture:
            bits = data[24] if picture.format == "PNG" else 1 if picture.mode == "1" else 8
            return f"{picture.format}, {MODES.get(picture.mode, picture.mode)}, {bits} bit{'s' if bits > 1 else ''}"
    except Exception:
        # The page that the recipe asks for may be sound where the first one is not.
        return "unknown"


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError("it is no PNG, JPEG, TIFF, BMP, WebP or GIF file, or its header is damaged") from error


def _interpret(picture: Image.Image, header: PngHeader | None) -> Picture:
    orientation = picture.getexif().get(ORIENTATION, 1)
    plain = _plain(picture, header)
    return replace(plain, pixels=orient(plain.pixels, orientation), is_turned=is_turned(orientation))


def _plain(picture: Image.Image, header: PngHeader | None) -> Picture:
    match picture.mode:
        case "1":
            return Picture(pixels=_pixels(picture).astype(np.uint8), colour="gray", bits=1)
        case "L":
            pixels = _pixels(picture)
            if header is None or header.bits == 8:
                return Picture(pixels=pixels, colour="gray", bits=8)
            # Pillow has spread 2 or 4 bits over 0 to 255; a mask means the number that is stored.
            return Picture(pixels=pixels // (255 // (2**header.bits - 1)), colour="gray", bits=header.bits)
        case "LA":
            return Picture(pixels=_pixels(picture), colour="gray", bits=8, has_alpha=True)
        case "P":
            colours = np.array(picture.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
            if picture.format == "GIF" and (colours == colours[:, :1]).all():
                # GIF has no gray but this: its writers number the levels that occur, and mean the levels.
                return Picture(pixels=as_palette(colours)[_pixels(picture)[..., 0]][..., :1], colour="gray", bits=8)
            return Picture(pixels=_pixels(picture), colour="palette", bits=8, palette=as_palette(colours))
        case "RGB":
            return Picture(pixels=_pixels(picture), colour="rgb", bits=8)
        case "RGBA":
            return Picture(pixels=_pixels(picture), colour="rgb", bits=8, has_alpha=True)
        case "CMYK":
            return Picture(pixels=_pixels(picture.convert("RGB")), colour="cmyk", bits=8)
    raise UnusableError("has colours that we don't read", f"mode {picture.mode}", "Export it as gray or RGB.")


def _pixels(picture: Image.Image) -> Pixels:
    array = np.asarray(picture)
    return array.reshape(array.shape[0], array.shape[1], -1)
