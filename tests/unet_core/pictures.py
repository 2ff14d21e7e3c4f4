"""Picture files as bytes, of every format and depth, for the tests of what reads them."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from unet_core.images import FileBytes

GRAY = np.array([[0, 50, 100], [150, 200, 255]], dtype=np.uint8)
COLOUR = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=-1)
ALPHA = np.full_like(GRAY, 128)


def noise(height: int = 24, width: int = 20, channels: int = 3, *, dtype: Any = np.uint8) -> npt.NDArray[Any]:
    """Pixels that no compression makes small, the same in each run."""
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype)
    return values[..., 0] if channels == 1 else values


def stored(picture: Image.Image | npt.NDArray[Any], form: str = "PNG", **options: Any) -> bytes:
    """A picture as Pillow writes it."""
    stream = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(stream, form, **options)
    return stream.getvalue()


def tiff(pixels: npt.NDArray[Any], **options: Any) -> bytes:
    """A picture as tifffile writes it."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **({"photometric": "minisblack", "metadata": None} | options))
    return stream.getvalue()


def named(data: bytes, name: str = "scan.png") -> FileBytes:
    """Bytes as a file."""
    return FileBytes(name=name, data=data)


def png(*, width: int, height: int, bits: int, colour_type: int, rows: bytes, before: bytes = b"") -> bytes:
    """A PNG by hand, for what Pillow does not write. `rows`: raw pixels, each row begun with a zero byte."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG with its checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def deep_png(pixels: npt.NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits with 1 to 4 channels, (H, W, C)."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png(width=width, height=height, bits=16, colour_type={1: 0, 2: 4, 3: 2, 4: 6}[channels], rows=rows)


def every_format() -> dict[str, bytes]:
    """A valid file of every format and depth, by name."""
    colour, gray, deep = noise(), noise(channels=1), noise(dtype=np.uint16)
    palette = Image.fromarray(colour).quantize(32)
    exif = Image.Exif()
    exif[274] = 6
    return {
        "rgb.png": stored(colour),
        "gray.png": stored(gray),
        "rgba.png": stored(noise(channels=4)),
        "palette.png": stored(palette),
        "bits.png": stored(Image.fromarray(gray > 127)),
        "deep_gray.png": stored(noise(channels=1, dtype=np.uint16)),
        "deep_rgb.png": deep_png(deep),
        "turned.jpg": stored(colour, "JPEG", exif=exif),
        "progressive.jpg": stored(colour, "JPEG", progressive=True),
        "cmyk.jpg": stored(Image.fromarray(colour).convert("CMYK"), "JPEG"),
        "rgb.bmp": stored(colour, "BMP"),
        "palette.bmp": stored(palette, "BMP"),
        "gray.gif": stored(gray, "GIF"),
        "palette.gif": stored(palette, "GIF"),
        "lossless.webp": stored(colour, "WEBP", lossless=True),
        "lossy.webp": stored(colour, "WEBP", quality=80),
        "plain.tif": tiff(colour, photometric="rgb"),
        "lzw.tif": tiff(colour, photometric="rgb", compression="lzw", predictor=True),
        "deflate.tif": tiff(colour, photometric="rgb", compression="zlib", rowsperstrip=7),
        "packbits.tif": stored(colour, "TIFF", compression="packbits"),
        "group4.tif": stored(Image.fromarray(gray > 127), "TIFF", compression="group4"),
        "jpeg.tif": tiff(colour, photometric="rgb", compression="jpeg"),
        "big_endian.tif": tiff(colour, photometric="rgb", byteorder=">"),
        "tiles.tif": tiff(gray, tile=(16, 16), compression="zlib"),
        "deep.tif": tiff(deep, photometric="rgb", compression="lzw"),
        "planes.tif": tiff(np.moveaxis(deep, 2, 0), planarconfig="separate", photometric="rgb"),
        "fractions.tif": tiff(gray / np.float32(255)),
        "big.tif": tiff(gray, bigtiff=True),
    }
