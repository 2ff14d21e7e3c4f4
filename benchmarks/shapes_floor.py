"""The least loss that any prediction can have on the shapes, since their pictures don't tell everything.

White covers white: where a shape lies under others its outline can't be seen, and one that is wholly covered may
lie anywhere under them. Of the mesh square only odd rows and columns are drawn, so that each of its edges may be a
pixel further out.

For each mask of a picture, all places and sizes are listed at which the shape would have left the same picture, the
other five being where they are, with their probabilities (drawing is uniform). The prediction that is best on average
over them is sought (L-BFGS-B over the pixels that they disagree about, from two starts), and its average loss taken.
A network has to find the other five as well, so the true floor lies a little higher; where a mask is certain it is 0.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize

from benchmarks.tutorial import FRESH_SEED
from unet_core.synthetic import (
    CENTRE_RANGE,
    SHAPE_NAMES,
    SIZE_FACTORS,
    SIZE_RANGE,
    Place,
    Plane,
    draw_shapes,
    shape_plane,
    visible_part,
)

SIDE = 192
#: More than a shape reaches from its centre. No centre lies so close to the picture's border that one is cut off.
REACH = 32
#: Pixels of a shape that are tested first, so that most places are soon out.
FIRST_PIXELS = 12
#: Of a probability from 0 and 1, where cross-entropy is infinite.
LEAST_DOUBT = 1e-7

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The masks that a picture leaves possible for one shape."""

    masks: Floats
    """(candidates, pixels) zeros and ones, of the pixels that any of them has."""
    probabilities: Floats
    """(candidates,), their sum 1."""


def floor(num_fresh: int) -> dict[str, Any]:
    """Mean over the images of `benchmarks.tutorial.judge`; `by_class` is each class's part of `floor`."""
    found = np.array([least_losses(number) for number in range(num_fresh)])
    losses, is_uncertain = found[..., :2], found[..., 2] > 1
    return {
        "floor": round(float(losses.mean()), 5),
        "floor_bce": round(float(losses[..., 0].mean()), 5),
        "floor_dice_loss": round(float(losses[..., 1].mean()), 5),
        "standard_error": round(float(losses.mean(axis=(1, 2)).std() / num_fresh**0.5), 5),
        "by_class": _by_class(losses.mean(axis=(0, 2)) / len(SHAPE_NAMES)),
        "uncertain_masks": _by_class(is_uncertain.mean(axis=0)),
        "images": num_fresh,
    }


def _by_class(values: Floats) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in zip(SHAPE_NAMES, values, strict=True)}


def least_losses(number: int) -> list[tuple[float, float, int]]:
    """For each class of a fresh image: least BCE and Dice loss, and how many masks are possible."""
    image, masks = draw_shapes(seed=FRESH_SEED, number=number, height=SIDE, width=SIDE)
    planes = {name: masks[..., k] == 1 for k, name in enumerate(SHAPE_NAMES)}
    rows = []
    for name in SHAPE_NAMES:
        others = np.any([visible_part(other, planes[other]) for other in planes if other != name], axis=0)
        candidates = find_candidates(name, image > 0, others)
        rows.append((*best_losses(candidates), len(candidates.probabilities)))
    return rows


def find_candidates(name: str, picture: Plane, others: Plane) -> Candidates:
    """All masks that this shape may have, given the picture and what the other shapes draw of it."""
    # Where it may lie: on white, and the mesh where it draws nothing.
    allowed = picture | ~visible_part(name, np.ones_like(picture))
    own = picture & ~others
    low, high = (SIDE * share * SIZE_FACTORS[name] for share in SIZE_RANGE)
    probabilities: dict[bytes, float] = {}
    for size, of_size in whole_numbers(low, high).items():
        for (y, x), of_place in zip(*find_places(name, size, allowed, own), strict=True):
            mask = shape_plane(name, Place(x=int(x), y=int(y), size=size), SIDE, SIDE).tobytes()
            probabilities[mask] = probabilities.get(mask, 0.0) + of_size * of_place
    masks = np.array([np.frombuffer(mask, dtype=bool) for mask in probabilities])
    weights = np.array(list(probabilities.values()))
    return Candidates(masks=masks[:, masks.any(axis=0)].astype(np.float64), probabilities=weights / weights.sum())


