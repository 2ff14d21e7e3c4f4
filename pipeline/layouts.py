"""File names -> the patterns that a person would write for them. A guess for `unet init`, which says what it took."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, cast

from pipeline.patterns import find_by_pattern
from pipeline.source import PICTURE_SUFFIXES, IngestConfig
from unet_core.errors import DataError, RecipeError
from unet_core.samples import ClassMap

SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
IMAGE_WORDS = ("images", "image", "imgs", "img")
#: In order of preference: beside manual labels, `mask` is often the field of view (as in DRIVE).
MASK_WORDS = ("masks", "labels", "label", "manual", "annotations", "annotation", "groundtruth", "gt", "seg", "mask")
MASK_ENDING = re.compile(r".+?([_\-. ]?(?:masks?|labels?|seg|segmentation|gt|groundtruth|annotation|manual\d*))")
#: More folders than these are no two kinds of picture side by side.
MAX_FOLDERS = 12


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How images and masks lie in a folder."""

    image_pattern: str
    mask_pattern: str
    key: str = "{key}"
    classes: tuple[str, ...] = ()
    """Folders of masks, one a class."""

    def config(self, source: str) -> IngestConfig:
        """The section of a recipe that reads this layout."""
        return IngestConfig(
            source=source, ledger="", image_pattern=self.image_pattern, mask_pattern=self.mask_pattern, key=self.key
        )

    def class_map(self) -> ClassMap:
        """A class map that takes as many masks for an image as there are."""
        if self.classes:
            return ClassMap(kind="multilabel", classes=dict.fromkeys(self.classes, 255))
        return ClassMap(kind=cast(Any, "instances"), classes={"background": 0, "object": 1})


def find_layout(source: str, names: Sequence[str]) -> Layout | None:
    """The first layout in which every image has its mask; else one that takes images, so that its error tells."""
    pictures = [PurePosixPath(name) for name in names if os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES]  # noqa: PTH122 a hundred times as quick
    pictures = [path for path in pictures if not any(part.startswith(".") for part in path.parts)]
    nearly = None
    for layout in (*_in_word_folders(pictures), *_in_two_folders(pictures), *_in_one_folder(pictures)):
        for key in ("{key}", _long_key(layout)):
            tried = Layout(**{**vars(layout), "key": key})
            try:
                find_by_pattern(source, names, tried.config(source), tried.class_map())
            except RecipeError:
                continue
            except DataError as error:
                nearly = nearly or (None if str(error).startswith("no images") else tried)
            else:
                return tried
    return nearly


def _long_key(layout: Layout) -> str:
    fields = re.findall(r"\{\w+\}", layout.image_pattern)
    return "_".join(dict.fromkeys(fields))


def _in_word_folders(pictures: Sequence[PurePosixPath]) -> Iterator[Layout]:
    """`images/` beside `masks/`, at any depth, with a folder of a split, a group or a single sample before or after."""
    places: Counter[tuple[int, int, str]] = Counter()
    for path in pictures:
        words = [number for number, part in enumerate(path.parts[:-1]) if part.lower() in IMAGE_WORDS]
        if words:
            places[words[-1], len(path.parts) - 2 - words[-1], path.parts[words[-1]]] += 1
    for (before, after, word), _ in places.most_common(3):
        ours = [
            path
            for path in pictures
            if len(path.parts) == before + after + 2 and path.parts[before : before + 1] == (word,)
        ]
        heads, keyed = _folders([path.parts[:before] for path in ours], may_be_key=True)
        tails, _ = _folders([path.parts[before + 1 : -1] for path in ours], may_be_key=False)
        name = "*.*" if keyed else "{key}.*"
        for mask in _mask_folders(pictures, before):
            classes = {
                p.parts[before + 1]
                for p in pictures
                if p.parts[before : before + 1] == (mask,) and len(p.parts) == before + 3
            }
            base = Layout(
                image_pattern="/".join([*heads, word, *tails, name]),
                mask_pattern="/".join([*heads, mask, *tails, name]),
            )
            yield base
            if classes and not tails and not keyed:
                yield Layout(
                    image_pattern=base.image_pattern,
                    mask_pattern="/".join([*heads, mask, "{class}", name]),
                    classes=tuple(sorted(classes)),
                )


