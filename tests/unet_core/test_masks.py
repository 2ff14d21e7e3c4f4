import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.unet_core.pictures import COLOUR, GRAY, deep_png, named, png, stored, tiff
from unet_core.errors import DataError
from unet_core.images import FileBytes
from unet_core.masks import encode_ids, encode_mask, encode_plane, read_mask, read_mask_values
from unet_core.samples import IGNORE_INDEX, ClassMap

VALUES = np.array([[0, 1], [7, 200]], dtype=np.uint8)
ALPHA = np.full_like(VALUES, 128)
BINARY = ClassMap(kind="multiclass", classes={"background": 0, "cell": 255})
CELLS = ClassMap(kind="instances", classes={"background": 0, "cell": 1})
#: An edge as drawing programs smooth it.
SMOOTH = np.array([[0, 60, 128, 200, 255]], dtype=np.uint8)


def palette_mask() -> Image.Image:
    """Six indices that stand for COLOUR."""
    picture = Image.new("P", (3, 2))
    picture.putpalette(COLOUR.tobytes())
    picture.putdata(range(6))
    return picture


# Pixel values


@pytest.mark.parametrize(
    "data",
    [
        stored(VALUES),
        stored(VALUES.astype(np.uint16)),
        stored(np.dstack([VALUES] * 3)),
        stored(np.dstack([VALUES] * 3 + [ALPHA])),
        stored(np.dstack([VALUES, ALPHA])),
        deep_png(np.dstack([VALUES] * 3).astype(np.uint16)),
        stored(VALUES, "GIF"),
        stored(VALUES, "BMP"),
        tiff(VALUES.astype(np.int32)),
        tiff(VALUES, byteorder=">", compression="lzw"),
    ],
    ids=["L", "16-bit", "gray-RGB", "gray-RGBA", "LA", "deep-RGB", "GIF", "BMP", "32-bit", "LZW"],
)
def test_multiclass_mask_becomes_class_indices(cells_map: ClassMap, data: bytes) -> None:
    mask = read_mask([named(data)], cells_map)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, [[0, 1], [2, IGNORE_INDEX]])


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "GIF"])
def test_palette_mask_gives_its_indices_and_not_its_colours(form: str) -> None:
    np.testing.assert_array_equal(read_mask_values(named(stored(palette_mask(), form))), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_1_bit_mask_gives_zeros_and_ones(form: str) -> None:
    data = stored(Image.fromarray(GRAY > 127), form)
    np.testing.assert_array_equal(read_mask_values(named(data)), GRAY > 127)


def test_4_bit_mask_gives_what_is_stored() -> None:
    # Spread over 0 to 255, class 1 would be 17.
    data = png(width=2, height=1, bits=4, colour_type=0, rows=b"\0\x1f")
    np.testing.assert_array_equal(read_mask_values(named(data)), [[1, 15]])


@pytest.mark.parametrize("value", [300, 70_000])
def test_deep_mask_keeps_values_above_255(value: int) -> None:
    data = tiff(np.array([[0, value]], dtype=np.uint32))
    class_map = ClassMap(kind="multiclass", classes={"soil": 0, "crop": value})
    np.testing.assert_array_equal(read_mask([named(data)], class_map), [[0, 1]])


def test_coloured_mask_is_refused_where_classes_are_numbers() -> None:
    with pytest.raises(DataError) as caught:
        read_mask_values(named(stored(COLOUR)))
    assert str(caught.value) == (
        "mask is a colour image: scan.png: 6 colours. Export it as an index image, a number a pixel, "
        "or give the classes their colours in masks.classes."
    )


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (tiff(np.array([[0.0, 0.9, 1.0]], dtype=np.float32)), "gray, float32"),  # cut off, 0.9 would be background
        (stored(Image.new("CMYK", (3, 2), (0, 1, 0, 1)), "TIFF"), "cmyk, uint8"),
        (tiff(np.zeros((2, 3, 5), np.uint8), planarconfig="contig"), "channels, uint8"),
    ],
)
def test_mask_of_another_kind_is_refused(cells_map: ClassMap, data: bytes, what: str) -> None:
    with pytest.raises(DataError) as caught:
        read_mask([named(data)], cells_map)
    assert str(caught.value) == (
        f"a mask of another kind: scan.png: {what}. Export it as an index image, a whole number a pixel."
    )


# Multiclass


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


# Colours


