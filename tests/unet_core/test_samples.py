import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unet_core.errors import DataError, RecipeError
from unet_core.images import FileBytes, read_image
from unet_core.masks import encode_mask, encode_plane, read_mask, read_mask_values
from unet_core.pairs import read_sample
from unet_core.samples import IGNORE_INDEX, ClassMap, ImageConfig, count_class_pixels

GRAY = np.array([[0, 50, 100], [150, 200, 255]], dtype=np.uint8)
COLOUR = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=-1)
ALPHA = np.full_like(GRAY, 128)


def load(path: Path) -> FileBytes:
    return FileBytes(name=str(path), data=path.read_bytes())


def picture_of_mode(mode: str) -> Image.Image:
    """A picture that stores GRAY or COLOUR in the given mode, as far as it can."""
    match mode:
        case "L":
            return Image.fromarray(GRAY)
        case "LA":
            return Image.fromarray(np.dstack([GRAY, ALPHA]))
        case "RGB":
            return Image.fromarray(COLOUR)
        case "RGBA":
            return Image.fromarray(np.dstack([COLOUR, ALPHA]))
        case "1":
            return Image.fromarray(GRAY > 127)
        case "P":
            palette = Image.new("P", (3, 2))
            palette.putpalette(COLOUR.tobytes())
            palette.putdata(range(6))
            return palette
    raise AssertionError(mode)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def save(picture: Image.Image | np.ndarray[Any, Any], name: str = "picture.png", **options: Any) -> Path:
        path = tmp_path / name
        (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(path, **options)
        return path

    return save


def png(*, width: int, height: int, bits: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG by hand, for what Pillow does not write. `rows`: raw pixels, each row begun with a zero byte."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# Images


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("L", np.dstack([GRAY] * 3)),
        ("LA", np.dstack([GRAY] * 3)),
        ("RGB", COLOUR),
        ("RGBA", COLOUR),
        ("P", COLOUR),
        ("1", np.dstack([np.where(GRAY > 127, 255, 0)] * 3)),
    ],
)
def test_png_of_every_mode_reads_as_rgb(save: Callable[..., Path], mode: str, expected: Any) -> None:
    image = read_image(load(save(picture_of_mode(mode))), ImageConfig(channels=3))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (picture_of_mode("L"), GRAY),
        (picture_of_mode("LA"), GRAY),
        (picture_of_mode("1"), np.where(GRAY > 127, 255, 0)),
        (Image.fromarray(np.dstack([GRAY] * 3)), GRAY),
        (Image.fromarray(np.dstack([GRAY, GRAY, GRAY, ALPHA])), GRAY),
    ],
    ids=["L", "LA", "1", "gray RGB", "gray RGBA"],
)
def test_gray_png_of_every_mode_reads_as_one_channel(
    save: Callable[..., Path], picture: Image.Image, expected: Any
) -> None:
    image = read_image(load(save(picture)), ImageConfig(channels=1))
    assert image.shape == (2, 3, 1)
    np.testing.assert_array_equal(image[..., 0], expected)


def test_gray_of_a_coloured_image_is_its_luma(save: Callable[..., Path]) -> None:
    pure = np.zeros((1, 3, 3), dtype=np.uint8)
    pure[0, range(3), range(3)] = 255  # a red, a green and a blue pixel
    image = read_image(load(save(pure)), ImageConfig(channels=1))
    np.testing.assert_allclose(image[0, :, 0], [0.299 * 255, 0.587 * 255, 0.114 * 255], atol=1)


def test_transparent_palette_entry_keeps_its_colour(save: Callable[..., Path]) -> None:
    path = save(picture_of_mode("P"), transparency=bytes([0, 255, 10, 255, 255, 255]))
    np.testing.assert_array_equal(read_image(load(path), ImageConfig(channels=3)), COLOUR)


