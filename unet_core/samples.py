"""A sample is an image, its mask and a key; the recipe says what the pixels of both mean."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from unet_core.errors import RecipeError

Array = npt.NDArray[Any]
"""uint8, or uint16 for deep images and instance ids."""

#: The index in an encoded multiclass mask of pixels that belong to no class and are not scored.
IGNORE_INDEX = 255


#: A class's pixel value: a whole number, or a colour as [red, green, blue] or "#rrggbb".
ClassValue = int | str | Sequence[int]

Kind = Literal["multiclass", "multilabel", "instances"]


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """Recipe section `masks`: what the pixels of a mask mean."""

    kind: Kind
    """multiclass: one index image per sample; multilabel: one binary image per class, free to overlap; instances:
    object ids in one image, or one binary image per object."""
    classes: Mapping[str, ClassValue]
    """Class name -> its pixel value; in multiclass masks also a colour, "#ff0000" (in quotes) or [255, 0, 0]. The order
    of the names is the order of the model's outputs."""
    ignore: ClassValue | None = None
    """Pixel value or colour (multiclass only) that is neither trained on nor scored."""
    background: str | None = None
    """A class that is trained but not scored, since its score flatters every model."""
    threshold: int | None = None
    """Gray level from which a smoothed (anti-aliased) binary mask belongs to its class, such as 128; null: refused."""

    def __post_init__(self) -> None:
        # One spelling of a colour, so that equal class maps are equal and JSON gives back what was written.
        object.__setattr__(self, "classes", {name: _spell(value) for name, value in self.classes.items()})
        object.__setattr__(self, "ignore", None if self.ignore is None else _spell(self.ignore))
        if self.kind == "multiclass" and len(self.classes) < 2:
            raise RecipeError(
                f"too few classes: masks.classes: {list(self.classes)}. A multiclass mask needs at least two, "
                "background included; for one class on a background add it, or choose kind: multilabel."
            )
        if not 1 <= len(self.classes) <= IGNORE_INDEX:
            raise RecipeError(f"masks.classes: {len(self.classes)} classes: between 1 and {IGNORE_INDEX} are possible.")
        if self.background is not None and self.background not in self.classes:
            raise RecipeError(
                f"unknown class: masks.background: {self.background!r}. Name one of {list(self.classes)}, or null."
            )
        self._check_kind()
        self._check_values()
        self._check_threshold()

    def _check_kind(self) -> None:
        if self.kind == "multilabel" and (self.ignore is not None or self.background is not None):
            raise RecipeError(
                "masks.ignore and masks.background: only multiclass masks have them, kind is multilabel. "
                "Set both to null."
            )
        if self.kind == "instances" and self.ignore is not None:
            raise RecipeError("masks.ignore: instances have no such value. Set it to null.")
        if self.kind == "instances" and (len(self.classes) != 2 or list(self.classes.values()) != [0, 1]):
            raise RecipeError(
                f"masks.classes: {dict(self.classes)}: instances have a background and one kind of object. "
                "Write {background: 0, NAME: 1}; the ids themselves may be any."
            )

    def _check_values(self) -> None:
        if self.kind == "multilabel" and 0 in self.classes.values():
            raise RecipeError("masks.classes: value 0 in a multilabel mask: 0 is where the class is not. Use 255 or 1.")
        values = list(self.classes.values()) + ([] if self.ignore is None else [self.ignore])
        if self.kind == "multiclass" and len(set(values)) != len(values):
            raise RecipeError(f"one pixel value for two classes: masks: {values}. Give each class its own value.")
        colours = [value for value in values if isinstance(value, str)]
        if colours and self.kind != "multiclass":
            raise RecipeError(f"masks.classes: {colours[0]}: only multiclass masks may be drawn in colours.")
        if colours and len(colours) < len(values):
            raise RecipeError(f"masks: {values}: numbers and colours are mixed. Give all classes and ignore a colour.")

    def _check_threshold(self) -> None:
        if self.threshold is None:
            return
        if self.has_colours or (self.kind == "multiclass" and len(self.classes) != 2):
            raise RecipeError(
                "masks.threshold: only binary masks can be cut by it: two classes with gray values, or a file per "
                "class or object. Set it to null."
            )
        low = min(self.values) if self.kind == "multiclass" else 0
        high = 255 if self.kind == "instances" else max(self.values) if self.kind == "multiclass" else min(self.values)
        if not low < self.threshold <= high:
            raise RecipeError(f"masks.threshold: {self.threshold}: must be above {low}, and at most {high}.")

    @property
    def has_colours(self) -> bool:
        """Whether classes are drawn in colours."""
        return any(isinstance(value, str) for value in self.classes.values())

    @property
    def values(self) -> tuple[int, ...]:
        """Pixel values of the classes; of colours 0xRRGGBB."""
        return tuple(_number(value) for value in self.classes.values())

    @property
    def ignored_value(self) -> int | None:
        """Pixel value that is ignored; of a colour 0xRRGGBB."""
        return None if self.ignore is None else _number(self.ignore)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return tuple(self.classes)

    @property
    def num_classes(self) -> int:
        """How many channels the model's output has."""
        return len(self.classes)

    @property
    def ground(self) -> str | None:
        """The class that lies around what is looked for, if any: of instances the first, whatever the recipe says."""
        return self.names[0] if self.kind == "instances" else self.background

    @property
    def scored(self) -> tuple[int, ...]:
        """Indices of the classes that count in a score."""
        return tuple(i for i, name in enumerate(self.names) if name != self.ground)


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Recipe section `images`: how image files become arrays."""

    channels: int
    """What images are read as: 1 gray, 3 RGB, another number for TIFF with as many channels."""
    bits: Literal[8, 16] = 8
    """Depth of what is stored in shards and seen by the network."""
    value_range: Sequence[float] | None = None
    """[low, high]: source values that become black and white; what is beyond is cut. Of 8 bits too."""
    percentiles: Sequence[float] | None = None
    """[low, high], such as [1, 99]: percentiles of an image's own values that become black and white."""
    page: int | None = None
    """Page of files with several (TIFF, GIF, WebP); the first is 0. null: such files are refused."""

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise RecipeError(f"images.channels: {self.channels}: must be at least 1.")
        if self.bits not in (8, 16):
            raise RecipeError(f"images.bits: {self.bits}: choose 8 or 16.")
        if self.page is not None and self.page < 0:
            raise RecipeError(f"images.page: {self.page}: the first page is 0.")
        if self.value_range is not None and self.percentiles is not None:
            raise RecipeError("images.value_range and images.percentiles: both are set. Choose one, the other is null.")
        for name, lowest, highest in (("value_range", -math.inf, math.inf), ("percentiles", 0, 100)):
            given = getattr(self, name)
            if given is None:
                continue
            if len(given) != 2 or not all(map(math.isfinite, given)) or not lowest <= given[0] < given[1] <= highest:
                example = "[0, 4095]" if name == "value_range" else "[1, 99]"
                raise RecipeError(f"images.{name}: {list(given)}: expected low and high, such as {example}.")
            # Lists from YAML and JSON compare equal to what was written.
            object.__setattr__(self, name, tuple(given))

    @property
    def white(self) -> int:
        """The largest value: 255 or 65535."""
        return 2**self.bits - 1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training example in memory."""

    key: str
    image: Array
    """(H, W, C) uint8, or uint16 where images.bits is 16."""
    mask: Array
    """Encoded: (H, W) uint8 class indices for multiclass, (H, W, K) uint8 zeros and ones for multilabel, (H, W) uint16
    ids 1 to n on 0 for instances."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def class_indices(mask: Array, class_map: ClassMap) -> Array:
    """What training and scoring see of an encoded mask: of instances the foreground as uint8; others as they are."""
    return (mask > 0).astype(np.uint8) if class_map.kind == "instances" else mask


def count_class_pixels(mask: Array, class_map: ClassMap) -> tuple[int, ...]:
    """Pixels of each class in an encoded mask."""
    if class_map.kind == "multilabel":
        return tuple(int(count) for count in mask.sum(axis=(0, 1), dtype=np.int64))
    indices = class_indices(mask, class_map)
    # For the few classes that there are, ten times as fast as a histogram, which first widens the mask to int64.
    return tuple(int(np.count_nonzero(indices == index)) for index in range(class_map.num_classes))


def _spell(value: ClassValue) -> int | str:
    """A pixel value as it stands, a colour as "#rrggbb"."""
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        if not re.fullmatch("#[0-9a-fA-F]{6}", value):
            raise RecipeError(f'masks: {value!r} is no colour. Write "#rrggbb" with its quotes, or [red, green, blue].')
        return value.lower()
    if len(value) != 3 or not all(0 <= level <= 255 for level in value):
        raise RecipeError(f"masks: {list(value)} is no colour. Write [red, green, blue], each from 0 to 255.")
    return "#{:02x}{:02x}{:02x}".format(*value)


def _number(value: ClassValue) -> int:
    assert isinstance(value, int | str), "_spell has made it so"
    return int(value[1:], 16) if isinstance(value, str) else value