COLOURED = ClassMap(
    kind="multiclass", classes={"soil": [0, 0, 0], "crop": "#00ff00", "weed": [255, 0, 0]}, ignore="#FFFFFF"
)
DRAWN = np.array([[[0, 0, 0], [0, 255, 0]], [[255, 0, 0], [255, 255, 255]]], dtype=np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        stored(DRAWN),
        stored(np.dstack([DRAWN, ALPHA])),
        stored(Image.fromarray(DRAWN).quantize(4)),
        stored(DRAWN, "BMP"),
        tiff(DRAWN, photometric="rgb"),
    ],
    ids=["RGB", "RGBA", "palette", "BMP", "TIFF"],
)
def test_colours_stand_for_classes(data: bytes) -> None:
    np.testing.assert_array_equal(read_mask([named(data)], COLOURED), [[0, 1], [2, IGNORE_INDEX]])


def test_gray_and_1_bit_masks_have_colours_too() -> None:
    for data in (stored(np.array([[0, 255]], np.uint8)), stored(Image.fromarray(np.array([[False, True]])))):
        np.testing.assert_array_equal(read_mask([named(data)], COLOURED), [[0, IGNORE_INDEX]])


def test_unknown_colour_is_named() -> None:
    with pytest.raises(DataError) as caught:
        read_mask([named(stored(np.full((1, 1, 3), (0, 254, 0), np.uint8)))], COLOURED)
    assert str(caught.value) == (
        "class value outside the recipe: scan.png: #00fe00. The recipe knows [#000000, #00ff00, #ff0000, #ffffff]; "
        "add the value to masks.classes (or masks.ignore), or correct the mask."
    )


def test_colours_of_16_bits_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"more than 8 bits a channel: mask scan.png: 16\. Export colours with 8 bits\."
    ):
        read_mask([named(deep_png(DRAWN.astype(np.uint16)))], COLOURED)


# Smoothed masks


def test_smoothed_mask_is_refused_with_its_remedy() -> None:
    with pytest.raises(DataError) as caught:
        read_mask([named(stored(SMOOTH))], BINARY)
    assert str(caught.value) == (
        "mask is not binary: scan.png: 60, 128, 200 between 0 and 255, 60.00% of its pixels. If its edges are smoothed "
        "(anti-aliased, JPEG), cut them with masks.threshold: 128; if it has more classes, name them in "
        "masks.classes; or correct the mask."
    )


@pytest.mark.parametrize(
    ("threshold", "expected"), [(128, [[0, 0, 1, 1, 1]]), (60, [[0, 1, 1, 1, 1]]), (255, [[0, 0, 0, 0, 1]])]
)
def test_smoothed_mask_is_cut_at_the_threshold(threshold: int, expected: Any) -> None:
    class_map = ClassMap(kind="multiclass", classes={"background": 0, "cell": 255}, threshold=threshold)
    np.testing.assert_array_equal(read_mask([named(stored(SMOOTH))], class_map), expected)
    planes = ClassMap(kind="multilabel", classes={"cell": 255}, threshold=threshold)
    np.testing.assert_array_equal(read_mask([named(stored(SMOOTH))], planes)[..., 0], expected)


def test_threshold_knows_dark_objects_and_keeps_the_ignore_value() -> None:
    class_map = ClassMap(kind="multiclass", classes={"ground": 255, "membrane": 0}, ignore=100, threshold=128)
    np.testing.assert_array_equal(
        encode_mask(np.array([[0, 100, 120, 128, 255]]), class_map, where=""), [[1, IGNORE_INDEX, 1, 0, 0]]
    )


def test_smoothed_plane_and_object_are_refused_too() -> None:
    with pytest.raises(DataError, match=r"mask is not binary: scan.png: .*masks.threshold: 128"):
        read_mask([named(stored(SMOOTH))], ClassMap(kind="multilabel", classes={"cell": 255}))
    with pytest.raises(DataError, match=r"mask is not binary: scan.png: .*masks.threshold: 128"):
        read_mask([named(stored(SMOOTH)), named(stored(SMOOTH))], CELLS)


# Planes


def test_multilabel_planes_are_stacked_in_the_order_of_the_classes() -> None:
    class_map = ClassMap(kind="multilabel", classes={"left": 255, "both": 1})
    left, both = stored(np.array([[255, 0]], dtype=np.uint8)), stored(Image.fromarray(np.array([[True, True]])))
    mask = read_mask([named(left), named(both)], class_map)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, [[[1, 1], [0, 1]]])


def test_unknown_value_in_a_plane_is_named() -> None:
    with pytest.raises(DataError) as caught:
        encode_plane(np.array([[0, 128, 255]]), 255, where="ring/a.png")
    assert str(caught.value) == (
        "class value outside the recipe: ring/a.png: 128. This class is drawn with 255 on 0; "
        "correct masks.classes, or threshold the mask."
    )


