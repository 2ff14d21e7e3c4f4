"""Augmentation by albumentations: one seeded draw per sample, from the recipe's list.

A draw is a function of (seed, epoch, key) and nothing else: not of the worker, the batch or what was read before.
"""

import difflib
import hashlib
import os
import random
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from unet_core.codecs import Pixels, num_planes
from unet_core.errors import RecipeError
from unet_core.samples import IGNORE_INDEX, ClassMap, Sample, Window


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Recipe section `augment`."""

    crop_px: int | None
    """Side of the random square that is cut from each training image; null takes whole images of one size."""
    transforms: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """Albumentations in order: `name` and its arguments, e.g. {name: HorizontalFlip, p: 0.5}."""

    def __post_init__(self) -> None:
        if self.crop_px is not None and self.crop_px < 1:
            raise RecipeError(f"augment.crop_px: {self.crop_px}: must be at least 1, or null.")


def sample_seed(*, seed: int, epoch: int, key: str) -> int:
    """The 63-bit seed of one sample in one epoch."""
    digest = hashlib.sha256(f"{seed}:{epoch}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_window(shape: Sequence[int], crop_px: int, seed: int) -> Window:
    """Place a crop uniformly in an image of `shape` (H, W, ...); an image smaller than it gives all it has."""
    height, width = min(shape[0], crop_px), min(shape[1], crop_px)
    # Two numbers of 64 bits straight from a hash: making a generator for them would cost more than the crop.
    draw = _hash("crop", seed)
    top, left = int.from_bytes(draw[:8], "big"), int.from_bytes(draw[8:16], "big")
    return Window(
        top=(top * (shape[0] - height + 1)) >> 64,
        left=(left * (shape[1] - width + 1)) >> 64,
        height=height,
        width=width,
    )


def _hash(purpose: str, seed: int) -> bytes:
    return hashlib.sha256(f"{purpose}:{seed}".encode()).digest()


def pad_to(sample: Sample, size_px: int, class_map: ClassMap) -> Sample:
    """Pad a sample at right and below to a square of `size_px`: mirrored pixels, mirrored mask."""
    height, width = sample.image.shape[:2]
    extra = ((0, max(0, size_px - height)), (0, max(0, size_px - width)))
    if extra == ((0, 0), (0, 0)):
        return sample
    mask_extra = extra if class_map.kind != "multilabel" else (*extra, (0, 0))
    return Sample(
        key=sample.key,
        image=np.pad(sample.image, (*extra, (0, 0)), mode="symmetric"),
        mask=np.pad(sample.mask, mask_extra, mode="symmetric"),
    )


class Augmentation:
    """The recipe's transforms, checked when made: an unknown name or argument is a RecipeError that names it."""

    def __init__(self, config: AugmentConfig, class_map: ClassMap) -> None:
        self._make = (lambda: _compose(config.transforms, class_map)) if config.transforms else None
        # Transforms hold their random state, so every thread of a loader has its own.
        self._threads = threading.local()
        if self._make is not None:
            self._make()

    def apply(self, sample: Sample, seed: int) -> Sample:
        """Transform image and mask by the draw that belongs to `seed`."""
        if self._make is None:
            return sample
        compose = getattr(self._threads, "compose", None)
        if compose is None:
            compose = self._threads.compose = self._make()
        _reseed(compose, seed)
        done = compose(image=sample.image, mask=sample.mask)
        if done["image"].dtype != sample.image.dtype:
            raise RecipeError(
                f"a transform changes the kind of number: augment.transforms: {done['image'].dtype} instead of "
                f"{sample.image.dtype}. Remove it (normalisation is the model's first layer)."
            )
        return Sample(key=sample.key, image=done["image"], mask=done["mask"])