def find_places(name: str, size: int, allowed: Plane, own: Plane) -> tuple[Ints, Floats]:
    """Centres (places, 2), row and column, at which the shape is allowed and has all of `own`; their probabilities."""
    side = 2 * REACH + 1
    offsets = np.argwhere(shape_plane(name, Place(x=REACH, y=REACH, size=size), side, side)) - REACH
    (rows, of_rows), (columns, of_columns) = (
        centres_near(np.flatnonzero(own.any(axis=1 - axis)), reach=size) for axis in (0, 1)
    )
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    probabilities = np.outer(of_rows, of_columns).ravel()
    for pixels in (offsets[:: len(offsets) // FIRST_PIXELS + 1], offsets):
        fits = pixels_at(allowed, places, pixels).all(axis=1)
        places, probabilities = places[fits], probabilities[fits]
    has_all = pixels_at(own, places, offsets).sum(axis=1) == own.sum()
    return places[has_all], probabilities[has_all]


def centres_near(own: Ints, *, reach: int) -> tuple[Ints, Floats]:
    """Centres along an axis from which a shape reaches all of its own rows or columns; their probabilities."""
    found = whole_numbers(SIDE * CENTRE_RANGE[0], SIDE * CENTRE_RANGE[1])
    near = [centre for centre in found if not len(own) or own[-1] - reach <= centre <= own[0] + reach]
    return np.array(near, dtype=np.int64), np.array([found[centre] for centre in near])


def whole_numbers(low: float, high: float) -> dict[int, float]:
    """The probability of each number that is cut off from one between `low` and `high`."""
    return {
        number: (min(number + 1, high) - max(number, low)) / (high - low) for number in range(int(low), math.ceil(high))
    }


def pixels_at(plane: Plane, places: Ints, offsets: Ints) -> npt.NDArray[np.bool_]:
    """(places, offsets): the plane's values at all offsets from all places."""
    rows, columns = (places[:, axis, None] + offsets[None, :, axis] for axis in (0, 1))
    return plane[rows, columns]


def best_losses(candidates: Candidates) -> tuple[float, float]:
    """BCE and soft Dice loss, averaged over the candidates, of the prediction whose average is least."""
    marginal = candidates.probabilities @ candidates.masks
    is_open = marginal < 1 - 1e-9
    if not is_open.any():
        return 0.0, 0.0
    fixed = float((~is_open).sum())
    masks, marginal = candidates.masks[:, is_open], marginal[is_open]

    def losses(p: Floats) -> tuple[float, Floats, float, Floats]:
        return *expected_bce(p, marginal), *expected_dice(p, masks, candidates.probabilities, fixed)

    def objective(p: Floats) -> tuple[float, Floats]:
        bce, bce_slope, dice, dice_slope = losses(p)
        return (bce + dice) / 2, (bce_slope + dice_slope) / 2

    bounds = [(LEAST_DOUBT, 1 - LEAST_DOUBT)] * len(marginal)
    starts = (marginal, (marginal > 0.5).astype(np.float64))
    tried = [optimize.minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds) for start in starts]
    bce, _, dice, _ = losses(min(tried, key=lambda result: result.fun).x)
    return bce, dice


def expected_bce(p: Floats, marginal: Floats) -> tuple[float, Floats]:
    """Cross-entropy of a class over the whole picture, with its slope; pixels that are certain add nothing."""
    p = p.clip(LEAST_DOUBT, 1 - LEAST_DOUBT)
    value = -(marginal * np.log(p) + (1 - marginal) * np.log1p(-p)).sum() / SIDE**2
    return float(value), (p - marginal) / (p * (1 - p)) / SIDE**2


def expected_dice(p: Floats, masks: Floats, probabilities: Floats, fixed: float) -> tuple[float, Floats]:
    """Soft Dice loss as losses.py has it (smooth 1), with its slope; `fixed` pixels are certain, in mask and p."""
    overlap = 2 * (masks @ p + fixed) + 1
    size = p.sum() + masks.sum(axis=1) + 2 * fixed + 1
    slope = (probabilities * overlap / size**2).sum() - 2 * (probabilities / size) @ masks
    return float(1 - probabilities @ (overlap / size)), slope
