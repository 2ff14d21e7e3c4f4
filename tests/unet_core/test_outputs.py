import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from unet_core.outputs import (
    Ring,
    class_probabilities,
    geojson,
    mask_planes,
    separate_objects,
    trace_polygons,
    uncertainty,
)
from unet_core.samples import ClassMap

CLASSES = ClassMap(kind="multiclass", classes={"soil": 3, "crop": 7, "weed": 9}, background="soil")
PLANES = ClassMap(kind="multilabel", classes={"ring": 255, "plus": 100})
CELLS = ClassMap(kind="instances", classes={"background": 0, "cell": 1})


def test_probabilities_of_classes_add_up_to_one() -> None:
    logits = torch.tensor([0.0, math.log(2), math.log(5)]).view(3, 1, 1)
    assert class_probabilities(logits, CLASSES).flatten().tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8])


def test_probabilities_of_overlapping_classes_are_of_each_alone() -> None:
    logits = torch.tensor([0.0, math.log(3)]).view(2, 1, 1)
    assert class_probabilities(logits, PLANES).flatten().tolist() == pytest.approx([1 / 2, 3 / 4])


def test_uncertainty_of_classes_is_entropy_over_its_largest() -> None:
    probabilities = torch.tensor([[1.0, 1 / 3, 1 / 2], [0.0, 1 / 3, 1 / 2], [0.0, 1 / 3, 0.0]])[:, None]
    found = uncertainty(probabilities, CLASSES)
    assert found.shape == (1, 3)
    assert found[0].tolist() == pytest.approx([0, 1, math.log(2) / math.log(3)])


def test_uncertainty_of_overlapping_classes_is_the_mean_of_theirs() -> None:
    probabilities = torch.tensor([[1.0, 1 / 2, 1 / 2], [0.0, 1 / 2, 1 / 4]])[:, None]
    quarter = 1 / 4 * 2 + 3 / 4 * math.log2(4 / 3)
    assert uncertainty(probabilities, PLANES)[0].tolist() == pytest.approx([0, 1, (1 + quarter) / 2])


def test_planes_leave_out_the_background() -> None:
    mask = np.array([[0, 1, 2]], dtype=np.uint8)
    assert {name: plane.tolist() for name, plane in mask_planes(mask, CLASSES).items()} == {
        "crop": [[False, True, False]],
        "weed": [[False, False, True]],
    }
    assert list(mask_planes(np.array([[0, 1]], dtype=np.uint8), CELLS)) == ["cell"]
    assert list(mask_planes(np.zeros((1, 2, 2), dtype=np.uint8), PLANES)) == ["ring", "plus"]


def corners(ring: Ring) -> set[tuple[float, float]]:
    assert ring[0] == ring[-1]
    return {(x, y) for x, y in ring}


def test_polygon_of_one_pixel_is_its_square() -> None:
    plane = np.zeros((4, 5), dtype=bool)
    plane[1, 3] = True
    (polygon,) = trace_polygons(plane)
    assert len(polygon) == 1
    assert corners(polygon[0]) == {(3, 1), (4, 1), (4, 2), (3, 2)}


def test_polygon_of_a_frame_has_a_hole() -> None:
    plane = np.ones((5, 6), dtype=bool)
    plane[2:3, 2:4] = False
    (polygon,) = trace_polygons(plane)
    outer, hole = polygon
    assert corners(outer) == {(0, 0), (6, 0), (6, 5), (0, 5)}
    # Corners of a hole are the frame's inner corners, which are cut.
    assert corners(hole) == {(2, 2.5), (2.5, 2), (3.5, 2), (4, 2.5), (3.5, 3), (2.5, 3)}


def test_island_in_a_hole_is_a_polygon_of_its_own() -> None:
    plane = np.ones((7, 7), dtype=bool)
    plane[1:6, 1:6] = False
    plane[3, 3] = True
    assert sorted(len(polygon) for polygon in trace_polygons(plane)) == [1, 2]


def test_nothing_has_no_polygons() -> None:
    assert trace_polygons(np.zeros((3, 3), dtype=bool)) == []


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_polygons_hold_the_centres_of_their_pixels_and_no_others(height: int, width: int, seed: int) -> None:
    plane = np.random.default_rng(seed).random((height, width)) < 0.6
    rows, columns = np.mgrid[:height, :width]
    centres = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1)
    inside = np.zeros(height * width, dtype=bool)
    for polygon in trace_polygons(plane):
        for ring in polygon:
            # Even-odd: a point in a hole is in two rings.
            inside ^= Outline(ring).contains_points(centres)
    assert (inside.reshape(height, width) == plane).all()


def test_geojson_names_the_class_of_each_region() -> None:
    mask = np.array([[1, 0, 2], [1, 0, 0], [0, 0, 2]], dtype=np.uint8)
    found = geojson(mask, CLASSES)
    assert found["type"] == "FeatureCollection"
    assert [feature["properties"]["class"] for feature in found["features"]] == ["crop", "weed", "weed"]
    first = found["features"][0]["geometry"]
    assert first["type"] == "Polygon"
    assert corners(first["coordinates"][0]) == {(0, 0), (1, 0), (1, 2), (0, 2)}


def disc(rows: np.ndarray, columns: np.ndarray, y: int, x: int, radius: int) -> np.ndarray:
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def test_touching_discs_are_parted_where_they_are_narrow() -> None:
    rows, columns = np.mgrid[:40, :60]
    left, right = disc(rows, columns, 20, 18, 12), disc(rows, columns, 20, 40, 12)
    ids = separate_objects(left | right)
    assert set(np.unique(ids)) == {0, 1, 2}
    assert ((ids > 0) == (left | right)).all()
    assert len({*ids[left & (columns < 27)]}) == 1
    assert len({*ids[right & (columns > 31)]}) == 1
    assert ids[20, 10] != ids[20, 50]


def test_objects_apart_and_specks_have_an_id_each() -> None:
    plane = np.zeros((30, 30), dtype=bool)
    plane[0:8, 0:8] = plane[20:29, 20:29] = True
    plane[0, 10] = plane[29, 0] = True
    ids = separate_objects(plane)
    assert ((ids > 0) == plane).all()
    assert len(np.unique(ids)) == 5
    assert len({ids[4, 4], ids[24, 24], ids[0, 10], ids[29, 0]}) == 4


def test_no_objects_are_no_ids() -> None:
    assert not separate_objects(np.zeros((5, 7), dtype=bool)).any()
    assert separate_objects(np.ones((1, 1), dtype=bool)).tolist() == [[1]]


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_objects_cover_their_class_and_never_reach_into_another_region(height: int, width: int, seed: int) -> None:
    plane = np.random.default_rng(seed).random((height, width)) < 0.5
    ids = separate_objects(plane)
    assert ((ids > 0) == plane).all()
