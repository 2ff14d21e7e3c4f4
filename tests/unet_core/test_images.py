import io
import struct
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.unet_core.pictures import (
    ALPHA,
    COLOUR,
    GRAY,
    chunk,
    deep_png,
    every_format,
    named,
    noise,
    png,
    stored,
    tiff,
)
from unet_core.errors import DataError, RecipeError
from unet_core.images import ImageConfig, read_image
from unet_core.masks import read_mask_values
from unet_core.picture import orient

RGB = ImageConfig(channels=3)
ONE = ImageConfig(channels=1)


def palette_picture() -> Image.Image:
    """Six indices that stand for COLOUR."""
    picture = Image.new("P", (3, 2))
    picture.putpalette(COLOUR.tobytes())
    picture.putdata(range(6))
    return picture


# Modes and formats


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (stored(GRAY), np.dstack([GRAY] * 3)),
        (stored(np.dstack([GRAY, ALPHA])), np.dstack([GRAY] * 3)),
        (stored(COLOUR), COLOUR),
        (stored(np.dstack([COLOUR, ALPHA])), COLOUR),
        (stored(palette_picture()), COLOUR),
        (stored(palette_picture(), transparency=bytes([0, 255, 10, 255, 255, 255])), COLOUR),
        (stored(Image.fromarray(GRAY > 127)), np.dstack([np.where(GRAY > 127, 255, 0)] * 3)),
        (stored(COLOUR, "BMP"), COLOUR),
        (stored(palette_picture(), "BMP"), COLOUR),
        (stored(palette_picture(), "GIF"), COLOUR),
        (stored(COLOUR, "WEBP", lossless=True), COLOUR),
        (stored(palette_picture(), "TIFF"), COLOUR),
    ],
    ids=[
        "gray",
        "gray+alpha",
        "rgb",
        "rgba",
        "palette",
        "transparent",
        "bits",
        "bmp",
        "bmp-palette",
        "gif",
        "webp",
        "tiff-palette",
    ],
)
def test_every_mode_reads_as_rgb(data: bytes, expected: Any) -> None:
    image = read_image(named(data), RGB)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (stored(GRAY), GRAY),
        (stored(np.dstack([GRAY, ALPHA])), GRAY),
        (stored(np.dstack([GRAY] * 3)), GRAY),
        (stored(np.dstack([GRAY] * 3 + [ALPHA])), GRAY),
        (stored(Image.fromarray(GRAY > 127)), np.where(GRAY > 127, 255, 0)),
        (stored(GRAY, "GIF"), GRAY),
        (stored(GRAY, "BMP"), GRAY),
        (png(width=2, height=1, bits=4, colour_type=0, rows=b"\0\x1f"), [[17, 255]]),
        (png(width=4, height=1, bits=2, colour_type=0, rows=b"\0\x1b"), [[0, 85, 170, 255]]),
        (tiff(np.array([[0, 255]], dtype=np.uint8), photometric="miniswhite"), [[255, 0]]),
    ],
    ids=["L", "LA", "gray-rgb", "gray-rgba", "bits", "gif", "bmp", "4-bit", "2-bit", "white-is-zero"],
)
def test_gray_of_every_mode_reads_as_one_channel(data: bytes, expected: Any) -> None:
    image = read_image(named(data), ONE)
    assert image.shape == (*np.shape(expected), 1)
    np.testing.assert_array_equal(image[..., 0], expected)


def test_gray_of_a_coloured_image_is_its_luma() -> None:
    pure = np.zeros((1, 3, 3), dtype=np.uint8)
    pure[0, range(3), range(3)] = 255  # a red, a green and a blue pixel
    image = read_image(named(stored(pure)), ONE)
    np.testing.assert_allclose(image[0, :, 0], [0.299 * 255, 0.587 * 255, 0.114 * 255], atol=1)


TIFFS = {
    "plain": {},
    "big endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "LZW": {"compression": "lzw"},
    "LZW, predictor": {"compression": "lzw", "predictor": True},
    "deflate": {"compression": "zlib"},
    "packbits": {"compression": "packbits"},
    "zstd": {"compression": "zstd"},
    "tiles": {"tile": (16, 16), "compression": "zlib"},
    "strips": {"rowsperstrip": 5, "compression": "lzw"},
}


