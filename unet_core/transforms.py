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
from functools import cache
from typing import Any

import cv2
import numpy as np

from unet_core.codecs import Pixels, num_planes
from unet_core.errors import RecipeError
from unet_core.samples import IGNORE_INDEX, ClassMap, Sample, Window

#: How often each transform is tried before a training: one that turns or cuts shows in some draws only.
NUM_TRIED_DRAWS = 8


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


def sample_seed(*, seed: int, epoch: int, key: str, earlier: int = 0) -> int:
    """The 63-bit seed of one sample in one epoch, which may have had it some times `earlier`."""
    again = f"{earlier} times before:" if earlier else ""
    digest = hashlib.sha256(f"{again}{seed}:{epoch}:{key}".encode()).digest()
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
        self._config = config
        self._make = (lambda: _compose(config.transforms, class_map)) if config.transforms else None
        self._class_map = class_map
        # Transforms hold their random state, so every thread of a loader has its own.
        self._threads = threading.local()
        for number, entry in enumerate(config.transforms):
            _check_entry(entry, class_map, f"augment.transforms[{number}]")

    def check(self, blank: Sample) -> None:
        """Draw each transform a few times on a sample of the data's shape and depth; RecipeError names what fails."""
        for number, entry in enumerate(self._config.transforms):
            # Alone and always: a draw that is rare must not end the training in its third night.
            one = Augmentation(AugmentConfig(crop_px=None, transforms=({**entry, "p": 1.0},)), self._class_map)
            for seed in range(NUM_TRIED_DRAWS):
                where = f"augment.transforms[{number}]: {entry['name']}"
                try:
                    done = one.apply(blank, seed)
                except RecipeError:
                    raise
                except Exception as error:
                    text = " ".join(str(error).split()) or type(error).__name__
                    raise RecipeError(
                        f"a transform can't work on these images: {where}: {blank.image.dtype} {blank.image.shape}: "
                        f"{text}. Remove it, or choose another."
                    ) from error
                if done.image.shape != blank.image.shape or done.mask.shape != blank.mask.shape:
                    raise RecipeError(
                        f"a transform changes the size: {where}: {blank.image.shape} becomes {done.image.shape}. "
                        "Remove it, or set augment.crop_px so that images are square."
                    )

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
    import albumentations

    made = [_make(entry, class_map) for entry in transforms]
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


@cache
def _known() -> dict[str, Any]:
    """Albumentations' transforms by name."""
    # Without this, importing albumentations asks the network for its newest version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    found = {
        name: cls
        for name, cls in vars(albumentations).items()
        if isinstance(cls, type) and issubclass(cls, albumentations.BasicTransform)
    }
    return {**found, "D4": _quick_d4(albumentations.D4)}


def _check_entry(entry: Mapping[str, Any], class_map: ClassMap, where: str) -> None:
    """Make a transform once; RecipeError for a name or an argument that it does not know.

    In one thread only: filters of warnings belong to the whole process.
    """
    name = entry.get("name")
    if name not in _known():
        near = difflib.get_close_matches(str(name), _known(), n=1)
        hint = f" Did you mean {near[0]}?" if near else " See the list of albumentations' transforms."
        raise RecipeError(f"unknown transform: {where}: {name!r}.{hint}")
    with warnings.catch_warnings():
        # Albumentations only warns of an argument that it does not know, and goes on without it.
        warnings.simplefilter("error")
        try:
            made = _make(entry, class_map)
        except (TypeError, ValueError, UserWarning) as error:
            text = " ".join(str(error).split())
            raise RecipeError(
                f"bad argument of a transform: {where}: {name}: {text}. Correct the entry in params.yaml."
            ) from error
    # Border mode 0 fills with a value, others with pixels of the image.
    if _fills_mask(entry) and _class_outside(class_map) is None and getattr(made, "border_mode", 0) == 0:
        raise RecipeError(
            f"a transform brings in pixels of no class: {where}: {name}. Say what they are: masks.ignore or "
            "masks.background, or fill_mask (the number of a class, the first is 0) or border_mode: 4 (mirrored) here."
        )


def _make(entry: Mapping[str, Any], class_map: ClassMap) -> Any:
    arguments = {key: _tuple(value) for key, value in entry.items() if key != "name"}
    if _fills_mask(entry) and _class_outside(class_map) is not None:
        arguments["fill_mask"] = _class_outside(class_map)
    return _known()[entry["name"]](**arguments)


def _fills_mask(entry: Mapping[str, Any]) -> bool:
    """Whether a transform draws pixels from outside into the mask, and the recipe does not say what they are."""
    schema = getattr(_known()[entry["name"]], "InitSchema", None)
    return "fill_mask" not in entry and schema is not None and "fill_mask" in schema.model_fields


def _class_outside(class_map: ClassMap) -> int | None:
    """The mask's value beyond the image's edge; None where nothing says which class is there."""
    if class_map.kind != "multiclass":
        return 0
    if class_map.ignore is not None:
        return IGNORE_INDEX
    return None if class_map.background is None else class_map.names.index(class_map.background)


def _tuple(value: Any) -> Any:
    """YAML knows lists only, albumentations asks for tuples."""
    return tuple(value) if isinstance(value, list) else value
