"""What a file is called; what comes out of it is tested with images and masks."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from unet_core.decode import describe


def written(mode: str, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (8, 8)).save(stream, format=kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind", "text"),
    [
        ("L", "PNG", "PNG, gray, 8 bits"),
        ("1", "PNG", "PNG, gray, 1 bit"),
        ("I;16", "PNG", "PNG, gray, 16 bits"),
        ("RGBA", "PNG", "PNG, RGBA, 8 bits"),
        ("LA", "PNG", "PNG, gray and alpha, 8 bits"),
        ("P", "GIF", "GIF, palette, 8 bits"),
        ("CMYK", "JPEG", "JPEG, CMYK, 8 bits"),
    ],
)
def test_a_file_is_described_from_its_header(mode: str, kind: str, text: str) -> None:
    assert describe(written(mode, kind)) == text


def test_a_tiff_is_described_by_its_channels_and_numbers() -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((8, 8, 5), dtype=np.float32), photometric="minisblack", planarconfig="contig")
    assert describe(stream.getvalue()) == "TIFF, 5 x float32"


@pytest.mark.parametrize("data", [b"", b"no picture", b"II*\0", written("L", "PNG")[:20]])
def test_what_is_no_picture_is_unknown(data: bytes) -> None:
    assert describe(data) == "unknown"
