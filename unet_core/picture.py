"""What a decoder gives: pixels as they are stored, and what they mean. Images and masks are made from it."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]

#: Larger pictures are refused before they are decoded. A scan of 20,000 x 20,000 passes; what a small file can claim
#: beyond that is a decompression bomb.
MAX_PIXELS = 2**29
#: The same for the decoded bytes, since a file may claim many channels.
MAX_BYTES = 2**32


class UnusableError(Exception):
    """A picture that can't be used as it is: what is wrong, what we got, and what to do."""

    def __init__(self, reason: str, detail: str, remedy: str) -> None:
        super().__init__(f"{reason}: {detail}. {remedy}")
        self.reason = reason
        self.detail = detail
        self.remedy = remedy


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One page of a file, turned as its orientation tag says."""

    pixels: Pixels
    """(H, W, C) as stored, alpha included; fewer than 8 bits lie in uint8, unscaled."""
    colour: Literal["gray", "rgb", "palette", "cmyk", "channels"]
    """cmyk: four inks, already converted to RGB; channels: numbers that are no colours."""
    bits: int
    """Bits a channel."""
    has_alpha: bool = False
    """The last channel is alpha."""
    palette: npt.NDArray[np.uint8] | None = None
    """(256, 3) RGB."""
    is_turned: bool = False
    """Width and height are exchanged, by the orientation tag."""


def check_size(*, width: int, height: int, channels: int = 1, bytes_per_value: int = 1) -> None:
    """Refuse what would fill the memory; called with a header's claims, before anything is decoded."""
    if width < 1 or height < 1:
        raise UnusableError("is empty", f"{width}x{height} pixels", "Export the file again, or remove the sample.")
    num_bytes = width * height * channels * bytes_per_value
    if width * height > MAX_PIXELS or num_bytes > MAX_BYTES:
        raise UnusableError(
            "is too large",
            f"it claims {width}x{height} pixels and {num_bytes / 1e6:,.0f} MB; {MAX_PIXELS / 1e6:,.0f} million pixels "
            f"and {MAX_BYTES / 1e6:,.0f} MB are allowed, beyond that it is taken for a decompression bomb",
            "Cut it into parts, or remove the sample.",
        )


def choose_page(num_pages: int, page: int | None) -> int:
    """Number of the page to read; a file of several pages needs a choice."""
    if page is None:
        if num_pages > 1:
            raise UnusableError(
                "has several pages",
                f"{num_pages}, and which one is meant is not said",
                "Choose one with images.page (the first is 0), or export the page as a file of its own.",
            )
        return 0
    if page >= num_pages:
        raise UnusableError(
            f"has no page {page}",
            f"{num_pages} pages, the first is 0",
            "Correct images.page, or remove the sample.",
        )
    return page


def orient(pixels: Pixels, orientation: int) -> Pixels:
    """Turn (H, W, C) as a value of the EXIF or TIFF tag Orientation says; values out of 1 to 8 mean nothing."""
    match orientation:
        case 2:
            return pixels[:, ::-1]
        case 3:
            return pixels[::-1, ::-1]
        case 4:
            return pixels[::-1]
        case 5:
            return pixels.transpose(1, 0, 2)
        case 6:
            return np.rot90(pixels, k=-1)
        case 7:
            return pixels.transpose(1, 0, 2)[::-1, ::-1]
        case 8:
            return np.rot90(pixels)
    return pixels


def is_turned(orientation: int) -> bool:
    """Whether this orientation exchanges width and height."""
    return 5 <= orientation <= 8


def as_palette(values: Pixels) -> npt.NDArray[np.uint8]:
    """(n, 3) colours as a whole palette, (256, 3); indices beyond its end are black."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(values)] = values[:256]
    return palette
