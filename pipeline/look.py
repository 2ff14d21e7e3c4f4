"""A folder -> what `unet init` takes it for: patterns, kind of mask, classes, declared splits."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.layouts import SPLIT_WORDS, Layout, find_layout
from pipeline.patterns import find_by_pattern
from pipeline.references import read_reference
from pipeline.source import Pair
from pipeline.storage import is_url, join, list_files, open_file, read_file
from unet_core.decode import describe
from unet_core.errors import DataError
from unet_core.images import FileBytes, read_picture
from unet_core.masks import read_mask_values
from unet_core.picture import Picture

#: Files that are opened to learn what the masks mean.
NUM_LOOKED_AT = 200
#: Images that are decoded whole, to learn their channels and depth.
NUM_DECODED = 16
#: Colours or values that can be classes; more are objects' numbers or smoothed edges.
MAX_CLASSES = 32


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table in the folder that declares splits."""

    name: str
    columns: tuple[str, ...] | None
    """Names of its columns where its first line has none."""
    key_column: str
    words: tuple[str, ...]
    """What stands in its split column."""


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What the masks say."""

    kind: str
    classes: Mapping[str, int | list[int]]
    """Class -> pixel value, or colour as red, green, blue."""
    ignore: int | None = None
    background: str | None = None


@dataclass(frozen=True, kw_only=True)
class Look:
    """What lies in a folder."""

    layout: Layout
    num_images: int
    modes: Mapping[str, int]
    sizes: Mapping[tuple[int, int], int]
    channels: int
    is_deep: bool
    """Whether images have more than 8 bits a channel."""
    meaning: Meaning
    table: Table | None
    split_words: tuple[str, ...]
    """Names of folders that declare splits."""


def look_at(source: str) -> Look:
    """Find out how images and masks lie, number, sizes and modes of the images, and what the masks mean."""
    names = list_files(source)
    layout = find_layout(source, names)
    if layout is None:
        raise DataError(
            f"images and masks are not found in {source}: it has {len(names)} files"
            f"{f', such as {names[0]}' if names else ''}. Put images in images/ and masks of the same names in masks/, "
            "or copy a recipe to params.yaml and describe your folders there (docs/data.md), then `unet add`."
        )
    # Whoever has an image without mask hears it here, as from `unet add`.
    pairs = find_by_pattern(source, names, layout.config(source), layout.class_map())
    modes, sizes = _read_headers(source, _spread(pairs) if is_url(source) else pairs)
    pictures = [
        read_picture(read_reference(source, pair.image), "image", page=0) for pair in _spread(pairs, NUM_DECODED)
    ]
    split_words = tuple(sorted({pair.split for pair in pairs if pair.split is not None}))
    return Look(
        layout=layout,
        num_images=len(pairs),
        modes=modes,
        sizes=sizes,
        channels=_channels(pictures),
        is_deep=any(picture.bits > 8 or picture.pixels.dtype != np.uint8 for picture in pictures),
        meaning=_look_at_planes(source, layout, pairs) if layout.classes else _look_at_masks(source, pairs),
        table=None if split_words else _look_for_table(source, names, {pair.key for pair in pairs}),
        split_words=split_words,
    )


def _read_headers(source: str, pairs: Sequence[Pair]) -> tuple[Counter[str], Counter[tuple[int, int]]]:
    modes: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    for pair in pairs:
        try:
            with open_file(source, pair.image) as stream, Image.open(stream) as picture:
                mode, size = picture.mode, picture.size
        except (OSError, SyntaxError, ValueError):
            # Pillow knows fewer kinds of TIFF than we read.
            file = read_reference(source, pair.image)
            height, width = read_picture(file, "image", page=0).pixels.shape[:2]
            mode, size = describe(file.data), (width, height)
        modes[mode] += 1
        sizes[size] += 1
    return modes, sizes


def _channels(pictures: Sequence[Picture]) -> int:
    """What the network should see: gray, colours, or the channels of another sensor."""
    if any(picture.colour == "channels" for picture in pictures):
        return max(picture.pixels.shape[2] for picture in pictures)
    return 1 if all(picture.colour == "gray" for picture in pictures) else 3


def _spread(pairs: Sequence[Pair], count: int = NUM_LOOKED_AT) -> Sequence[Pair]:
    """A part of many, evenly from the whole list."""
    return pairs[:: -(-len(pairs) // count) or 1]


def _look_at_planes(source: str, layout: Layout, pairs: Sequence[Pair]) -> Meaning:
    classes: dict[str, int | list[int]] = {}
    for number, name in enumerate(layout.classes):
        found = {value for pair in _spread(pairs) for value in _values(read_file(source, pair.masks[number]))}
        values = sorted(found - {0})
        if len(values) > 1:
            raise DataError(
                f"not a binary mask: {join(source, pairs[0].masks[number])} and others of {name}: values {values[:8]}. "
                "The masks of one class hold 0 and one value."
            )
        classes[name] = values[0] if values else 255
    return Meaning(kind="multilabel", classes=classes)


def _look_at_masks(source: str, pairs: Sequence[Pair]) -> Meaning:
    instances = Meaning(kind="instances", classes={"background": 0, "object": 1}, background="background")
    if any(len(pair.masks) > 1 for pair in pairs):
        return instances
    masks = [read_reference(source, pair.masks[0]) for pair in _spread(pairs)]
    colours = _colours(masks)
    if colours:
        return Meaning(
            kind="multiclass", classes={f"colour_{r:02x}{g:02x}{b:02x}": [r, g, b] for r, g, b in sorted(colours)}
        )
    values_of = [_values(mask) for mask in masks]
    values = sorted(set().union(*values_of))
    is_deep = any(read_picture(mask, "mask").bits > 8 for mask in masks[:8])
    if is_deep and len(values) > 2 and (len(values) > MAX_CLASSES or values == [*range(len(values))]):
        return instances
    where = join(source, pairs[0].masks[0])
    if len(values) > MAX_CLASSES:
        raise DataError(
            f"masks with {len(values)} values: {where} and others: {values[:6]} ... {values[-1]}. If they are smoothed "
            "binary masks, threshold them to 0 and 255; if they number objects, write them with 16 bits."
        )
    if len(values) == 1:
        raise DataError(f"masks with one value: {where} and others: all pixels are {values[0]}: nothing to learn.")
    if len(values) == 2 and values[0] == 0:
        return Meaning(kind="multiclass", classes={"background": 0, "foreground": values[1]}, background="background")
    # 0, 1, 2 ... and 255 is how most tools mark pixels without a label; 0, 128, 255 are three classes.
    # In files of their own, 1 and 255 are rather two ways to draw one class: both are classes, until the user says.
    together = any(255 in found and found - {0, 255} for found in values_of)
    ignore = 255 if together and len(values) > 2 and values == [*range(len(values) - 1), 255] else None
    classes = {f"class_{value}": value for value in values if value != ignore}
    return Meaning(kind="multiclass", classes=classes, ignore=ignore)


def _values(mask: FileBytes) -> set[int]:
    return {int(value) for value in np.unique(read_mask_values(mask))}


def _colours(masks: Sequence[FileBytes]) -> set[tuple[int, int, int]]:
    """The colours of masks that are drawn in some; empty for gray ones."""
    found: set[tuple[int, int, int]] = set()
    for mask in masks:
        picture = read_picture(mask, "mask")
        # In a palette image the index counts, not the colour.
        if picture.colour != "rgb" or picture.bits > 8:
            return set()
        colours = np.unique(picture.pixels[..., :3].reshape(-1, 3), axis=0)
        if len(colours) > MAX_CLASSES:
            raise DataError(
                f"mask is a colour image: {mask.name}: more than {MAX_CLASSES} colours. "
                "Export it with a colour a class, or as an index image (as PNG, not as JPEG)."
            )
        found |= {(int(red), int(green), int(blue)) for red, green, blue in colours}
    if len(found) > MAX_CLASSES:
        raise DataError(f"masks are colour images: {len(found)} colours. Export them with a colour a class.")
    return found if any(len(set(colour)) > 1 for colour in found) else set()


def _look_for_table(source: str, names: Sequence[str], keys: set[str]) -> Table | None:
    """A table that declares splits: lines such as `train 007`, or a CSV with a column `split` and one of all keys."""
    for name in names:
        if "/" in name or not name.endswith((".txt", ".csv")):
            continue
        lines = read_file(source, name).data.decode("utf-8-sig", errors="replace").splitlines()
        if name.endswith(".csv"):
            header, *rows = list(csv.reader(lines)) or [[]]
        else:
            header, rows = ["split", "key"], [line.split() for line in lines if line.strip()]
        columns = {name: {row[number] for row in rows if number < len(row)} for number, name in enumerate(header)}
        words = columns.get("split", set())
        key_columns = [column for column, found in columns.items() if found >= keys]
        if key_columns and words and words <= set(SPLIT_WORDS):
            return Table(
                name=name,
                columns=None if name.endswith(".csv") else ("split", "key"),
                key_column=key_columns[0],
                words=tuple(sorted(words)),
            )
    return None
