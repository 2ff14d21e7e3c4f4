from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from unet_core.errors import DataError
from unet_core.image_rows import open_image_rows
from unet_core.images import FileBytes, read_image
from unet_core.samples import ImageConfig

RGB = ImageConfig(channels=3)
GRAY = ImageConfig(channels=1)
LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles": {"tile": (32, 48), "compression": "zlib"},
    "strips": {"rowsperstrip": 7, "compression": "lzw"},
    "plain": {},
    "plain strips": {"rowsperstrip": 16},
    "big": {"tile": (64, 64), "bigtiff": True, "byteorder": ">"},
    "predicted": {"tile": (32, 32), "compression": "zlib", "predictor": True},
    "one strip": {"rowsperstrip": 1000, "compression": "zlib"},
}


def noise(height: int, width: int, *, dtype: Any = np.uint8, channels: int = 3) -> np.ndarray:
    high = np.iinfo(dtype).max + 1
    return np.random.default_rng([height, width]).integers(0, high, (height, width, channels), dtype=dtype)


def write(path: Path, pixels: np.ndarray, **layout: Any) -> Path:
    photometric = "rgb" if pixels.shape[-1] == 3 else "minisblack"
    tifffile.imwrite(path, pixels if pixels.shape[-1] > 1 else pixels[..., 0], photometric=photometric, **layout)
    return path


def whole(path: Path, config: ImageConfig) -> np.ndarray:
    return read_image(FileBytes(name=str(path), data=path.read_bytes()), config)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_those_of_the_whole_image(tmp_path: Path, layout: str) -> None:
    pixels = noise(101, 130)
    path = write(tmp_path / "a.tif", pixels, **LAYOUTS[layout])
    with open_image_rows(path, RGB, min_pixels=0) as rows:
        assert rows is not None
        assert rows.shape == (101, 130, 3)
        for top, bottom in ((0, 101), (0, 1), (100, 101), (31, 33), (40, 96)):
            assert (rows.read_rows(top, bottom) == pixels[top:bottom]).all()


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(sorted(LAYOUTS)), st.data())
def test_any_rows_of_any_layout_are_those_of_the_whole_image(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, layout: str, data: st.DataObject
) -> None:
    path = write(tmp_path_factory.mktemp("tiff") / "a.tif", noise(height, width), **LAYOUTS[layout])
    top = data.draw(st.integers(0, height - 1))
    bottom = data.draw(st.integers(top + 1, height))
    with open_image_rows(path, RGB, min_pixels=0) as rows:
        assert rows is not None
        assert (rows.read_rows(top, bottom) == whole(path, RGB)[top:bottom]).all()


@pytest.mark.parametrize(
    ("dtype", "config"),
    [
        (np.uint8, GRAY),
        (np.uint16, ImageConfig(channels=3, value_range=[100, 60000])),
        (np.uint16, ImageConfig(channels=3, bits=16, percentiles=[1, 99])),
        (np.uint8, ImageConfig(channels=1, percentiles=[0, 100])),
        (np.uint16, ImageConfig(channels=3, percentiles=[12.5, 50])),
    ],
)
def test_rows_are_converted_as_the_whole_image(tmp_path: Path, dtype: Any, config: ImageConfig) -> None:
    path = write(tmp_path / "a.tif", noise(700, 40, dtype=dtype), **LAYOUTS["tiles"])
    with open_image_rows(path, config, min_pixels=0) as rows:
        assert rows is not None
        parts = [rows.read_rows(top, min(700, top + 90)) for top in range(0, 700, 90)]
    assert (np.concatenate(parts) == whole(path, config)).all()


def test_percentiles_of_an_image_of_one_value_are_that_value(tmp_path: Path) -> None:
    config = ImageConfig(channels=1, percentiles=[1, 99])
    path = write(tmp_path / "a.tif", np.full((9, 9, 1), 7, dtype=np.uint8))
    with open_image_rows(path, config, min_pixels=0) as rows:
        assert rows is not None
        assert rows.limits == (7, 7)
        assert (rows.read_rows(0, 9) == whole(path, config)).all()


def test_small_files_and_files_that_must_be_read_whole_give_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    files = {
        "png": tmp_path / "a.png",
        "small": write(tmp_path / "small.tif", noise(10, 10)),
        "planes": tmp_path / "planes.tif",
        "turned": write(tmp_path / "turned.tif", noise(20, 20), extratags=[(274, "H", 1, 6, True)]),
        "pages": tmp_path / "pages.tif",
    }
    tifffile.imwrite(files["planes"], noise(20, 20).transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(files["pages"], np.zeros((2, 20, 20), dtype=np.uint8), photometric="minisblack")
    for name, path in files.items():
        with open_image_rows(path, RGB, min_pixels=100) as rows:
            assert rows is None, name


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(101, 130), **LAYOUTS["tiles"])
    path.write_bytes(path.read_bytes()[:-20])
    with (
        pytest.raises(DataError, match=r"^image can't be read: .*a.tif: TIFF "),
        open_image_rows(path, RGB, min_pixels=0),
    ):
        pass


def test_a_damaged_tile_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(101, 130), **LAYOUTS["tiles"])
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        place, length = page.dataoffsets[-1], page.databytecounts[-1]
    data = bytearray(path.read_bytes())
    data[place : place + length] = bytes(length)
    path.write_bytes(data)
    with open_image_rows(path, RGB, min_pixels=0) as rows:
        assert rows is not None
        assert rows.read_rows(0, 96).shape == (96, 130, 3)
        with pytest.raises(DataError, match=r"^image can't be read: .*a.tif: .*\. Export the file again\.$"):
            rows.read_rows(90, 101)


def test_a_wrong_number_of_channels_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(20, 20, channels=5), planarconfig="contig")
    with open_image_rows(path, RGB, min_pixels=0) as rows:
        assert rows is not None
        with pytest.raises(DataError, match=r"^wrong number of channels: .*a.tif: 5, expected 3 "):
            rows.read_rows(0, 20)
