"""Losses, pure functions on logits, and their weighted sum.

Shapes everywhere: logits (N, K, H, W); masks (N, H, W) int64 class indices with `IGNORE_INDEX`, or
(N, K, H, W) zeros and ones for overlapping classes; class weights (K,) or None, where all count alike.

In training, a batch here is what one lane takes in a step: `train.samples_per_lane` images. `border` are the weights of
border.py, (N, H, W), which a pixel has beside that of its class.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unet_core.errors import RecipeError
from unet_core.samples import IGNORE_INDEX, ClassMap


class Loss(Protocol):
    """Logits, masks and border weights -> a number to be made small."""

    def __call__(self, logits: Tensor, masks: Tensor, border: Tensor | None = None, /) -> Tensor: ...


Per = Literal["image", "batch"]
ClassWeighting = Literal["inverse", "median"]


def binary_cross_entropy(logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over all pixels and classes, for overlapping classes."""
    return _mean_of_pixels(
        F.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype), reduction="none"), masks, weights
    )


def cross_entropy(logits: Tensor, masks: Tensor, weights: Tensor | None = None, border: Tensor | None = None) -> Tensor:
    """Mean over the pixels that belong to a class, each with its weight; 0 where none does."""
    return _mean_of_pixels(-_log_likelihood(logits, masks), masks, weights, border)


def focal(
    logits: Tensor,
    masks: Tensor,
    weights: Tensor | None = None,
    border: Tensor | None = None,
    *,
    gamma: float = 2.0,
) -> Tensor:
    """Mean of -(1 - p)^gamma log p, where p is the probability of what is true (Lin et al. 2017)."""
    log_p = _log_likelihood(logits, masks)
    return _mean_of_pixels(-((1 - log_p.exp()) ** gamma) * log_p, masks, weights, border)


def soft_dice(
    logits: Tensor, masks: Tensor, weights: Tensor | None = None, *, smooth: float = 1.0, per: Per = "image"
) -> Tensor:
    """1 - (2 |P T| + smooth) / (|P| + |T| + smooth) of each class, per image (as in the tutorial) or per batch.

    P are probabilities: softmax for class indices, sigmoid for overlapping classes.
    """
    probabilities, targets = _probabilities_and_targets(logits, masks)
    overlap, size = _sums(probabilities * targets, per), _sums(probabilities, per) + _sums(targets, per)
    return _mean_of_classes(1 - (2 * overlap + smooth) / (size + smooth), weights)


def tversky(  # noqa: PLR0913 each is an argument of the recipe
    logits: Tensor,
    masks: Tensor,
    weights: Tensor | None = None,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
    per: Per = "image",
) -> Tensor:
    """1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth) of each class (Salehi et al. 2017).

    Above 0.5, alpha makes masks smaller and beta makes them larger; both 0.5 is Dice with half the smoothing.
    """
    probabilities, targets = _probabilities_and_targets(logits, masks)
    overlap = _sums(probabilities * targets, per)
    too_much, missed = _sums(probabilities, per) - overlap, _sums(targets, per) - overlap
    return _mean_of_classes(1 - (overlap + smooth) / (overlap + alpha * too_much + beta * missed + smooth), weights)


def lovasz(logits: Tensor, masks: Tensor, weights: Tensor | None = None, *, per: Per = "image") -> Tensor:
    """The Lovász extension of 1 - IoU of each class (Berman et al. 2018): per image, or per batch as they do.

    Class indices: of the errors of softmax, for classes that are present. Overlapping classes: of the hinge errors.
    """
    if masks.dim() == logits.dim():
        targets = masks.to(logits.dtype)
        errors = (1 - logits * (2 * targets - 1)).relu()
        counts = torch.ones(targets.shape[:2], dtype=logits.dtype, device=logits.device)
    else:
        probabilities, targets = _probabilities_and_targets(logits, masks)
        # An ignored pixel's error is 0, which adds nothing wherever it is sorted to.
        errors = (targets - probabilities).abs()
        counts = targets.amax(dim=(2, 3))
    errors, targets = errors.flatten(2), targets.flatten(2)
    if per == "batch":
        errors, targets = (values.transpose(0, 1).flatten(1)[None] for values in (errors, targets))
        counts = counts.amax(dim=0, keepdim=True)
    errors, order = errors.sort(dim=2, descending=True, stable=True)
    values = (errors * _jaccard_steps(targets.gather(2, order).long()).to(errors.dtype)).sum(dim=2)
    counts = counts if weights is None else counts * weights
    return (values * counts).sum() / counts.sum().clamp(min=torch.finfo(counts.dtype).tiny)


