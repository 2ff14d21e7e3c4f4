"""A large TIFF file -> rows as the model takes them, without the whole image in memory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unet_core.decode import TIFF_SIGNATURES
from unet_core.errors import DataError
from unet_core.images import convert_image, pick_channels
from unet_core.picture import Picture, UnusableError
from unet_core.samples import Array, ImageConfig
from unet_core.tiff_rows import TiffRows, open_tiff_rows

#: Rows that are read at a time to count values.
COUNTED_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class FileRows:
    """Rows of an open file, converted as `read_image` converts whole images."""

    rows: TiffRows
    config: ImageConfig
    where: str
    limits: tuple[float, float] | None
    """What becomes black and white, where the recipe asks for percentiles of the image."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width, channels."""
        return self.rows.height, self.rows.width, self.config.channels

    def read_rows(self, top: int, bottom: int) -> Array:
        """Rows from `top` to before `bottom`, (bottom - top, W, channels); DataError for a damaged part of the file."""
        return convert_image(
            _read(self.rows, top, bottom, self.where), self.config, where=self.where, limits=self.limits
        )


@contextmanager
def open_image_rows(
    path: Path, config: ImageConfig, *, min_pixels: int, where: str | None = None
) -> Iterator[FileRows | None]:
    """The rows of a TIFF file of more than `min_pixels`; None for any other file, and one that must be read whole.

    Percentiles of the whole image are counted first, in a pass of its own. Raises DataError where `read_image` does;
    it calls the file `where`, by default its path.
    """
    where = where or str(path)
    with path.open("rb") as stream:
        is_tiff = stream.read(4).startswith(TIFF_SIGNATURES)
    if not is_tiff:
        yield None
        return
    with _open(path, where) as rows:
        if rows is None or rows.height * rows.width <= min_pixels:
            yield None
            return
        limits = None
        if config.percentiles is not None:
            if rows.page.dtype not in (np.uint8, np.uint16):
                yield None
                return
            limits = _count_limits(rows, config, where)
        yield FileRows(rows=rows, config=config, where=where, limits=limits)


@contextmanager
def _open(path: Path, where: str) -> Iterator[TiffRows | None]:
    with ExitStack() as opened:
        with _foreseen(where):
            rows = opened.enter_context(open_tiff_rows(path))
        yield rows


def _read(rows: TiffRows, top: int, bottom: int, where: str) -> Picture:
    with _foreseen(where):
        return rows.read(top, bottom)


@contextmanager
def _foreseen(where: str) -> Iterator[None]:
    """What can be wrong with a file, told as `read_picture` tells it."""
    try:
        yield
    except UnusableError as error:
        raise DataError(f"image {error.reason}: {where}: {error.detail}. {error.remedy}") from error
    except OSError:
        raise
    except Exception as error:
        raise DataError(
            f"image can't be read: {where}: {str(error).rstrip('.') or repr(error)}. Export the file again."
        ) from error


def _count_limits(rows: TiffRows, config: ImageConfig, where: str) -> tuple[float, float]:
    """Values at the percentiles of the whole image, as numpy's inverted_cdf gives them: the first that reaches them."""
    assert config.percentiles is not None
    counts = np.zeros(2**16, dtype=np.int64)
    for top in range(0, rows.height, COUNTED_ROWS):
        part = _read(rows, top, min(rows.height, top + COUNTED_ROWS), where)
        counts += np.bincount(pick_channels(part, config, where=where).ravel(), minlength=len(counts))
    reached = counts.cumsum()
    low, high = (_first_reaching(reached, percentile) for percentile in config.percentiles)
    return low, high


def _first_reaching(reached: npt.NDArray[np.int64], percentile: float) -> float:
    # As numpy finds it: the smallest rank whose share of all is at least the percentile's.
    return float(np.searchsorted(reached, max(1.0, np.ceil(percentile / 100 * reached[-1]))))