@pytest.mark.parametrize("options", TIFFS.values(), ids=TIFFS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_of_every_compression_and_byte_order(options: dict[str, Any], dtype: Any) -> None:
    pixels = noise(dtype=dtype)
    bits = pixels.dtype.itemsize * 8
    config = ImageConfig(channels=3, bits=bits, value_range=None if bits == 8 else [0, 65535])
    np.testing.assert_array_equal(read_image(named(tiff(pixels, photometric="rgb", **options)), config), pixels)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("channels", [2, 5])
def test_tiff_with_many_channels(planar: bool, channels: int) -> None:
    pixels = noise(channels=channels)
    data = tiff(np.moveaxis(pixels, 2, 0), planarconfig="separate") if planar else tiff(pixels, planarconfig="contig")
    np.testing.assert_array_equal(read_image(named(data), ImageConfig(channels=channels)), pixels)


def test_channels_that_are_no_colours_are_not_mixed() -> None:
    with pytest.raises(DataError) as caught:
        read_image(named(tiff(noise(channels=5), planarconfig="contig"), "a.tif"), RGB)
    assert str(caught.value) == (
        "wrong number of channels: a.tif: 5, expected 3 (the recipe's images.channels, or the model's). "
        "Export the image with as many, or train with images.channels: 5."
    )


def test_four_channels_keep_what_is_stored_as_alpha() -> None:
    # Near infrared often lies there.
    pixels = noise(channels=4)
    np.testing.assert_array_equal(read_image(named(stored(pixels)), ImageConfig(channels=4)), pixels)


def test_fax_compression_is_read() -> None:
    page = Image.fromarray(noise(channels=1) > 127)
    for compression in ("group3", "group4"):
        image = read_image(named(stored(page, "TIFF", compression=compression)), ONE)
        np.testing.assert_array_equal(image[..., 0], np.asarray(page) * 255)


def test_four_inks_become_colours() -> None:
    inks = Image.new("CMYK", (4, 3), (255, 0, 0, 0))
    for data in (stored(inks, "TIFF"), stored(inks, "JPEG", quality=100)):
        np.testing.assert_allclose(read_image(named(data), RGB)[0, 0], [0, 255, 255], atol=2)


def test_jpeg_with_a_second_frame_is_read_as_its_first() -> None:
    first, second = Image.fromarray(noise()), Image.new("RGB", (20, 24))
    data = stored(first, "MPO", save_all=True, append_images=[second])
    plain = read_image(named(stored(first, "JPEG")), RGB)
    np.testing.assert_array_equal(read_image(named(data), RGB), plain)


@pytest.mark.parametrize("name", ["photo.jpg", "photo", "scan.tif", "scan.png"])
def test_the_content_decides_and_not_the_ending(name: str) -> None:
    for data in (stored(GRAY), stored(GRAY, "BMP"), tiff(GRAY)):
        np.testing.assert_array_equal(read_image(named(data, name), ONE)[..., 0], GRAY)


def test_formats_that_we_do_not_list_are_not_opened() -> None:
    for data in (stored(COLOUR, "PPM"), stored(COLOUR, "EPS"), stored(COLOUR, "ICO"), stored(COLOUR, "TGA")):
        with pytest.raises(DataError, match="it is no PNG, JPEG, TIFF, BMP, WebP or GIF file"):
            read_image(named(data), RGB)


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_orientation_is_applied_as_pillow_does(orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = stored(COLOUR, form, exif=exif)
    with Image.open(io.BytesIO(data)) as picture:
        from PIL import ImageOps

        expected = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(read_image(named(data), RGB), expected)


def test_orientation_of_a_deep_png_is_applied() -> None:
    exif = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    rows = b"\0" + np.array([1, 2, 3], dtype=">u2").tobytes()
    data = png(width=3, height=1, bits=16, colour_type=0, rows=rows, before=chunk(b"eXIf", exif))
    image = read_image(named(data), ImageConfig(channels=1, bits=16, value_range=[0, 65535]))
    assert image[..., 0].tolist() == [[1], [2], [3]]


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_impossible_orientation_turns_nothing(orientation: int) -> None:
    np.testing.assert_array_equal(orient(COLOUR, orientation), COLOUR)


# Pages


def paged(form: str) -> bytes:
    first, second = Image.new("L", (3, 2), 10), Image.new("L", (3, 2), 20)
    return stored(first, form, save_all=True, append_images=[second], **({"lossless": True} if form == "WEBP" else {}))


@pytest.mark.parametrize("form", ["TIFF", "GIF", "WEBP"])
def test_page_is_chosen_by_the_recipe(form: str) -> None:
    for page, level in ((0, 10), (1, 20)):
        image = read_image(named(paged(form)), ImageConfig(channels=1, page=page))
        np.testing.assert_allclose(image, level, atol=1)


@pytest.mark.parametrize("form", ["TIFF", "GIF", "WEBP"])
def test_several_pages_without_a_choice_are_refused(form: str) -> None:
    with pytest.raises(DataError) as caught:
        read_image(named(paged(form), "stack"), ONE)
    assert str(caught.value) == (
        "image has several pages: stack: 2, and which one is meant is not said. "
        "Choose one with images.page (the first is 0), or export the page as a file of its own."
    )


def test_page_beyond_the_last_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"image has no page 2: scan.png: 2 pages, the first is 0\. Correct images.page"
    ):
        read_image(named(paged("TIFF")), ImageConfig(channels=1, page=2))


def test_thumbnail_in_a_tiff_is_no_page() -> None:
    import tifffile

    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(GRAY, photometric="minisblack", metadata=None)
        writer.write(GRAY[:1, :1], photometric="minisblack", subfiletype=1, metadata=None)
    np.testing.assert_array_equal(read_image(named(stream.getvalue()), ONE)[..., 0], GRAY)


# Depth


DEEP = {
    "gray PNG": stored(GRAY.astype(np.uint16) * 257),
    "RGB PNG": deep_png(np.dstack([GRAY] * 3).astype(np.uint16) * 257),
    "RGBA PNG": deep_png(np.dstack([GRAY] * 4).astype(np.uint16) * 257),
    "gray and alpha PNG": deep_png(np.dstack([GRAY] * 2).astype(np.uint16) * 257),
    "TIFF": tiff(GRAY.astype(np.uint16) * 257),
    "float TIFF": tiff(GRAY.astype(np.float32) * 257),
    "signed TIFF": tiff(GRAY.astype(np.int32) * 257),
}


@pytest.mark.parametrize("data", DEEP.values(), ids=DEEP)
def test_deep_image_without_a_range_is_refused(data: bytes) -> None:
    with pytest.raises(DataError) as caught:
        read_image(named(data), ONE)
    assert str(caught.value).startswith("more than 8 bits a channel: scan.png: ")
    assert "values 0" in str(caught.value)
    assert str(caught.value).endswith(
        "Say what is black and white: images.value_range: [low, high] for all, or images.percentiles: [1, 99] of each "
        "image."
    )


@pytest.mark.parametrize("data", DEEP.values(), ids=DEEP)
def test_deep_image_is_scaled_by_the_declared_range(data: bytes) -> None:
    image = read_image(named(data), ImageConfig(channels=1, value_range=[0, 65535]))
    np.testing.assert_array_equal(image[..., 0], GRAY)
    cut = read_image(named(data), ImageConfig(channels=1, value_range=[12850, 38550]))
    np.testing.assert_array_equal(cut[..., 0], [[0, 0, 128], [255, 255, 255]])


@pytest.mark.parametrize("data", DEEP.values(), ids=DEEP)
def test_sixteen_bits_keep_all_levels(data: bytes) -> None:
    image = read_image(named(data), ImageConfig(channels=1, bits=16, value_range=[0, 65535]))
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image[..., 0], GRAY.astype(np.uint16) * 257)


