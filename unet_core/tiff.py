"""TIFF files: pages, both byte orders, any depth, channels contiguous or in planes, the usual compressions."""

import io
import logging
import math
import mmap
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tifffile
from PIL import Image

from unet_core.picture import Picture, Pixels, UnusableError, as_palette, check_size, choose_page, is_turned, orient

# It logs what it finds odd in a file and reads on; what matters is checked here, and the rest is not for stderr.
logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)

#: none, CCITT groups 3 and 4, LZW, JPEG, deflate (two numbers), PackBits, Zstandard. A hostile file shall not choose
#: among the dozens of decoders that would be installed.
COMPRESSIONS = frozenset({1, 3, 4, 5, 7, 8, 32773, 32946, 50000})
#: Bytes out of one byte, at most: none, LZW, deflate, PackBits.
LARGEST_RATIO = {1: 1, 5: 2000, 8: 1040, 32773: 64, 32946: 1040}
MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, MASK, SEPARATED, YCBCR = range(7)
ALPHA = frozenset({1, 2})
SUBFILE_TYPE, SHORT = 254, 3

Buffer = bytes | mmap.mmap


def decode_tiff(data: bytes, page: int | None) -> Picture:
    """One page of a TIFF file; thumbnails (reduced copies of a page) are no pages."""
    layout = Layout.of(data)
    directories = find_directories(data, layout)
    pages = [place for place, is_thumbnail in directories if not is_thumbnail] or [place for place, _ in directories]
    place = pages[choose_page(len(pages), page)]
    if place != directories[0][0]:
        # tifffile would read every directory on the way: let the file begin with the chosen one.
        pointer = struct.pack(layout.offset, place)
        data = data[: layout.first] + pointer + data[layout.first + len(pointer) :]
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        chosen = file.pages.first
        check_page(chosen, len(data))
        pixels = _as_rows_columns_channels(chosen, chosen.asarray(maxworkers=1))
        orientation = chosen.tags.valueof(274, 1)
        return interpret(chosen, pixels, orientation if isinstance(orientation, int) else 1)


def describe_tiff(data: bytes) -> str:
    """What a TIFF file that can be decoded is, from its first page."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        return f"TIFF, {page.samplesperpixel} x {page.dtype}"


def measure_tiff(data: bytes) -> tuple[int, int]:
    """Width and height of the first page, from its header."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        return page.imagewidth, page.imagelength


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a TIFF's directories are written: formats of `struct`, with the byte order."""

    first: int
    """Where the first directory's place stands."""
    offset: str
    count: str
    entry: str
    """A tag's number, type, count and value."""
    short: str

    @classmethod
    def of(cls, data: Buffer) -> "Layout":
        order = "<" if data[:2] == b"II" else ">"
        if 43 in data[2:4]:  # BigTIFF
            return cls(first=8, offset=f"{order}Q", count=f"{order}Q", entry=f"{order}HHQ8s", short=f"{order}H")
        return cls(first=4, offset=f"{order}I", count=f"{order}H", entry=f"{order}HHI4s", short=f"{order}H")


def find_directories(data: Buffer, layout: Layout) -> list[tuple[int, bool]]:
    """Place of each page's directory, and whether it is a thumbnail, a reduced copy of another.

    Directories that overlap or lie outside the file are refused: a few bytes could else claim thousands of pages with
    thousands of tags each, and reading would take hours.
    """
    found: list[tuple[int, bool]] = []
    num_bytes = 0
    (place,) = struct.unpack_from(layout.offset, data, layout.first)
    while place:
        (num_tags,) = struct.unpack_from(layout.count, data, place)
        start, size = place + struct.calcsize(layout.count), struct.calcsize(layout.entry)
        end = start + num_tags * size
        num_bytes += end - place
        if num_bytes > len(data) or end > len(data):
            raise ValueError("TIFF directories are damaged")
        tags = struct.iter_unpack(layout.entry, data[start:end])
        # A LONG or a SHORT at the start of the value, by byte order; the low bit says reduced.
        kinds = [
            struct.unpack_from(layout.short if kind == SHORT else layout.short[0] + "I", value)[0]
            for number, kind, _, value in tags
            if number == SUBFILE_TYPE
        ]
        found.append((place, bool(kinds) and bool(kinds[0] & 1)))
        (place,) = struct.unpack_from(layout.offset, data, end)
    if not found:
        raise ValueError("TIFF file without a page")
    return found


