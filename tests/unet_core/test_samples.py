from typing import Any

import numpy as np
import pytest

from unet_core.errors import RecipeError
from unet_core.samples import IGNORE_INDEX, ClassMap, class_indices, count_class_pixels

# Pixels


def test_class_pixels_leave_out_ignored_ones(cells_map: ClassMap) -> None:
    mask = np.array([[0, 0, 0], [2, IGNORE_INDEX, 2]], dtype=np.uint8)
    assert count_class_pixels(mask, cells_map) == (3, 0, 2)


def test_class_pixels_of_planes_may_overlap() -> None:
    class_map = ClassMap(kind="multilabel", classes={"a": 255, "b": 255})
    assert count_class_pixels(np.array([[[1, 1], [0, 1]]], dtype=np.uint8), class_map) == (1, 2)


def test_class_pixels_do_not_overflow() -> None:
    class_map = ClassMap(kind="multilabel", classes={"a": 255})
    assert count_class_pixels(np.ones((40, 40, 1), dtype=np.uint8), class_map) == (1600,)


def test_instances_are_seen_as_foreground() -> None:
    class_map = ClassMap(kind="instances", classes={"background": 0, "cell": 1})
    ids = np.array([[0, 1, 300], [0, 256, 2]], dtype=np.uint16)
    seen = class_indices(ids, class_map)
    assert seen.dtype == np.uint8
    np.testing.assert_array_equal(seen, [[0, 1, 1], [0, 1, 1]])
    assert count_class_pixels(ids, class_map) == (2, 4)


def test_other_masks_are_seen_as_they_are(cells_map: ClassMap) -> None:
    mask = np.array([[0, 1, IGNORE_INDEX]], dtype=np.uint8)
    assert class_indices(mask, cells_map) is mask


# Class maps


def test_class_map_knows_names_and_scored_classes(cells_map: ClassMap) -> None:
    assert cells_map.names == ("background", "cell", "nucleus")
    assert cells_map.num_classes == 3
    assert cells_map.scored == (1, 2)


def test_all_classes_are_scored_without_a_background() -> None:
    assert ClassMap(kind="multiclass", classes={"a": 0, "b": 1}).scored == (0, 1)


@pytest.mark.parametrize("background", [None, "background", "cell"])
def test_of_instances_the_objects_are_scored_whatever_the_background_is_called(background: str | None) -> None:
    classes = {"background": 0, "cell": 1}
    assert ClassMap(kind="instances", classes=classes, background=background).scored == (1,)


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
    "colours and numbers": (
        {"kind": "multiclass", "classes": {"a": 0, "b": "#ff0000"}},
        r"masks: \[0, '#ff0000'\]: numbers and colours are mixed\. Give all classes and ignore a colour\.",
    ),
    "no colour": (
        {"kind": "multiclass", "classes": {"a": "red", "b": "#ff0000"}},
        r"masks: 'red' is no colour\. Write \"#rrggbb\" with its quotes, or \[red, green, blue\]\.",
    ),
    "level above 255": (
        {"kind": "multiclass", "classes": {"a": [0, 0, 256], "b": [0, 0, 0]}},
        r"masks: \[0, 0, 256\] is no colour\. Write \[red, green, blue\], each from 0 to 255\.",
    ),
    "one colour twice": (
        {"kind": "multiclass", "classes": {"a": [255, 0, 0], "b": "#FF0000"}},
        "one pixel value for two classes",
    ),
    "planes in colour": (
        {"kind": "multilabel", "classes": {"a": "#ff0000"}},
        r"masks.classes: #ff0000: only multiclass masks may be drawn in colours\.",
    ),
    "threshold of three classes": (
        {"kind": "multiclass", "classes": {"a": 0, "b": 1, "c": 2}, "threshold": 1},
        "masks.threshold: only binary masks can be cut by it",
    ),
    "threshold that cuts nothing": (
        {"kind": "multiclass", "classes": {"a": 0, "b": 255}, "threshold": 0},
        r"masks.threshold: 0: must be above 0, and at most 255\.",
    ),
    "instances of two kinds": (
        {"kind": "instances", "classes": {"background": 0, "cell": 1, "nucleus": 2}},
        r"instances have a background and one kind of object\. Write \{background: 0, NAME: 1\}",
    ),
    "instances with ignore": (
        {"kind": "instances", "classes": {"background": 0, "cell": 1}, "ignore": 255},
        r"masks.ignore: instances have no such value\. Set it to null\.",
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


def test_colours_have_one_spelling() -> None:
    class_map = ClassMap(kind="multiclass", classes={"soil": [0, 0, 0], "crop": "#00FF7f"}, ignore=[255, 255, 255])
    assert class_map.classes == {"soil": "#000000", "crop": "#00ff7f"}
    assert class_map.values == (0, 0x00FF7F)
    assert (class_map.ignore, class_map.ignored_value, class_map.has_colours) == ("#ffffff", 0xFFFFFF, True)
    assert class_map == ClassMap(kind="multiclass", classes=class_map.classes, ignore=class_map.ignore)