def test_eight_bits_fill_sixteen() -> None:
    image = read_image(named(stored(GRAY)), ImageConfig(channels=1, bits=16))
    np.testing.assert_array_equal(image[..., 0], GRAY.astype(np.uint16) * 257)


def test_eight_bits_are_scaled_too_where_a_range_is_declared() -> None:
    image = read_image(named(stored(GRAY)), ImageConfig(channels=1, value_range=[50, 150]))
    np.testing.assert_array_equal(image[..., 0], [[0, 0, 128], [255, 255, 255]])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_percentiles_are_of_the_image_itself(dtype: Any) -> None:
    values = np.arange(100, dtype=dtype).reshape(10, 10)
    image = read_image(named(tiff(values)), ImageConfig(channels=1, percentiles=[1, 99]))
    assert (image[0, 0, 0], image[9, 8, 0], image[9, 9, 0]) == (0, 255, 255)
    np.testing.assert_array_equal(image[..., 0], np.floor(np.clip(values.astype(float) / 98, 0, 1) * 255 + 0.5))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_constant_image_is_black_under_percentiles(dtype: Any) -> None:
    image = read_image(named(tiff(np.full((4, 5), 7, dtype=dtype))), ImageConfig(channels=1, percentiles=[1, 99]))
    np.testing.assert_array_equal(image, 0)


