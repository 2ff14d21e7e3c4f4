"""How far a predicted outline lies from the true one: surface Dice at a tolerance, and the 95 % Hausdorff distance.

Outline pixels are those of a mask that touch its outside, or the image's border, by a side. Distances are in pixels.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SurfaceScores:
    """Two outlines compared. Points and hits add up over images; the distance does not."""

    points: int
    """Outline pixels, predicted and true."""
    hits: int
    """Of these, how many lie within the tolerance of the other outline."""
    hausdorff95_px: float | None
    """The larger of both directions' 95th percentiles of distance; None where an outline is missing."""

    @property
    def dice(self) -> float | None:
        """Normalised surface Dice (Nikolov et al. 2018, as pixel counts); None where both masks are empty."""
        return self.hits / self.points if self.points else None


def compare_surfaces(predicted: Mask, true: Mask, *, tolerance_px: float) -> SurfaceScores:
    """Compare the outlines of two masks (H, W)."""
    window = _rectangle(predicted | true)
    found, wanted = (_outline(mask[window]) for mask in (predicted, true))
    num_found, num_wanted = int(found.sum()), int(wanted.sum())
    if not num_found or not num_wanted:
        return SurfaceScores(points=num_found + num_wanted, hits=0, hausdorff95_px=None)
    there, back = _distances(found, wanted), _distances(wanted, found)
    return SurfaceScores(
        points=num_found + num_wanted,
        hits=int((there <= tolerance_px).sum() + (back <= tolerance_px).sum()),
        hausdorff95_px=float(max(np.percentile(there, 95), np.percentile(back, 95))),
    )


def _rectangle(mask: Mask) -> tuple[slice, slice]:
    """The smallest window around a mask; empty for an empty mask."""
    spans = []
    for axis in (1, 0):
        inside = np.flatnonzero(mask.any(axis=axis))
        spans.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0))
    return spans[0], spans[1]


def _outline(mask: Mask) -> Mask:
    # Beyond the window all is outside, so what touches its border is outline too.
    return mask & ~ndimage.binary_erosion(mask)


def _distances(from_outline: Mask, to_outline: Mask) -> Floats:
    """Distance of each pixel of one outline to the other."""
    distances: Floats = ndimage.distance_transform_edt(~to_outline)
    return distances[from_outline]
