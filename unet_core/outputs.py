"""What else than a mask a prediction can give: probabilities, uncertainty, outlines, single objects."""

import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from unet_core.samples import Array, ClassMap

#: How far a peak must be from a higher one of its region to be the centre of an object of its own.
SEED_DISTANCE_PX = 5
#: Smoothing of the distances, so that a ragged border makes no centres of its own.
SEED_SIGMA_PX = 1.0
#: Pixels that touch at a corner are of one region, here as in the polygons.
NEIGHBOURS = np.ones((3, 3), dtype=int)

Places = npt.NDArray[np.intp]

Ring = list[list[float]]
"""Corners as [x, y]; the last is the first."""


def class_probabilities(logits: Tensor, class_map: ClassMap) -> Tensor:
    """Logits (K, H, W) -> probabilities of the same shape; of classes that exclude each other they add up to 1."""
    return logits.sigmoid() if class_map.kind == "multilabel" else logits.softmax(dim=0)


def uncertainty(probabilities: Tensor, class_map: ClassMap) -> Tensor:
    """Entropy of the prediction (H, W), from 0, sure, to 1, as good as drawn by lot.

    -sum p log p / log K over K classes that exclude each other (Shannon 1948); where they may overlap, the mean over
    the classes of -p log2 p - (1 - p) log2 (1 - p).
    """
    if class_map.kind == "multilabel":
        return (_entropy(probabilities) + _entropy(1 - probabilities)).mean(dim=0) / math.log(2)
    return _entropy(probabilities).sum(dim=0) / math.log(len(probabilities))


def _entropy(probabilities: Tensor) -> Tensor:
    return -torch.xlogy(probabilities, probabilities)


def mask_planes(mask: Array, class_map: ClassMap) -> dict[str, npt.NDArray[np.bool_]]:
    """Where each class is, (H, W) by name; without the background, which is what the others leave."""
    if class_map.kind == "multilabel":
        return {name: mask[..., number] > 0 for number, name in enumerate(class_map.names)}
    return {name: mask == number for number, name in enumerate(class_map.names) if name != class_map.ground}


def trace_polygons(plane: npt.NDArray[np.bool_]) -> list[list[Ring]]:
    """Polygons around the regions of a plane (H, W): the outer ring, then those of holes. x right, y down, in pixels.

    Corners lie on corners of pixels, pixel (0, 0) reaching from 0 to 1; inner corners are cut by half a pixel's side.
    So a polygon holds just the centres of its region's pixels. Pixels that touch at a corner are of one region.
    """
    height, width = plane.shape
    # OpenCV's outlines run through the centres of pixels. On a grid of twice the size, where each pixel covers its
    # corners too, these are the corners, and a region of one pixel has an area.
    grid = np.zeros((2 * height + 1, 2 * width + 1), dtype=np.uint8)
    grid[1::2, 1::2] = plane
    grid = cv2.dilate(grid, np.ones((3, 3), dtype=np.uint8))
    outlines, hierarchy = cv2.findContours(grid, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    polygons: dict[int, list[Ring]] = {}
    for number, outline in enumerate(outlines):
        parent = int(hierarchy[0][number][3])
        polygons.setdefault(number if parent < 0 else parent, []).insert(0 if parent < 0 else 1, _ring(outline))
    return list(polygons.values())


def _ring(outline: npt.NDArray[Any]) -> Ring:
    corners = (outline[:, 0] / 2).tolist()
    return [*corners, corners[0]]


def geojson(mask: Array, class_map: ClassMap) -> dict[str, Any]:
    """A FeatureCollection of a mask: one Polygon a region, its class in the properties; coordinates are pixels."""
    features = [
        {
            "type": "Feature",
            "properties": {"class": name},
            "geometry": {"type": "Polygon", "coordinates": rings},
        }
        for name, plane in mask_planes(mask, class_map).items()
        for rings in trace_polygons(plane)
    ]
    return {"type": "FeatureCollection", "features": features}


def separate_objects(plane: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Ids from 1 of the objects of a class (H, W), 0 elsewhere: watershed on the distance to the border.

    Every pixel belongs to the peak that it reaches by climbing to its highest neighbour, so that touching objects part
    where their common shape is narrow. A peak with a higher one nearby in its region belongs to that one's object.
    """
    # A border of nothing: an object at the image's edge ends there.
    padded = np.pad(plane, 1)
    distance = cv2.distanceTransform(padded.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    height = np.where(padded, cv2.GaussianBlur(distance, (0, 0), SEED_SIGMA_PX), -1)
    regions, _ = ndimage.label(padded, structure=NEIGHBOURS)
    peak_of = _roots(_climb(height))
    peaks = np.unique(peak_of[padded.ravel()])
    ids = _roots(np.searchsorted(peaks, peak_of[_highest_nearby(peaks, height, regions)]))
    _, ids = np.unique(ids, return_inverse=True)
    objects = np.zeros(padded.shape, dtype=np.int32)
    objects[padded] = ids[np.searchsorted(peaks, peak_of[padded.ravel()])] + 1
    return objects[1:-1, 1:-1]


def _climb(height: npt.NDArray[np.float32]) -> Places:
    """Of each pixel, the place (in reading order) of the highest in its 3x3 neighbourhood, the first of equals."""
    rows, columns = height.shape
    places = np.arange(height.size).reshape(height.shape)
    inner = (slice(1, -1), slice(1, -1))
    best, highest = places[inner].copy(), height[inner].copy()
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            near = (slice(1 + down, rows - 1 + down), slice(1 + right, columns - 1 + right))
            better = (height[near] > highest) | ((height[near] == highest) & (places[near] < best))
            best, highest = np.where(better, places[near], best), np.where(better, height[near], highest)
    places[inner] = best
    return places.ravel()


def _roots(parents: Places) -> Places:
    """Where each chain of parents ends; each step doubles how far all have come."""
    while ((further := parents[parents]) != parents).any():
        parents = further
    return parents


def _highest_nearby(peaks: Places, height: npt.NDArray[np.float32], regions: npt.NDArray[np.int32]) -> Places:
    """Of each peak, the place of the highest pixel of its region that is no further than `SEED_DISTANCE_PX`."""
    width = height.shape[1]
    found = np.empty_like(peaks)
    for number, (row, column) in enumerate(zip(*np.divmod(peaks, width), strict=True)):
        top, left = max(0, row - SEED_DISTANCE_PX), max(0, column - SEED_DISTANCE_PX)
        window = (slice(top, row + SEED_DISTANCE_PX + 1), slice(left, column + SEED_DISTANCE_PX + 1))
        near = np.where(regions[window] == regions[row, column], height[window], -1)
        down, right = np.unravel_index(int(near.argmax()), near.shape)
        found[number] = (top + down) * width + left + right
    return found