def test_image_with_nan_is_refused() -> None:
    data = tiff(np.array([[0, np.nan]], dtype=np.float32))
    with pytest.raises(DataError, match="image has values that are no numbers: scan.png: NaN or infinity"):
        read_image(named(data), ImageConfig(channels=1, percentiles=[1, 99]))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_luma_of_a_deep_gray_image_keeps_its_values(dtype: Any) -> None:
    pixels = np.dstack([np.array([[0, 1, 40000, 65535]], dtype=dtype)] * 3)
    image = read_image(named(tiff(pixels, photometric="rgb")), ImageConfig(channels=1, bits=16, value_range=[0, 65535]))
    np.testing.assert_array_equal(image[..., 0], pixels[..., 0])


# The recipe


REFUSALS = {
    "no channel": ({"channels": 0}, r"images.channels: 0: must be at least 1\."),
    "bits": ({"channels": 1, "bits": 12}, r"images.bits: 12: choose 8 or 16\."),
    "page": ({"channels": 1, "page": -1}, r"images.page: -1: the first page is 0\."),
    "both": (
        {"channels": 1, "value_range": [0, 1], "percentiles": [1, 99]},
        r"images.value_range and images.percentiles: both are set\. Choose one, the other is null\.",
    ),
    "order": ({"channels": 1, "value_range": [9, 1]}, r"images.value_range: \[9, 1\]: .* such as \[0, 4095\]\."),
    "three": ({"channels": 1, "value_range": [0, 1, 2]}, r"images.value_range: \[0, 1, 2\]"),
    "infinite": ({"channels": 1, "value_range": [0, float("inf")]}, "images.value_range"),
    "percent": ({"channels": 1, "percentiles": [1, 101]}, r"images.percentiles: \[1, 101\]: .* such as \[1, 99\]\."),
}


@pytest.mark.parametrize(("arguments", "text"), REFUSALS.values(), ids=REFUSALS)
def test_impossible_recipe_is_refused(arguments: Any, text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        ImageConfig(**arguments)


# Hostile files


@pytest.mark.parametrize("damage", ["zero bytes", "text", "truncated", "broken chunk", "flipped pixel"])
@pytest.mark.parametrize("what", ["image", "mask"])
def test_unreadable_file_is_named_with_its_reason(damage: str, what: str) -> None:
    whole = stored(noise(channels=1))
    flipped = bytearray(whole)
    flipped[whole.index(b"IDAT") + 60] ^= 1
    data = {
        "zero bytes": b"",
        "text": b"not a picture",
        "truncated": whole[: len(whole) // 2],
        "broken chunk": whole.replace(b"IDAT", b"\0\1\2\3"),
        "flipped pixel": bytes(flipped),
    }[damage]
    with pytest.raises(DataError) as caught:
        read_image(named(data), ONE) if what == "image" else read_mask_values(named(data))
    assert str(caught.value).startswith(f"{what} can't be read: scan.png: ")
    assert str(caught.value).endswith("Export the file again, or remove the sample.")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("name", every_format())
def test_truncated_file_of_every_format_is_refused(name: str) -> None:
    data = every_format()[name]
    for kept in (len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(DataError, match="can't be read"):
            read_image(named(data[:kept]), ImageConfig(channels=3, percentiles=[0, 100]))


def tiff_header(width: int, height: int, *, compression: int = 1, count: int = 4) -> bytes:
    """A TIFF that claims a size and holds four bytes of pixels."""
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)]
    entries += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, count)]
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHI", b"II", 42, 12) + b"\0" * 4 + struct.pack("<H", len(entries)) + body + b"\0" * 4


