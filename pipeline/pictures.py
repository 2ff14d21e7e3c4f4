"""Pictures for people: masks as colours over images, contact sheets. Arrays are RGB, (H, W, 3) uint8."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from unet_core.samples import IGNORE_INDEX, Array, ClassMap, Sample

#: Colours of classes, told apart also by people who see few colours (Okabe and Ito 2008), without black.
PALETTE = np.array(
    [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)],
    dtype=np.uint8,
)
IGNORE_COLOUR = np.array((128, 128, 128), dtype=np.uint8)
TILE_PX = 224
GAP_PX = 6


def class_colours(class_map: ClassMap) -> Array:
    """One colour a class, (K, 3); the background class is black."""
    colours = PALETTE[np.arange(class_map.num_classes) % len(PALETTE)].copy()
    if class_map.ground is not None:
        colours[class_map.names.index(class_map.ground)] = 0
    return colours


def paint_mask(mask: Array, class_map: ClassMap) -> Array:
    """An encoded mask as a colour picture; overlapping classes mix their colours, every object has one of its own."""
    if class_map.kind == "instances":
        return object_colours(int(mask.max(initial=0)))[mask]
    colours = class_colours(class_map)
    if class_map.kind == "multiclass":
        table = np.zeros((256, 3), dtype=np.uint8)
        table[: len(colours)] = colours
        table[IGNORE_INDEX] = IGNORE_COLOUR
        return table[mask]
    planes = mask.astype(np.float32)
    mixed = planes @ colours.astype(np.float32) / np.maximum(planes.sum(axis=-1, keepdims=True), 1)
    return mixed.astype(np.uint8)


def object_colours(num_objects: int) -> Array:
    """Colours of ids 0 to n, (n + 1, 3): black, then the palette in ever other mixtures."""
    numbers = np.arange(num_objects)
    mixed = PALETTE[numbers % 7].astype(np.uint16) + PALETTE[numbers // 7 % 7]
    return np.concatenate([np.zeros((1, 3), dtype=np.uint8), (mixed // 2).astype(np.uint8)])


def as_rgb(image: Array) -> Array:
    """(H, W, C) as RGB for the eye: gray repeated, of many channels the first three, of 16 bits the upper 8."""
    levels = (image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image
    if levels.shape[-1] == 2:
        levels = np.concatenate([levels, np.zeros_like(levels[..., :1])], axis=-1)
    if levels.shape[-1] == 1:
        return np.repeat(levels, 3, axis=-1)
    return levels if levels.shape[-1] == 3 else levels[..., :3]


def overlay(image: Array, mask: Array, class_map: ClassMap, *, opacity: float = 0.5) -> Array:
    """The mask's colours over the image; the background shows the image as it is."""
    base, colours = as_rgb(image).astype(np.float32), paint_mask(mask, class_map).astype(np.float32)
    covered = (colours.sum(axis=-1, keepdims=True) > 0) * opacity
    return (base * (1 - covered) + colours * covered).astype(np.uint8)


def fit(picture: Array, size_px: int = TILE_PX) -> Array:
    """Shrink or enlarge to fit a square of `size_px`, on white."""
    scale = size_px / max(picture.shape[:2])
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    # Enlarging keeps pixels visible; shrinking averages them.
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    small = np.asarray(Image.fromarray(picture).resize((width, height), method))
    tile = np.full((size_px, size_px, 3), 255, dtype=np.uint8)
    top, left = (size_px - height) // 2, (size_px - width) // 2
    tile[top : top + height, left : left + width] = small
    return tile


def grid(rows: Sequence[Sequence[Array]]) -> Array:
    """Pictures of one size as rows of a sheet, with white gaps."""
    padded: list[npt.NDArray[np.uint8]] = []
    for row in rows:
        tiles = [np.pad(tile, ((0, GAP_PX), (0, GAP_PX), (0, 0)), constant_values=255) for tile in row]
        padded.append(np.concatenate(tiles, axis=1))
    width = max(row.shape[1] for row in padded)
    return np.concatenate(
        [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in padded]
    )


def contact_sheet(samples: Sequence[Sample], class_map: ClassMap) -> Array:
    """Images above their masks, four columns."""
    columns = 4
    rows = []
    for start in range(0, len(samples), columns):
        part = samples[start : start + columns]
        rows.append([fit(as_rgb(sample.image)) for sample in part])
        rows.append([fit(paint_mask(sample.mask, class_map)) for sample in part])
    return grid(rows)


def write_picture(path: Path, picture: Array) -> None:
    """Write a PNG; equal pictures are equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, format="PNG", compress_level=6)
