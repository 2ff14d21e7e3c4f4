"""Image of any size -> logits, in tiles: fast ones that fade into each other, or exact ones, which change nothing.

The image comes in rows and the logits go in bands of rows, so that neither must fit in memory as a whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet_core.errors import ModelError
from unet_core.metrics import predict_classes, predict_planes
from unet_core.model import ModelSpec
from unet_core.samples import Array, Window
from unet_core.tiling import Tile, exact_tiles, fading_tiles

#: Side of a tile and overlap of neighbours, in pixels. An image that fits in one tile is predicted whole.
TILE_PX = 768
OVERLAP_PX = 64


class ImageRows(Protocol):
    """An image that gives its rows when they are needed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width, channels."""

    def read_rows(self, top: int, bottom: int) -> Array:
        """Rows from `top` to before `bottom`, (bottom - top, W, C), uint8 or uint16 as the model was trained."""


@dataclass(frozen=True)
class ArrayRows:
    """The rows of an image in memory, (H, W, C)."""

    image: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width, channels."""
        return self.image.shape

    def read_rows(self, top: int, bottom: int) -> Array:
        """A view of some rows."""
        return self.image[top:bottom]


@dataclass(frozen=True, kw_only=True)
class Band:
    """Logits of some rows over the whole width."""

    top: int
    logits: Tensor
    """(K, rows, W) float32 on the CPU."""


def predict_bands(
    model: nn.Module,
    spec: ModelSpec,
    image: ImageRows,
    *,
    exact: bool = False,
    tile_px: int = TILE_PX,
    overlap_px: int = OVERLAP_PX,
) -> Iterator[Band]:
    """Predict an image, from top to bottom; memory for two rows of tiles at most, whatever the image's height.

    `exact` tiles overlap as far as the network looks and give the whole image's logits, to rounding; the others overlap
    by `overlap_px` and differ a little near their borders. Raises ModelError for an image whose number of channels
    the model does not take, and for exact tiles of a network whose normalisation follows the tile.
    """
    if len(image.shape) != 3 or image.shape[2] != spec.channels:
        raise ModelError(
            f"the model takes {spec.channels} channels, the image has shape {image.shape}. "
            "Convert the image, or train a model for such images."
        )
    height, width = image.shape[:2]
    # Without padding, a tile's border is mirrored where the image goes on: as in the paper, nothing of that is kept.
    exact = exact or (spec.config.padding == "none" and spec.config.norm in ("none", "batch"))
    if exact:
        _check_exact(spec, height, width, tile_px)
        tiles = list(exact_tiles(height, width, spec.config, tile_px=tile_px))
    else:
        stride = spec.config.stride
        tiles = list(fading_tiles(height, width, tile_px=tile_px, overlap_px=overlap_px, stride=stride))
    down = fading({(tile.kept.top, tile.kept.height) for tile in tiles}, height, overlap_px)
    across = fading({(tile.kept.left, tile.kept.width) for tile in tiles}, width, overlap_px)
    rows = [list(row) for _, row in groupby(tiles, key=lambda tile: tile.kept.top)]
    ends = [*(row[0].kept.top for row in rows[1:]), height]
    total = torch.zeros(spec.class_map.num_classes, 0, width)
    for row, end in zip(rows, ends, strict=True):
        kept = row[0].kept
        # The rows that the tiles above have begun, then those that nobody has seen.
        total = F.pad(total, (0, 0, 0, kept.height - total.shape[1]))
        for tile, logits in _predict_row(model, spec, image, row):
            columns = slice(tile.kept.left, tile.kept.left + tile.kept.width)
            weight = down[kept.top][:, None] * across[tile.kept.left]
            total[:, :, columns].addcmul_(logits, weight)
        yield Band(top=kept.top, logits=total[:, : end - kept.top])
        # A view would keep all rows in memory.
        total = total[:, end - kept.top :].clone()