def _reseed(compose: Any, seed: int) -> None:
    """Begin the stream of random numbers that belongs to `seed`.

    Compose.set_random_seed would make two generators for each transform, half of the time of an augmentation, and give
    all the same seed, so that two flips with p=0.5 always came together. Here all draw from one stream, in turn.
    """
    state = _hash("augment", seed)
    compose.random_generator.bit_generator.state = {
        "bit_generator": "PCG64",
        # PCG's increment is odd.
        "state": {"state": int.from_bytes(state[:16], "big"), "inc": int.from_bytes(state[16:], "big") | 1},
        "has_uint32": 0,
        "uinteger": 0,
    }
    compose.py_random.seed(seed)


def _compose(transforms: Sequence[Mapping[str, Any]], class_map: ClassMap) -> Any:
    # Without this, importing albumentations asks the network for its newest version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    known = {
        name: cls
        for name, cls in vars(albumentations).items()
        if isinstance(cls, type) and issubclass(cls, albumentations.BasicTransform)
    }
    known["D4"] = _quick_d4(albumentations.D4)
    made = []
    for number, entry in enumerate(transforms):
        where = f"augment.transforms[{number}]"
        arguments = dict(entry)
        name = arguments.pop("name", None)
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {near[0]}?" if near else " See the list of albumentations' transforms."
            raise RecipeError(f"unknown transform: {where}: {name!r}.{hint}")
        if class_map.kind == "multiclass" and "fill_mask" not in arguments and class_map.ignore is not None:
            arguments |= _ignore_fill(known[name])
        made.append(_make(known[name], arguments, where))
    # No per-call check of shapes: image and mask were checked when they were validated.
    compose = albumentations.Compose(made, is_check_shapes=False)
    compose.set_random_state(np.random.Generator(np.random.PCG64(0)), random.Random(0))  # noqa: S311
    return compose


def _quick_d4(plain: Any) -> Any:
    """Albumentations' D4 with OpenCV's loops: numpy's turned views take five times as long to be made contiguous."""

    class D4(plain):  # type: ignore[misc]
        def apply(self, img: Pixels, group_element: str, **params: Any) -> Pixels:
            return turn(img, group_element) if num_planes(img) <= 4 else super().apply(img, group_element, **params)

        def apply_to_mask(self, mask: Pixels, group_element: str, **params: Any) -> Pixels:
            return self.apply(mask, group_element, **params)

    return D4


def turn(array: Pixels, element: str) -> Pixels:
    """One of the eight symmetries of a square, by albumentations' names, of (H, W) or (H, W, up to 4)."""
    match element:
        case "e":
            return array
        case "r90" | "r180" | "r270":
            done = cv2.rotate(array, TURNS[element])
        case "h" | "v":
            done = cv2.flip(array, 1 if element == "h" else 0)
        case "t":
            done = cv2.transpose(array)
        case _:
            done = cv2.flip(cv2.transpose(array), -1)
    # OpenCV drops a single channel's axis.
    return done.reshape(*done.shape[:2], *array.shape[2:])


#: Counterclockwise.
TURNS = {
    "r90": cv2.ROTATE_90_COUNTERCLOCKWISE,
    "r180": cv2.ROTATE_180,
    "r270": cv2.ROTATE_90_CLOCKWISE,
}


def _ignore_fill(transform: type) -> dict[str, int]:
    """Pixels that a rotation brings in from outside belong to no class, where the recipe has such a value."""
    schema = getattr(transform, "InitSchema", None)
    return {"fill_mask": IGNORE_INDEX} if schema is not None and "fill_mask" in schema.model_fields else {}


def _make(transform: Any, arguments: dict[str, Any], where: str) -> Any:
    name = transform.__name__
    with warnings.catch_warnings():
        # Albumentations only warns of an argument that it does not know, and goes on without it.
        warnings.simplefilter("error")
        try:
            return transform(**{key: _tuple(value) for key, value in arguments.items()})
        except (TypeError, ValueError, UserWarning) as error:
            text = " ".join(str(error).split())
            raise RecipeError(
                f"bad argument of a transform: {where}: {name}: {text}. Correct the entry in params.yaml."
            ) from error


def _tuple(value: Any) -> Any:
    """YAML knows lists only, albumentations asks for tuples."""
    return tuple(value) if isinstance(value, list) else value
