"""The U-Net paper's border weights: thin borders between cells that lie close together count more in the loss.

Computed from the mask as the augmentation leaves it, so that weights turn and stretch with it, and shards don't depend
on a knob of the training.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unet_core.errors import RecipeError
from unet_core.samples import Array, ClassMap

Weights = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]

#: Where the two distances sum up to more than so many sigmas, the weight is taken as 0: it is below 4e-6 of w0.
REACH_SIGMAS = 5


@dataclass(frozen=True, kw_only=True)
class BorderWeight:
    """What `train.border_weight` asks for."""

    w0: float
    """Added to a pixel's weight where two cells all but touch; the paper takes 10."""
    sigma_px: float
    """How quickly it falls with the sum of the distances to the two nearest cells; the paper takes 5."""

    @classmethod
    def of_recipe(cls, told: Mapping[str, float], class_map: ClassMap) -> "BorderWeight":
        """Read the recipe's entry; RecipeError where it is incomplete, or masks have no background."""
        if set(told) != {"w0", "sigma_px"}:
            raise RecipeError(
                f"train.border_weight: {', '.join(told) or 'nothing'} given. Give w0 and sigma_px; the paper has "
                "{w0: 10, sigma_px: 5}."
            )
        for name, value in told.items():
            if not 0 < value < float("inf"):
                raise RecipeError(f"train.border_weight: {name}: {value}: must be above 0.")
        if class_map.kind == "multilabel" or (class_map.kind == "multiclass" and class_map.background is None):
            raise RecipeError(
                f"train.border_weight: masks.kind: {class_map.kind}: borders are the background between cells. Name "
                "masks.background (kind multiclass or instances), or remove the weight."
            )
        return cls(**told)


def border_weights(mask: Array, class_map: ClassMap, weight: BorderWeight) -> Weights:
    """w0 exp(-(d1 + d2)^2 / (2 sigma^2)) on background, 0 elsewhere, of an encoded mask; (H, W) float32.

    d1 and d2 are the distances to the nearest and the second nearest cell (Ronneberger et al. 2015, equation 2, whose
    w_c are the class weights). Cells are instances, or connected regions of a class other than the background.
    """
    nearest = np.full(mask.shape, np.inf, dtype=np.float32)
    second = nearest.copy()
    reach = int(np.ceil(REACH_SIGMAS * weight.sigma_px))
    for labels in _label_cells(mask, class_map):
        for label, box in enumerate(ndimage.find_objects(labels), start=1):
            if box is None:
                continue
            around = tuple(slice(max(0, side.start - reach), side.stop + reach) for side in box)
            distance = cv2.distanceTransform(
                (labels[around] != label).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
            )
            closer = nearest[around]
            np.minimum(second[around], np.maximum(closer, distance), out=second[around])
            np.minimum(closer, distance, out=closer)
    weights = np.zeros(mask.shape, dtype=np.float32)
    near = _is_background(mask, class_map) & (nearest + second <= reach)
    weights[near] = weight.w0 * np.exp(np.square(nearest[near] + second[near]) / np.float32(-2 * weight.sigma_px**2))
    return weights


def _is_background(mask: Array, class_map: ClassMap) -> npt.NDArray[np.bool_]:
    return mask == (0 if class_map.kind == "instances" else class_map.names.index(str(class_map.background)))


def _label_cells(mask: Array, class_map: ClassMap) -> Iterator[Labels]:
    """Maps of numbered cells, 0 elsewhere."""
    if class_map.kind == "instances":
        yield mask.astype(np.int32)
        return
    for index in class_map.scored:
        # Regions that touch at a corner are two: what separates them is to be learnt.
        yield cv2.connectedComponents((mask == index).astype(np.uint8), connectivity=4)[1]
