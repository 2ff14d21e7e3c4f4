"""Rows of a TIFF file that is too large to be decoded at once: only the strips or tiles that hold them are read."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from unet_core.picture import Picture, Pixels
from unet_core.tiff import Layout, check_page, find_directories, interpret

#: The most that one strip or tile may hold, decoded, in bytes; a larger one is as good as the whole image.
MAX_SEGMENT_BYTES = 2**26
PLAIN, CONTIGUOUS, UPRIGHT, ORIENTATION = 1, 1, 1, 274


@dataclass(frozen=True)
class TiffRows:
    """An open file whose page is upright, its channels side by side, in strips or tiles of a bearable size."""

    page: tifffile.TiffPage

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.page.imagelength)

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.page.imagewidth)

    def read(self, top: int, bottom: int) -> Picture:
        """Rows from `top` to before `bottom`; raises what a decoder raises on damage."""
        shape = (bottom - top, self.width, int(self.page.samplesperpixel))
        if _is_one_piece(self.page):
            pixels = self._read_plain(top, shape)
        else:
            pixels = np.zeros(shape, dtype=self.page.dtype)
            for number in self._segments(top, bottom):
                self._place_segment(pixels, number, top)
        return interpret(self.page, pixels.astype(pixels.dtype.newbyteorder("="), copy=False), UPRIGHT)

    def _read_plain(self, top: int, shape: tuple[int, int, int]) -> Pixels:
        dtype = self.page.dtype.newbyteorder(self.page.parent.byteorder)
        file, row_bytes = self.page.parent.filehandle, shape[1] * shape[2] * dtype.itemsize
        file.seek(self.page.dataoffsets[0] + top * row_bytes)
        return np.frombuffer(file.read(shape[0] * row_bytes), dtype=dtype).reshape(shape)

    def _segments(self, top: int, bottom: int) -> Iterator[int]:
        """Numbers of the strips or tiles with these rows."""
        rows, across = self.page.chunks[0], self.page.chunked[1]
        yield from range(top // rows * across, ((bottom - 1) // rows + 1) * across)

    def _place_segment(self, pixels: Pixels, number: int, top: int) -> None:
        file = self.page.parent.filehandle
        file.seek(self.page.dataoffsets[number])
        data = file.read(self.page.databytecounts[number])
        decoded, place, size = self.page.decode(
            data, number, jpegtables=self.page.jpegtables, jpegheader=self.page.jpegheader
        )
        if decoded is None:
            raise ValueError(f"TIFF strip or tile {number} is empty")
        first_row, first_column = place[2], place[3]
        # What lies above the rows, and what fills a tile up beyond the image's edge, is left out.
        above = max(0, top - first_row)
        target = pixels[first_row + above - top :, first_column:][: size[1] - above, : size[2]]
        source = decoded[0, above:]
        target[:] = source[: target.shape[0], : target.shape[1]]


@contextmanager
def open_tiff_rows(path: Path) -> Iterator[TiffRows | None]:
    """The rows of a file's only page; None where they can't be had without the rest, or the file has several pages.

    Checks what decode_tiff checks: raises UnusableError, or whatever the decoder raises on damage.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        directories = find_directories(data, Layout.of(data))
        num_bytes = len(data)
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        check_page(page, num_bytes)
        yield TiffRows(page) if len(directories) == 1 and _gives_rows(page) else None


def _gives_rows(page: tifffile.TiffPage) -> bool:
    is_upright = page.tags.valueof(ORIENTATION, UPRIGHT) == UPRIGHT
    is_flat = set(page.axes) <= set("YXS") and page.axes in ("YX", "YXS") and page.planarconfig == CONTIGUOUS
    whole_bytes = int(page.bitspersample) % 8 == 0
    is_bearable = np.prod(page.chunks, dtype=np.int64) * page.dtype.itemsize <= MAX_SEGMENT_BYTES
    return bool(is_upright and is_flat and whole_bytes and (is_bearable or _is_one_piece(page)))


def _is_one_piece(page: tifffile.TiffPage) -> bool:
    """Whether the pixels lie in the file as they do in memory, row after row."""
    return page.compression == PLAIN and bool(page.is_contiguous)