BOMBS = {
    "PNG": png(width=60_000, height=60_000, bits=8, colour_type=0, rows=b"\0"),
    "deep PNG": png(width=60_000, height=60_000, bits=16, colour_type=2, rows=b"\0"),
    "TIFF": tiff_header(60_000, 60_000),
    "huge TIFF": tiff_header(2**32 - 1, 2**32 - 1, compression=5),
    "GIF": stored(GRAY, "GIF").replace(struct.pack("<HH", 3, 2), struct.pack("<HH", 65_535, 65_535)),
    "BMP": stored(GRAY, "BMP").replace(struct.pack("<ii", 3, 2), struct.pack("<ii", 60_000, 60_000)),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_picture_that_would_fill_the_memory_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"image is too large: scan.png: .* a decompression bomb\. Cut it into parts"):
        read_image(named(data), ONE)


def test_large_claims_that_the_file_cannot_hold_are_refused() -> None:
    for data in (
        png(width=20_000, height=20_000, bits=8, colour_type=0, rows=b"\0"),
        tiff_header(20_000, 20_000),
        tiff_header(20_000, 20_000, compression=8),
    ):
        with pytest.raises(DataError, match="than (its header claims|it has)"):
            read_image(named(data), ONE)


@pytest.mark.slow
def test_scan_of_twenty_thousand_pixels_is_read() -> None:
    data = tiff(np.zeros((20_000, 20_000), dtype=np.uint8), compression="zlib")
    assert read_image(named(data), ONE).shape == (20_000, 20_000, 1)


def test_tiff_directories_in_a_circle_are_refused() -> None:
    data = bytearray(tiff_header(2, 2))
    data[-4:] = struct.pack("<I", 12)
    with pytest.raises(DataError, match="TIFF directories are damaged"):
        read_image(named(bytes(data)), ONE)


def test_tiff_strip_outside_of_the_file_is_refused() -> None:
    with pytest.raises(DataError, match="truncated, or its strips lie elsewhere"):
        read_image(named(tiff_header(2, 2, count=4_000)), ONE)


def test_tiff_compression_out_of_the_list_is_refused() -> None:
    with pytest.raises(DataError, match=r"image is compressed in a way that we don't read: scan.png: .*Export it with"):
        read_image(named(tiff_header(2, 2, compression=34892)), ONE)


def test_odd_metadata_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png(width=1, height=1, bits=8, colour_type=0, rows=b"\0\7", before=chunk(b"eXIf", b"II*\0\x08\0\0\0\5\0"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=r"PIL\.")  # as images.py sets it
        assert read_image(named(data), ONE)[0, 0, 0] == 7


def test_missing_checksum_of_metadata_is_refused_too() -> None:
    # A damaged orientation would turn the image.
    bad = bytearray(chunk(b"tEXt", b"Comment\0hello"))
    bad[-1] ^= 1
    with pytest.raises(DataError, match=r"checksum of PNG chunk b'tEXt' is wrong"):
        read_image(named(png(width=1, height=1, bits=8, colour_type=0, rows=b"\0\7", before=bytes(bad))), ONE)


# Real files


@pytest.fixture(scope="session")
def member(datasets: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        with tarfile.open(datasets / f"{name.split('/', maxsplit=1)[0]}.tar") as archive:
            stream = archive.extractfile(name)
            assert stream is not None
            return stream.read()

    return read


def test_rgba_of_dsb2018_with_gray_content(member: Callable[[str], bytes]) -> None:
    data = named(member("dsb2018/images/00071198d059.png"))
    colour, gray = read_image(data, RGB), read_image(data, ONE)
    np.testing.assert_array_equal(colour, np.repeat(gray, 3, axis=2))
    assert gray.shape == (256, 256, 1)