@pytest.mark.parametrize("suffix", ["bmp", "tif", "webp", "gif"])
def test_lossless_formats_read_alike(save: Callable[..., Path], suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    np.testing.assert_array_equal(
        read_image(load(save(GRAY, f"a.{suffix}", **options)), ImageConfig(channels=1))[..., 0], GRAY
    )


def test_16_bit_gray_image_is_refused(save: Callable[..., Path]) -> None:
    path = save(GRAY.astype(np.uint16) * 257)
    with pytest.raises(DataError) as caught:
        read_image(load(path), ImageConfig(channels=1))
    assert str(caught.value) == (
        f"more than 8 bits a channel: {path}: mode I;16. Export the image with 8 bits a channel."
    )


@pytest.mark.parametrize(("colour_type", "num_values"), [(2, 3), (6, 4), (4, 2)], ids=["RGB", "RGBA", "gray and alpha"])
@pytest.mark.parametrize("what", ["image", "mask"])
def test_16_bit_png_of_several_channels_is_refused(
    tmp_path: Path, colour_type: int, num_values: int, what: str
) -> None:
    # Pillow keeps the high byte only: 257 levels become one, and class 1 of a mask becomes class 0.
    path = tmp_path / "sixteen.png"
    row = b"\0" + np.ones(2 * num_values, dtype=">u2").tobytes()
    path.write_bytes(png(width=2, height=1, bits=16, colour_type=colour_type, rows=row))
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        read_image(load(path), ImageConfig(channels=3)) if what == "image" else read_mask_values(load(path))


def test_16_bit_rgb_tiff_is_refused(tmp_path: Path) -> None:
    # By hand, since Pillow does not write one: header, six values, one directory of ten entries.
    values = np.arange(6, dtype="<u2").tobytes()
    directory, bits = 8 + len(values), 8 + len(values) + 2 + 12 * 10 + 4
    entries = [(256, 3, 1, 2), (257, 3, 1, 1), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8)]
    entries += [(277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, len(values)), (284, 3, 1, 1)]
    path = tmp_path / "sixteen.tif"
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, directory)
        + values
        + struct.pack("<H", len(entries))
        + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        + struct.pack("<IHHH", 0, 16, 16, 16)
    )
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        read_image(load(path), ImageConfig(channels=3))


def test_floating_point_image_is_refused(save: Callable[..., Path]) -> None:
    path = save(GRAY.astype(np.float32), "float.tif")
    with pytest.raises(DataError, match="more than 8 bits a channel: .*float.tif"):
        read_image(load(path), ImageConfig(channels=1))


@pytest.mark.parametrize("damage", ["zero bytes", "text", "truncated", "broken chunk"])
@pytest.mark.parametrize("what", ["image", "mask"])
def test_unreadable_file_is_named_with_its_reason(tmp_path: Path, damage: str, what: str) -> None:
    path = tmp_path / "damaged.png"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    match damage:
        case "zero bytes":
            path.write_bytes(b"")
        case "text":
            path.write_text("not a picture")
        case "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        case "broken chunk":
            path.write_bytes(whole.replace(b"IDAT", b"\0\1\2\3"))
    with pytest.raises(DataError) as caught:
        read_image(load(path), ImageConfig(channels=1)) if what == "image" else read_mask_values(load(path))
    assert str(caught.value).startswith(f"{what} can't be read: {path}: ")
    assert str(caught.value).endswith("Export the file again, or remove the sample.")
    assert caught.value.__cause__ is not None


def test_picture_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(width=60_000, height=60_000, bits=8, colour_type=0, rows=b"\0"))
    with pytest.raises(DataError, match="image can't be read: .*decompression bomb"):
        read_image(load(path), ImageConfig(channels=1))


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some damage and reads on
def test_damaged_bytes_give_a_data_error_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "fuzzed.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    rng = random.Random(0)
    num_refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.randrange(len(damaged))] if rng.random() < 0.3 else damaged)
        try:
            assert read_image(load(path), ImageConfig(channels=3)).shape[2] == 3
        except DataError:
            num_refused += 1
    assert num_refused > 100


# Masks


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(np.array([[0, 1], [7, 200]], dtype=np.uint8)),
        Image.fromarray(np.array([[0, 1], [7, 200]], dtype=np.uint16)),
        Image.fromarray(np.dstack([np.array([[0, 1], [7, 200]], dtype=np.uint8)] * 3)),
        Image.fromarray(np.dstack([np.array([[0, 1], [7, 200]], dtype=np.uint8)] * 3 + [ALPHA[:, :2]])),
        Image.fromarray(np.dstack([np.array([[0, 1], [7, 200]], dtype=np.uint8), ALPHA[:, :2]])),
    ],
    ids=["L", "16-bit", "gray RGB", "gray RGBA", "LA"],
)
def test_multiclass_mask_becomes_class_indices(
    save: Callable[..., Path], cells_map: ClassMap, picture: Image.Image
) -> None:
    mask = read_mask([load(save(picture))], cells_map)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, [[0, 1], [2, IGNORE_INDEX]])