def check_page(page: tifffile.TiffPage, num_bytes: int) -> None:
    """The header's claims must be possible in a file of so many bytes: else missing parts would be read as zeros."""
    if page.compression not in COMPRESSIONS:
        raise UnusableError(
            "is compressed in a way that we don't read",
            f"TIFF compression {page.compression!s}",
            "Export it with LZW, deflate, or none.",
        )
    if page.imagedepth != 1 or page.dtype is None:
        raise UnusableError("is no plain image", f"{page.imagedepth} planes in depth", "Export a plane a page.")
    check_size(
        width=page.imagewidth,
        height=page.imagelength,
        channels=page.samplesperpixel,
        bytes_per_value=page.dtype.itemsize,
    )
    places, lengths = page.dataoffsets, page.databytecounts
    if len(places) < math.prod(page.chunked) or len(places) != len(lengths):
        raise ValueError("TIFF strips are missing")
    for place, length in zip(places, lengths, strict=True):
        if length < 1 or place < 8 or place + length > num_bytes:
            raise ValueError("TIFF file is truncated, or its strips lie elsewhere")
    expected = math.prod((page.imagewidth, page.imagelength, page.samplesperpixel, page.bitspersample)) // 8
    if int(page.compression) in LARGEST_RATIO and sum(lengths) * LARGEST_RATIO[int(page.compression)] < expected:
        raise ValueError("TIFF file is truncated, or its header claims more pixels than it has")


def _as_rows_columns_channels(page: tifffile.TiffPage, pixels: Pixels) -> Pixels:
    """Any order of axes -> (H, W, C) in this machine's byte order."""
    kept = page.axes
    if set(kept) - set("YXS") or pixels.ndim != len(kept):
        raise UnusableError("is no plain image", f"TIFF axes {kept}", "Export it as rows, columns and channels.")
    if "S" not in kept:
        pixels, kept = pixels[..., None], kept + "S"
    pixels = pixels.transpose([kept.index(axis) for axis in "YXS"])
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def interpret(page: tifffile.TiffPage, pixels: Pixels, orientation: int) -> Picture:
    """What (H, W, C) pixels of a page mean, be they all or some of its rows."""
    photometric, bits, channels = int(page.photometric), int(page.bitspersample), pixels.shape[2]
    has_alpha = bool(page.extrasamples) and int(page.extrasamples[-1]) in ALPHA
    num_colours = channels - has_alpha
    palette = None
    colour: Literal["gray", "rgb", "palette", "cmyk", "channels"] = "channels"
    if photometric in (MIN_IS_WHITE, MIN_IS_BLACK, MASK) and num_colours == 1:
        colour = "gray"
    elif (photometric == RGB and num_colours == 3) or (photometric == YCBCR and page.compression == 7):
        # JPEG's own conversion has already made RGB.
        colour = "rgb"
    elif photometric == PALETTE and channels == 1 and page.colormap is not None:
        colour = "palette"
        palette = as_palette((page.colormap.T >> 8).astype(np.uint8))
    elif photometric == SEPARATED and channels == 4 and bits == 8:
        colour, has_alpha = "cmyk", False
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels), "CMYK").convert("RGB"))
    elif photometric not in (MIN_IS_BLACK, RGB):
        raise UnusableError(
            "has colours that we don't read",
            f"TIFF photometric interpretation {page.photometric!s} with {channels} channels",
            "Export it as gray or RGB.",
        )
    if photometric == MIN_IS_WHITE:
        pixels = _invert(pixels, bits)
    return Picture(
        pixels=orient(pixels, orientation),
        colour=colour,
        bits=bits,
        has_alpha=has_alpha,
        palette=palette,
        is_turned=is_turned(orientation),
    )


def _invert(pixels: Pixels, bits: int) -> Pixels:
    if bits > 8:
        raise UnusableError(
            "counts its gray backwards", f"TIFF min-is-white with {bits} bits", "Export it with black as 0."
        )
    return (2**bits - 1) - pixels
