"""A sample is an image, its mask and a key; the class map says what the mask's pixels mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from unet_core.errors import RecipeError

Array = npt.NDArray[np.uint8]

#: The index in an encoded multiclass mask of pixels that belong to no class and are not scored.
IGNORE_INDEX = 255


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """Recipe section `masks`: what the pixels of a mask mean."""

    kind: Literal["multiclass", "multilabel"]
    """multiclass: one index image per sample; multilabel: one binary image per class, free to overlap."""
    classes: Mapping[str, int]
    """Class name -> its pixel value. The order of the names is the order of the model's outputs."""
    ignore: int | None = None
    """Pixel value (multiclass only) that is neither trained on nor scored."""
    background: str | None = None
    """A class that is trained but not scored, since its score flatters every model."""

    def __post_init__(self) -> None:
        if self.kind == "multiclass" and len(self.classes) < 2:
            raise RecipeError(
                f"too few classes: masks.classes: {list(self.classes)}. A multiclass mask needs at least two, "
                "background included; for one class on a background add it, or choose kind: multilabel."
            )
        if not 1 <= len(self.classes) <= IGNORE_INDEX:
            raise RecipeError(f"masks.classes: {len(self.classes)} classes: between 1 and {IGNORE_INDEX} are possible.")
        if self.kind == "multilabel" and 0 in self.classes.values():
            raise RecipeError("masks.classes: value 0 in a multilabel mask: 0 is where the class is not. Use 255 or 1.")
        if self.background is not None and self.background not in self.classes:
            raise RecipeError(
                f"unknown class: masks.background: {self.background!r}. Name one of {list(self.classes)}, or null."
            )
        if self.kind == "multilabel" and (self.ignore is not None or self.background is not None):
            raise RecipeError(
                "masks.ignore and masks.background: only multiclass masks have them, kind is multilabel. "
                "Set both to null."
            )
        values = list(self.classes.values()) + ([] if self.ignore is None else [self.ignore])
        if self.kind == "multiclass" and len(set(values)) != len(values):
            raise RecipeError(f"one pixel value for two classes: masks: {values}. Give each class its own value.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return tuple(self.classes)

    @property
    def num_classes(self) -> int:
        """How many channels the model's output has."""
        return len(self.classes)

    @property
    def scored(self) -> tuple[int, ...]:
        """Indices of the classes that count in a score."""
        return tuple(i for i, name in enumerate(self.names) if name != self.background)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training example in memory."""

    key: str
    image: Array
    """(H, W, C) uint8."""
    mask: Array
    """Encoded: (H, W) class indices for multiclass, (H, W, K) zeros and ones for multilabel."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def count_class_pixels(mask: Array, class_map: ClassMap) -> tuple[int, ...]:
    """Pixels of each class in an encoded mask."""
    if class_map.kind == "multilabel":
        return tuple(int(count) for count in mask.sum(axis=(0, 1), dtype=np.int64))
    counts = np.bincount(mask.ravel(), minlength=256)
    return tuple(int(counts[index]) for index in range(class_map.num_classes))