def _mask_folders(pictures: Sequence[PurePosixPath], depth: int) -> list[str]:
    """Names of folders at this depth that are called as masks are, the likeliest first."""
    there = {path.parts[depth] for path in pictures if len(path.parts) > depth + 1}
    return sorted((name for name in there if _mask_rank(name) is not None), key=lambda name: (_mask_rank(name), name))


def _mask_rank(name: str) -> int | None:
    return next((number for number, word in enumerate(MASK_WORDS) if word in name.lower()), None)


def _folders(parts: Sequence[tuple[str, ...]], *, may_be_key: bool) -> tuple[list[str], bool]:
    """Folders as a pattern: those that are everywhere the same as they are, the others as fields."""
    pattern, keyed = [], False
    for column in zip(*parts, strict=True):
        different = set(column)
        if len(different) == 1:
            pattern.append(column[0])
        elif may_be_key and not keyed and len(different) == len(column):
            keyed = True
            pattern.append("{key}")
        elif {word.lower() for word in different} <= set(SPLIT_WORDS) and "{split}" not in pattern:
            pattern.append("{split}")
        else:
            pattern.append("{group}" if "{group}" not in pattern else "*")
    return pattern, keyed


def _in_two_folders(pictures: Sequence[PurePosixPath]) -> Iterator[Layout]:
    """Folders whose names differ by what stands before and after the key: 21_training.tif and 21_manual1.gif."""
    folders: dict[str, list[str]] = {}
    for path in pictures:
        folders.setdefault(str(path.parent), []).append(path.stem)
    folders = {folder: sorted(stems) for folder, stems in folders.items() if len(stems) > 1}
    if len(folders) > MAX_FOLDERS:
        return
    affixes = {folder: _affixes(stems) for folder, stems in folders.items()}
    keys = {
        folder: {stem[len(affixes[folder][0]) : len(stem) - len(affixes[folder][1])] for stem in stems}
        for folder, stems in folders.items()
    }
    ranks = {folder: _mask_rank("/".join((folder, *affixes[folder]))) for folder in folders}
    masks = sorted((rank, folder) for folder, rank in ranks.items() if rank is not None)
    for _, mask in masks:
        for image in (folder for folder, rank in ranks.items() if rank is None and keys[folder] == keys[mask]):
            yield Layout(
                image_pattern=_named(image, "{key}".join(affixes[image])),
                mask_pattern=_named(mask, "{key}".join(affixes[mask])),
            )


def _affixes(stems: Sequence[str]) -> tuple[str, str]:
    """What all names of a folder begin and end with; digits belong to the key."""
    start = _common_start(stems)
    return start, _common_start([stem[len(start) :][::-1] for stem in stems])[::-1]


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    length = next((n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return re.sub(r"\d+$", "", first[:length])


def _named(folder: str, name: str) -> str:
    return f"{name}.*" if folder == "." else f"{folder}/{name}.*"


def _in_one_folder(pictures: Sequence[PurePosixPath]) -> Iterator[Layout]:
    """x.png beside x_mask.png."""
    endings = Counter(found.group(1) for path in pictures if (found := MASK_ENDING.fullmatch(path.stem)) is not None)
    parents = {str(path.parent) for path in pictures}
    folder = parents.pop() if len(parents) == 1 else "**"
    for ending, _ in endings.most_common(3):
        for image in ("{key}", "{key}_image", "{key}_img"):
            yield Layout(image_pattern=_named(folder, image), mask_pattern=_named(folder, f"{{key}}{ending}"))