def test_palette_mask_gives_its_indices_and_not_its_colours(save: Callable[..., Path]) -> None:
    np.testing.assert_array_equal(read_mask_values(load(save(picture_of_mode("P")))), [[0, 1, 2], [3, 4, 5]])


def test_1_bit_mask_gives_zeros_and_ones(save: Callable[..., Path]) -> None:
    np.testing.assert_array_equal(read_mask_values(load(save(picture_of_mode("1")))), GRAY > 127)


def test_16_bit_mask_keeps_values_above_255(save: Callable[..., Path]) -> None:
    path = save(np.array([[0, 300]], dtype=np.uint16))
    class_map = ClassMap(kind="multiclass", classes={"soil": 0, "crop": 300})
    np.testing.assert_array_equal(read_mask([load(path)], class_map), [[0, 1]])


def test_coloured_mask_is_refused(save: Callable[..., Path]) -> None:
    path = save(COLOUR)
    with pytest.raises(DataError) as caught:
        read_mask_values(load(path))
    assert str(caught.value) == (
        f"mask is a colour image: {path}: mode RGB. Export it as an index image, a number a pixel."
    )


def test_mask_of_fractions_is_refused(save: Callable[..., Path], cells_map: ClassMap) -> None:
    # Cut off, 0.9 would be background.
    path = save(np.array([[0.0, 0.9, 1.0]], dtype=np.float32), "probabilities.tif")
    with pytest.raises(DataError, match="probabilities.tif"):
        read_mask([load(path)], cells_map)


def test_mask_of_four_inks_is_refused(save: Callable[..., Path], cells_map: ClassMap) -> None:
    # Otherwise the sample has a mask of four planes where one is expected.
    path = save(Image.new("CMYK", (3, 2), (0, 1, 0, 1)), "inks.tif")
    with pytest.raises(DataError, match="inks.tif"):
        read_mask([load(path)], cells_map)


def test_unknown_class_value_is_named(cells_map: ClassMap) -> None:
    with pytest.raises(DataError) as caught:
        encode_mask(np.array([[0, 1], [3, 255]]), cells_map, where="scan_017.png")
    assert str(caught.value) == (
        "class value outside the recipe: scan_017.png: 3, 255. The recipe knows [0, 1, 7, 200]; "
        "add the value to masks.classes (or masks.ignore), or correct the mask."
    )


def test_many_unknown_class_values_are_cut_short(cells_map: ClassMap) -> None:
    with pytest.raises(DataError, match=r"scan: 20, 21, 22, 23, 24, 25, 26, 27 and 12 more\. "):
        encode_mask(np.arange(20, 40).reshape(4, 5), cells_map, where="scan")


def test_ignore_value_is_unknown_where_the_recipe_has_none() -> None:
    class_map = ClassMap(kind="multiclass", classes={"background": 0, "cell": 1})
    with pytest.raises(DataError, match="class value outside the recipe: scan: 255"):
        encode_mask(np.array([[0, 255]]), class_map, where="scan")


def test_order_of_classes_decides_their_indices_and_not_their_values() -> None:
    class_map = ClassMap(kind="multiclass", classes={"cell": 9, "background": 3})
    np.testing.assert_array_equal(encode_mask(np.array([[3, 9]]), class_map, where=""), [[1, 0]])


def test_multilabel_planes_are_stacked_in_the_order_of_the_classes(save: Callable[..., Path]) -> None:
    class_map = ClassMap(kind="multilabel", classes={"left": 255, "both": 1})
    left = save(np.array([[255, 0]], dtype=np.uint8), "left.png")
    both = save(Image.fromarray(np.array([[True, True]])), "both.png")
    mask = read_mask([load(left), load(both)], class_map)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, [[[1, 1], [0, 1]]])


def test_unknown_value_in_a_plane_is_named() -> None:
    with pytest.raises(DataError) as caught:
        encode_plane(np.array([[0, 128, 255]]), 255, where="ring/a.png")
    assert str(caught.value) == (
        "class value outside the recipe: ring/a.png: 128. This class is drawn with 255 on 0; "
        "correct masks.classes, or threshold the mask."
    )


def test_planes_of_different_sizes_are_refused(save: Callable[..., Path]) -> None:
    class_map = ClassMap(kind="multilabel", classes={"a": 255, "b": 255})
    paths = [save(np.zeros((2, 3), np.uint8), "a.png"), save(np.zeros((2, 4), np.uint8), "b.png")]
    with pytest.raises(DataError, match=r"masks of one image differ in size: .*a.png: .*Export them again\."):
        read_mask([load(path) for path in paths], class_map)


# Pairs