def _jaccard_steps(targets: Tensor) -> Tensor:
    """What each further wrong pixel, in this order, adds to 1 - IoU; (..., P) zeros and ones -> (..., P) float64.

    Counted in whole numbers: exact, and on GPUs a sum of floats along a line has no fixed order.
    """
    in_mask = targets.sum(dim=-1, keepdim=True)
    intersection = in_mask - targets.cumsum(dim=-1)
    union = in_mask + (1 - targets).cumsum(dim=-1)
    jaccard = 1 - intersection.double() / union.double()
    return torch.diff(jaccard, dim=-1, prepend=torch.zeros_like(jaccard[..., :1]))


def _log_likelihood(logits: Tensor, masks: Tensor) -> Tensor:
    """Log of the probability of what is true: (N, K, H, W) of overlapping classes, else (N, H, W), 0 where ignored."""
    if masks.dim() == logits.dim():
        return F.logsigmoid(logits * (2 * masks.to(logits.dtype) - 1))
    valid = masks != IGNORE_INDEX
    # By gather, since torch has no deterministic cross-entropy of images on GPUs.
    chosen = logits.log_softmax(dim=1).gather(1, torch.where(valid, masks, 0).unsqueeze(1)).squeeze(1)
    return torch.where(valid, chosen, 0)


def _mean_of_pixels(values: Tensor, masks: Tensor, weights: Tensor | None, border: Tensor | None = None) -> Tensor:
    if values.dim() == 4:
        return values.mean() if weights is None else _mean_of_classes(values.mean(dim=(2, 3)), weights)
    valid = masks != IGNORE_INDEX
    if weights is None and border is None:
        return values.sum() / valid.sum().clamp(min=1)
    of_pixels = torch.ones_like(values) if weights is None else weights[torch.where(valid, masks, 0)]
    of_pixels = torch.where(valid, of_pixels if border is None else of_pixels + border, 0)
    return (values * of_pixels).sum() / of_pixels.sum().clamp(min=torch.finfo(values.dtype).tiny)


