"""Augmentation by albumentations: one seeded draw per sample, from the recipe's list.

A draw is a function of (seed, epoch, key) and nothing else: not of the worker, the batch or what was read before.
"""

import difflib
import hashlib
import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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
    rng = np.random.default_rng([seed, 0])
    return Window(
        top=int(rng.integers(0, shape[0] - height + 1)),
        left=int(rng.integers(0, shape[1] - width + 1)),
        height=height,
        width=width,
    )


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
        # Compose.set_random_seed gives every transform the same seed, and two flips with p=0.5 would always
        # come together; each transform gets its own.
        compose.set_random_seed(seed % 2**32)
        for number, transform in enumerate(compose.transforms):
            transform.set_random_seed(_child_seed(seed, number))
        done = compose(image=sample.image, mask=sample.mask)
        if done["image"].dtype != np.uint8:
            raise RecipeError(
                f"a transform changes the kind of number: augment.transforms: {done['image'].dtype} instead of uint8. "
                "Remove it (normalisation is the model's first layer)."
            )
        return Sample(key=sample.key, image=done["image"], mask=done["mask"])


def _child_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, 1, number]).generate_state(1)[0])


def _compose(transforms: Sequence[Mapping[str, Any]], class_map: ClassMap) -> Any:
    # Without this, importing albumentations asks the network for its newest version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    known = {
        name: cls
        for name, cls in vars(albumentations).items()
        if isinstance(cls, type) and issubclass(cls, albumentations.BasicTransform)
    }
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
    return albumentations.Compose(made, is_check_shapes=False)


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
