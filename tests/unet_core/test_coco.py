import json
import sys
from typing import Any

import numpy as np
import pytest

from tests.unet_core.pictures import named
from unet_core.coco import is_coco, paint_objects, read_coco
from unet_core.errors import DataError, RecipeError
from unet_core.masks import read_mask
from unet_core.samples import IGNORE_INDEX, ClassMap

CLASSES = ClassMap(kind="multiclass", classes={"soil": 0, "crop": 1, "weed": 2}, ignore=255)
PLANES = ClassMap(kind="multilabel", classes={"crop": 255, "weed": 255})
CELLS = ClassMap(kind="instances", classes={"background": 0, "cell": 1})


def text(*annotations: dict[str, Any], height: Any = 3, width: Any = 4) -> bytes:
    return json.dumps({"height": height, "width": width, "annotations": annotations}).encode()


def runs(category: str, counts: Any, **more: Any) -> dict[str, Any]:
    return {"category": category, "segmentation": {"size": [3, 4], "counts": counts}, **more}


def read(data: bytes, class_map: ClassMap) -> list[Any]:
    return read_coco(data, class_map, where="scan").tolist()


def test_runs_go_down_the_columns() -> None:
    assert read(text(runs("crop", [4, 2, 6])), CLASSES) == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]]


def test_compressed_runs_are_those_of_the_reference() -> None:
    reference = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for fraction in (0.01, 0.5, 0.9):
        mask = (rng.random((47, 61)) < fraction).astype(np.uint8)
        counts = reference.encode(np.asfortranarray(mask))["counts"].decode()
        body = {"category": "crop", "segmentation": {"size": [47, 61], "counts": counts}}
        assert read(text(body, height=47, width=61), CLASSES) == mask.tolist()