def test_planes_of_different_sizes_are_refused() -> None:
    class_map = ClassMap(kind="multilabel", classes={"a": 255, "b": 255})
    files = [named(stored(np.zeros((2, width), np.uint8)), f"{width}.png") for width in (3, 4)]
    with pytest.raises(DataError) as caught:
        read_mask(files, class_map)
    assert str(caught.value) == "masks of one image differ in size: 3.png: 3x2, 4x2. Export them again."


# Instances


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32])
def test_ids_are_numbered_again_in_their_order(dtype: Any) -> None:
    top = np.iinfo(dtype).max
    mask = read_mask([named(tiff(np.array([[0, 7, top], [3, 7, 0]], dtype=dtype)))], CELLS)
    assert mask.dtype == np.uint16
    np.testing.assert_array_equal(mask, [[0, 2, 3], [1, 2, 0]])


def test_more_objects_than_ids_are_refused() -> None:
    assert encode_ids(np.arange(65_536), where="scan").max() == 65_535
    with pytest.raises(DataError, match=r"too many objects: scan: 65536, at most 65535 are possible\. Cut the image\."):
        encode_ids(np.arange(65_537), where="scan")


def test_negative_id_is_refused() -> None:
    with pytest.raises(DataError, match=r"negative object id: scan: -1\. Number objects from 1"):
        encode_ids(np.array([[-1, 0]]), where="scan")


def object_file(name: str, row: list[int]) -> FileBytes:
    return named(stored(np.array([row], dtype=np.uint8)), name)


def test_files_of_one_object_each_become_ids_in_the_order_of_names() -> None:
    files = [object_file("b.png", [0, 0, 255, 0]), object_file("a.png", [255, 255, 0, 0])]
    np.testing.assert_array_equal(read_mask(files, CELLS), [[1, 1, 2, 0]])


def test_overlap_belongs_to_the_smaller_object_and_of_equal_ones_to_the_later_name() -> None:
    large, small = object_file("b.png", [255, 255, 255, 0]), object_file("a.png", [255, 0, 0, 0])
    np.testing.assert_array_equal(read_mask([large, small], CELLS), [[1, 2, 2, 0]])
    one, other = object_file("a.png", [1, 1, 0]), object_file("b.png", [0, 1, 1])
    for files in ([one, other], [other, one]):
        np.testing.assert_array_equal(read_mask(files, CELLS), [[1, 2, 2]])


def test_threshold_says_that_a_single_file_is_one_object() -> None:
    class_map = ClassMap(kind="instances", classes={"background": 0, "cell": 1}, threshold=128)
    np.testing.assert_array_equal(read_mask([named(stored(SMOOTH))], class_map), [[0, 0, 1, 1, 1]])


def test_objects_of_different_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="masks of one image differ in size: a.png: 2x1, 3x1"):
        read_mask([object_file("a.png", [0, 1]), object_file("b.png", [0, 1, 0])], CELLS)


def test_several_ids_in_a_file_of_one_object_are_refused() -> None:
    with pytest.raises(DataError, match=r"several values in the mask of one object: a.png: 1, 2\. Draw it with one"):
        read_mask([object_file("a.png", [0, 1, 2]), object_file("b.png", [0, 1, 0])], CELLS)


# Real files


def member(datasets: Path, name: str) -> FileBytes:
    with tarfile.open(datasets / f"{name.split('/', maxsplit=1)[0]}.tar") as archive:
        stream = archive.extractfile(name)
        assert stream is not None
        return FileBytes(name=name, data=stream.read())


def test_instances_of_dsb2018_are_its_binary_mask(datasets: Path) -> None:
    ids = read_mask([member(datasets, "dsb2018/instances/00071198d059.png")], CELLS)
    binary = read_mask([member(datasets, "dsb2018/masks/00071198d059.png")], BINARY)
    assert ids.dtype == np.uint16
    np.testing.assert_array_equal(np.unique(ids), np.arange(ids.max() + 1))
    np.testing.assert_array_equal(ids > 0, binary)


def test_ignore_value_of_cwfid(datasets: Path) -> None:
    class_map = ClassMap(kind="multiclass", classes={"soil": 0, "crop": 1, "weed": 2}, ignore=255)
    mask = read_mask([member(datasets, "cwfid_small/masks/040.png")], class_map)
    assert mask.shape == (966, 1296)
    assert set(np.unique(mask)) == {0, 1, 2, IGNORE_INDEX}