def _mean_of_classes(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of (N, K) over images and classes."""
    return values.mean() if weights is None else (values * (weights / weights.sum())).sum(dim=1).mean()


def _sums(values: Tensor, per: Per) -> Tensor:
    """(N, K, H, W) -> (N, K), or (1, K) per batch."""
    return values.sum(dim=(2, 3)) if per == "image" else values.sum(dim=(0, 2, 3))[None]


def _probabilities_and_targets(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    if masks.dim() == logits.dim():
        return logits.sigmoid(), masks.to(logits.dtype)
    valid = (masks != IGNORE_INDEX).unsqueeze(1)
    classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
    return logits.softmax(dim=1) * valid, (masks.unsqueeze(1) == classes).to(logits.dtype)


LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "bce": binary_cross_entropy,
    "cross_entropy": cross_entropy,
    "dice": soft_dice,
    "focal": focal,
    "lovasz": lovasz,
    "tversky": tversky,
}

#: Losses that weigh pixels one by one.
PIXEL_LOSSES = ("cross_entropy", "focal")

#: Argument of a loss -> whether a value makes sense, and which do.
ARGUMENTS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "weight": (lambda value: _is_number(value) and value > 0, "a number above 0; leave out a loss that does not count"),
    "smooth": (lambda value: _is_number(value) and value > 0, "a number of pixels above 0"),
    "alpha": (lambda value: _is_number(value) and value >= 0, "a number from 0"),
    "beta": (lambda value: _is_number(value) and value >= 0, "a number from 0"),
    # Between 0 and 1 the slope of a pixel that is surely right is infinite.
    "gamma": (lambda value: _is_number(value) and (value == 0 or value >= 1), "0, or a number from 1"),
    "per": (lambda value: value in ("image", "batch"), "image or batch"),
}


def weighted_loss(losses: Mapping[str, Any], class_map: ClassMap, class_weights: Sequence[float] | None = None) -> Loss:
    """The weighted sum that the recipe names, computed in float32; RecipeError for a loss that does not fit.

    `losses` has a weight for each loss, or its weight and arguments: {dice: 0.5, focal: {weight: 0.5, gamma: 3}}.
    """
    if not losses:
        raise RecipeError(f"train.loss is empty. Give weights to one or more of {sorted(LOSSES)}.")
    _check_class_weights(class_weights, class_map)
    terms = [_read_term(name, losses[name], class_map) for name in losses]
    weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)

    def loss(logits: Tensor, masks: Tensor, border: Tensor | None = None, /) -> Tensor:
        logits = logits.float()
        of_classes = None if weights is None else weights.to(logits.device)
        extra = [{"border": border} if name in PIXEL_LOSSES and border is not None else {} for name in losses]
        values = [
            weight * term(logits, masks, of_classes, **more) for (weight, term), more in zip(terms, extra, strict=True)
        ]
        return torch.stack(values).sum()

    return loss


def _read_term(name: str, told: Any, class_map: ClassMap) -> tuple[float, Callable[..., Tensor]]:
    if name not in LOSSES:
        raise RecipeError(f"unknown loss: train.loss: {name!r}. Choose from {sorted(LOSSES)}.")
    unfit, fit = ("cross_entropy", "bce") if class_map.kind == "multilabel" else ("bce", "cross_entropy")
    if name == unfit:
        raise RecipeError(f"train.loss: {unfit} does not fit masks.kind: {class_map.kind}. Use {fit}.")
    arguments = dict(told) if isinstance(told, Mapping) else {"weight": told}
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    known = ["weight", *(found.name for found in parameters if found.kind is inspect.Parameter.KEYWORD_ONLY)]
    for argument, value in arguments.items():
        if argument not in known:
            raise RecipeError(f"unknown argument: train.loss.{name}: {argument}. It takes {', '.join(known)}.")
        fits, wanted = ARGUMENTS[argument]
        if not fits(value):
            raise RecipeError(f"wrong value: train.loss.{name}: {argument}: {value}. Give {wanted}.")
    if arguments.get("alpha") == arguments.get("beta") == 0:
        raise RecipeError(
            f"wrong value: train.loss.{name}: alpha and beta: both 0, so that no wrong pixel counts. Give one of "
            "them a number above 0."
        )
    if "weight" not in arguments:
        raise RecipeError(f"missing argument: train.loss.{name}: weight. Say how much it counts, such as weight: 1.0.")
    return float(arguments.pop("weight")), partial(LOSSES[name], **arguments)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def are_weights(values: Sequence[Any]) -> bool:
    """Whether these are numbers of which none is negative, and not all 0."""
    return all(_is_number(value) and value >= 0 for value in values) and any(values)


def _check_class_weights(weights: Sequence[float] | None, class_map: ClassMap) -> None:
    if weights is None:
        return
    if len(weights) != class_map.num_classes:
        raise RecipeError(
            f"train.class_weights: {len(weights)} weights for {class_map.num_classes} classes. "
            f"Give one each, in this order: {', '.join(class_map.names)}."
        )
    if not are_weights(weights):
        raise RecipeError(f"train.class_weights: {list(weights)}: must not be negative, nor all 0.")


def weights_from_pixels(weighting: ClassWeighting, class_pixels: Mapping[str, int]) -> tuple[float, ...]:
    """Class weights from how many pixels of the training images belong to each class; RecipeError for a class of none.

    inverse: the mean number of pixels of a class / that of this class, so that all classes count alike.
    median: the median / that of this class (after Eigen and Fergus 2015, over all images).
    """
    absent = [name for name, pixels in class_pixels.items() if not pixels]
    if absent:
        raise RecipeError(
            f"train.class_weights: {weighting}: no pixel of the training images is {absent[0]}. "
            "Give a list of weights, or remove the class."
        )
    pixels = np.array(list(class_pixels.values()), dtype=np.float64)
    middle = np.mean(pixels) if weighting == "inverse" else np.median(pixels)
    return tuple(float(weight) for weight in middle / pixels)