def predict_logits(
    model: nn.Module,
    spec: ModelSpec,
    image: Array,
    *,
    exact: bool = False,
    tile_px: int = TILE_PX,
    overlap_px: int = OVERLAP_PX,
) -> Tensor:
    """Logits (K, H, W) float32 on the CPU of one image in memory (H, W, C), tiled as `predict_bands` says."""
    bands = predict_bands(model, spec, ArrayRows(image), exact=exact, tile_px=tile_px, overlap_px=overlap_px)
    first = next(bands)
    if first.logits.shape[1] == image.shape[0]:
        return first.logits
    logits = torch.empty(spec.class_map.num_classes, *image.shape[:2])
    for band in (first, *bands):
        logits[:, band.top : band.top + band.logits.shape[1]] = band.logits
    return logits


def predict_symmetric(model: nn.Module, spec: ModelSpec, image: Array, *, exact: bool = False) -> Tensor:
    """Mean logits of the image's eight turned and mirrored forms (the group D4), as predict_logits gives them."""
    total = torch.zeros(())
    for mirrored in (False, True):
        for turns in range(4):
            form = np.rot90(image[:, ::-1] if mirrored else image, turns)
            logits = torch.rot90(predict_logits(model, spec, form, exact=exact), -turns, dims=(1, 2))
            total = total + (logits.flip(2) if mirrored else logits)
    return total / 8


def predict_mask(logits: Tensor, spec: ModelSpec) -> Array:
    """Logits (K, H, W) -> class indices (H, W), or (H, W, K) zeros and ones for overlapping classes; uint8."""
    if spec.class_map.kind != "multilabel":
        return predict_classes(logits).to(torch.uint8).numpy()
    return predict_planes(logits).permute(1, 2, 0).to(torch.uint8).numpy()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The arithmetic that the recipe names, as a context."""
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")


def _check_exact(spec: ModelSpec, height: int, width: int, tile_px: int) -> None:
    if max(height, width) > tile_px and spec.config.norm in ("group", "instance"):
        raise ModelError(
            f"no exact tiles with model.norm: {spec.config.norm}, whose statistics are those of the tile. "
            "Predict without --exact, or train with norm batch or none."
        )


def _predict_row(
    model: nn.Module, spec: ModelSpec, image: ImageRows, row: Sequence[Tile]
) -> Iterator[tuple[Tile, Tensor]]:
    """Tiles side by side, each with the logits of its kept part."""
    first = row[0].seen
    pixels = image.read_rows(first.top, first.top + first.height)
    for tile in row:
        seen, kept = tile.seen, tile.kept
        logits = _predict_tile(model, spec, pixels[:, seen.left : seen.left + seen.width])
        rows, columns = _within(kept, seen)
        yield tile, logits[:, rows, columns]


def _within(kept: Window, seen: Window) -> tuple[slice, slice]:
    top, left = kept.top - seen.top, kept.left - seen.left
    return slice(top, top + kept.height), slice(left, left + kept.width)


def _predict_tile(model: nn.Module, spec: ModelSpec, image: Array) -> Tensor:
    device = next(model.parameters()).device
    # A copy: mapped files are read-only, and torch wants memory that it may write. Pixels of all channels side by side
    # are the layout channels_last.
    batch = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(device)
    with torch.inference_mode(), autocast(device, spec.precision):
        logits: Tensor = model(batch)
    return logits[0].float().cpu()


def fading(spans: set[tuple[int, int]], length: int, overlap_px: int) -> dict[int, Tensor]:
    """Weights along one axis by the start of a span: where spans (start, length) overlap, they fade into each other.

    At each place the weights of all spans add up to 1, so that blended logits need no division; those of tiles are the
    products of their rows' and columns'.
    """
    total = torch.zeros(length)
    ramps = {start: _ramp(size, overlap_px) for start, size in sorted(spans)}
    for start, ramp in ramps.items():
        total[start : start + len(ramp)] += ramp
    return {start: ramp / total[start : start + len(ramp)] for start, ramp in ramps.items()}


def _ramp(length: int, overlap_px: int) -> Tensor:
    """1 inside, falling to both ends over the overlap."""
    distance = torch.arange(1, length + 1, dtype=torch.float32)
    ramp = max(1, overlap_px)
    return torch.minimum(distance, distance.flip(0)).clamp(max=ramp) / ramp