def test_polygons_are_drawn_as_the_reference_draws_them() -> None:
    pytest.importorskip("pycocotools")
    square = {"category": "crop", "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]]}
    assert read(text(square), CLASSES) == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1]]
    parts = {"category": "crop", "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1], [3, 2, 4, 2, 4, 3, 3, 3]]}
    assert read(text(parts), CLASSES) == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_small_regions_lie_on_large_ones_in_any_order() -> None:
    large, small = runs("crop", [0, 12]), runs("weed", [4, 1, 7])
    expected = [[1, 1, 1, 1], [1, 2, 1, 1], [1, 1, 1, 1]]
    assert read(text(large, small), CLASSES) == read(text(small, large), CLASSES) == expected


def test_of_equal_regions_the_later_lies_on_top() -> None:
    assert read(text(runs("crop", [0, 12]), runs("weed", [0, 12])), CLASSES) == [[2] * 4] * 3


def test_crowd_is_ignored_where_the_recipe_can() -> None:
    crowd = runs("crop", [0, 3, 9], iscrowd=1)
    assert read(text(crowd), CLASSES) == [[IGNORE_INDEX, 0, 0, 0]] * 3
    plain = ClassMap(kind="multiclass", classes={"soil": 0, "crop": 1})
    assert read(text(crowd), plain) == [[1, 0, 0, 0]] * 3


def test_planes_overlap() -> None:
    mask = read_coco(text(runs("crop", [0, 12]), runs("weed", [0, 1, 11])), PLANES, where="scan")
    assert mask.shape == (3, 4, 2)
    assert mask.sum(axis=(0, 1)).tolist() == [12, 1]


def test_instances_have_an_id_each() -> None:
    mask = read_coco(text(runs("cell", [0, 6, 6]), runs("cell", [3, 3, 6])), CELLS, where="scan")
    assert mask.dtype == np.uint16
    assert mask.tolist() == [[1, 2, 0, 0]] * 3


def test_object_without_a_pixel_of_its_own_has_no_id() -> None:
    mask = paint_objects([np.array([0]), np.array([0]), np.array([1])], (1, 3), where="scan")
    assert mask.tolist() == [[1, 2, 0]]


def test_image_without_annotations_is_background() -> None:
    assert read(text(), CLASSES) == read(text(), CELLS) == [[0] * 4] * 3
    assert not read_coco(text(), PLANES, where="scan").any()


def test_annotations_are_told_from_pictures() -> None:
    assert is_coco(b' \n{"height": 1}')
    assert not is_coco(b"\x89PNG")
    assert read_mask([named(text(runs("crop", [0, 12])))], CLASSES).tolist() == [[1] * 4] * 3


def test_annotations_beside_other_masks_are_refused() -> None:
    with pytest.raises(DataError, match=r"annotations and other masks: scan.png: 2 files\. Keep one kind of them\."):
        read_mask([named(text())] * 2, CELLS)


REFUSALS = {
    "no JSON": (b"{", r"annotations can't be read: scan: JSONDecodeError.*Export them again, or remove the sample\."),
    "no size": (b"{}", r"annotations can't be read: scan: KeyError\('height'\)"),
    "a text as size": (text(height="3"), "height '3' and width 4 are no whole numbers"),
    "bomb": (text(height=10**6, width=10**6), r"mask is too large: scan: it claims 1000000x1000000 pixels"),
    "nested": (b'{"height":' + b"[" * 100_000, "annotations can't be read: scan: RecursionError"),
    "unknown class": (
        text(runs("tree", [12])),
        r"class outside the recipe: scan: 'tree'\. The recipe knows \['soil', 'crop', 'weed'\]; add it to masks.classes",
    ),
    "size": (
        text({"category": "crop", "segmentation": {"size": [4, 3], "counts": [12]}}),
        r"runs of size \[4, 3\] in an image of \[3, 4\]",
    ),
    "sum": (text(runs("crop", [4, 5])), r"runs don't add up to 3 x 4 pixels"),
    "negative": (text(runs("crop", [-4, 16])), "runs don't add up"),
    "fraction": (text(runs("crop", [4.0, 8])), "runs don't add up"),
    "damaged": (text(runs("crop", "\x01")), "compressed runs are damaged"),
    "endless": (text(runs("crop", "o" * 100)), "compressed runs are damaged"),
    "cut": (text(runs("crop", "o")), "compressed runs are cut short"),
    "two corners": (text({"category": "crop", "segmentation": [[0, 0, 1, 1]]}), "a polygon of 4 numbers"),
    "far outside": (
        text({"category": "crop", "segmentation": [[0, 0, 1e30, 0, 1, 1]]}),
        "a polygon's corner lies far outside 4x3 pixels",
    ),
}


@pytest.mark.parametrize(("data", "message"), REFUSALS.values(), ids=REFUSALS)
def test_impossible_annotations_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_coco(data, CLASSES, where="scan")


def test_crowd_among_instances_is_refused() -> None:
    with pytest.raises(DataError, match=r"a crowd among instances: scan: .*Remove these annotations, or train classes"):
        read_coco(text(runs("cell", [0, 12], iscrowd=1)), CELLS, where="scan")


def test_classes_without_a_ground_are_refused() -> None:
    no_ground = ClassMap(kind="multiclass", classes={"crop": 1, "weed": 2})
    with pytest.raises(RecipeError, match=r"no class stands for pixels without one\. Set masks.background\."):
        read_coco(text(), no_ground, where="scan")


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(RecipeError, match=r"polygons need pycocotools, .*pip install 'unet-pipeline\[coco\]'"):
        read_coco(text({"category": "crop", "segmentation": [[0, 0, 1, 0, 1, 1]]}), CLASSES, where="scan")


OBJECTS = ClassMap(kind="instances", classes={"background": 0, "a": 1}, background="background")


def test_large_regions_are_decoded_as_small_ones() -> None:
    rng = np.random.default_rng(0)
    for share in (0.01, 0.5, 0.99):
        plane = rng.random((13, 17)) < share
        flat = plane.T.reshape(-1)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [True]])))
        counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
        found = read(
            text(runs("a", counts) | {"segmentation": {"size": [13, 17], "counts": counts}}, height=13, width=17),
            OBJECTS,
        )
        assert (np.array(found) > 0).tolist() == plane.tolist()


def test_regions_that_claim_more_than_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unet_core.coco.MAX_REGION_PIXELS", 20)
    with pytest.raises(
        DataError, match=r"annotations can't be used: .*: regions of more than 0 million pixels together"
    ):
        read(text(runs("a", [0, 12]), runs("a", [0, 12])), OBJECTS)


def test_an_annotation_that_is_only_a_box_is_refused() -> None:
    with pytest.raises(DataError, match=r"an annotation without a region: only a box\? Export polygons or runs"):
        read(text(runs("a", []) | {"segmentation": []}), OBJECTS)