def test_sample_has_image_and_mask_of_one_size(save: Callable[..., Path], cells_map: ClassMap) -> None:
    mask = np.array([[0, 1, 7], [200, 0, 1]], dtype=np.uint8)
    sample = read_sample(
        "scan", load(save(COLOUR, "image.png")), [load(save(mask, "mask.png"))], ImageConfig(channels=3), cells_map
    )
    assert sample.key == "scan"
    np.testing.assert_array_equal(sample.image, COLOUR)
    np.testing.assert_array_equal(sample.mask, [[0, 1, 2], [IGNORE_INDEX, 0, 1]])


def test_mask_of_another_size_is_refused(save: Callable[..., Path], cells_map: ClassMap) -> None:
    image, mask = save(np.zeros((512, 512), np.uint8), "image.png"), save(np.zeros((510, 512), np.uint8), "mask.png")
    with pytest.raises(DataError) as caught:
        read_sample("scan_017", load(image), [load(mask)], ImageConfig(channels=1), cells_map)
    assert str(caught.value) == (
        "mask size differs from image: scan_017: image 512x512, mask 512x510. "
        "Export the mask again, or remove the pair."
    )


def test_class_pixels_leave_out_ignored_ones(cells_map: ClassMap) -> None:
    mask = np.array([[0, 0, 0], [2, IGNORE_INDEX, 2]], dtype=np.uint8)
    assert count_class_pixels(mask, cells_map) == (3, 0, 2)


def test_class_pixels_of_planes_may_overlap() -> None:
    class_map = ClassMap(kind="multilabel", classes={"a": 255, "b": 255})
    assert count_class_pixels(np.array([[[1, 1], [0, 1]]], dtype=np.uint8), class_map) == (1, 2)


def test_class_pixels_do_not_overflow() -> None:
    class_map = ClassMap(kind="multilabel", classes={"a": 255})
    assert count_class_pixels(np.ones((40, 40, 1), dtype=np.uint8), class_map) == (1600,)


# Class maps


def test_class_map_knows_names_and_scored_classes(cells_map: ClassMap) -> None:
    assert cells_map.names == ("background", "cell", "nucleus")
    assert cells_map.num_classes == 3
    assert cells_map.scored == (1, 2)


def test_all_classes_are_scored_without_a_background() -> None:
    assert ClassMap(kind="multiclass", classes={"a": 0, "b": 1}).scored == (0, 1)


REFUSALS = {
    "one class": (
        {"kind": "multiclass", "classes": {"cell": 1}},
        r"too few classes: masks.classes: \['cell'\]\. A multiclass mask needs at least two, background included; "
        "for one class on a background add it, or choose kind: multilabel.",
    ),
    "unknown background": (
        {"kind": "multiclass", "classes": {"a": 0, "b": 1}, "background": "c"},
        r"unknown class: masks.background: 'c'\. Name one of \['a', 'b'\], or null\.",
    ),
    "multilabel with ignore": (
        {"kind": "multilabel", "classes": {"a": 255}, "ignore": 7},
        "masks.ignore and masks.background: only multiclass masks have them, kind is multilabel. Set both to null.",
    ),
    "multilabel with background": (
        {"kind": "multilabel", "classes": {"a": 255}, "background": "a"},
        "only multiclass masks have them, kind is multilabel",
    ),
    "one value twice": (
        {"kind": "multiclass", "classes": {"a": 1, "b": 1}},
        r"one pixel value for two classes: masks: \[1, 1\]\. Give each class its own value\.",
    ),
    "ignore is a class": (
        {"kind": "multiclass", "classes": {"a": 0, "b": 1}, "ignore": 1},
        r"one pixel value for two classes: masks: \[0, 1, 1\]",
    ),
}


@pytest.mark.parametrize(("arguments", "text"), REFUSALS.values(), ids=REFUSALS)
def test_impossible_class_map_is_refused(arguments: Any, text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        ClassMap(**arguments)


def test_plane_drawn_with_zero_is_refused() -> None:
    # Zero is the ground that planes are drawn on: every background pixel would belong to the class.
    with pytest.raises(RecipeError, match="masks"):
        ClassMap(kind="multilabel", classes={"ring": 0})


def test_more_classes_than_an_encoded_mask_can_hold_are_refused() -> None:
    # Index 255 means ignored: the 256th class would never be trained or scored, without a word.
    with pytest.raises(RecipeError, match="masks"):
        ClassMap(kind="multiclass", classes={f"class_{number}": number for number in range(256)})
