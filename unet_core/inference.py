"""Image of any size -> logits, in tiles: fast ones that fade into each other, or exact ones, which change nothing."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from unet_core.errors import ModelError
from unet_core.metrics import predict_planes
from unet_core.model import ModelSpec
from unet_core.samples import Array, Window
from unet_core.tiling import exact_tiles

#: Side of a tile and overlap of neighbours, in pixels. An image that fits in one tile is predicted whole.
TILE_PX = 768
OVERLAP_PX = 64


def predict_logits(
    model: nn.Module,
    spec: ModelSpec,
    image: Array,
    *,
    exact: bool = False,
    tile_px: int = TILE_PX,
    overlap_px: int = OVERLAP_PX,
) -> Tensor:
    """Predict one image (H, W, C), uint8 or uint16 as the model was trained; logits (K, H, W) float32 on the CPU.

    `exact` tiles overlap as far as the network looks and give the whole image's logits, to rounding; the others overlap
    by `overlap_px` and differ a little near their borders. Raises ModelError for an image whose number of channels
    the model does not take, and for exact tiles of a network whose normalisation follows the tile.
    """
    if image.ndim != 3 or image.shape[2] != spec.channels:
        raise ModelError(
            f"the model takes {spec.channels} channels, the image has shape {image.shape}. "
            "Convert the image, or train a model for such images."
        )
    height, width = image.shape[:2]
    if height <= tile_px and width <= tile_px:
        return _predict_tile(model, spec, image)
    # Without padding, a tile's border is mirrored where the image goes on: as in the paper, nothing of that is kept.
    if exact or (spec.config.padding == "none" and spec.config.norm in ("none", "batch")):
        return _predict_exactly(model, spec, image, tile_px)
    total = torch.zeros(spec.class_map.num_classes, height, width)
    weights = torch.zeros(height, width)
    for tile in _tiles(height, width, tile_px, overlap_px, stride=2**spec.config.depth):
        rows, columns = _slices(tile)
        weight = _ramp(tile.height, overlap_px)[:, None] * _ramp(tile.width, overlap_px)[None, :]
        total[:, rows, columns] += weight * _predict_tile(model, spec, image[rows, columns])
        weights[rows, columns] += weight
    return total / weights


def predict_symmetric(model: nn.Module, spec: ModelSpec, image: Array, *, exact: bool = False) -> Tensor:
    """Mean logits of the image's eight turned and mirrored forms (the group D4), as predict_logits gives them."""
    total = torch.zeros(())
    for mirrored in (False, True):
        for turns in range(4):
            form = np.rot90(image[:, ::-1] if mirrored else image, turns)
            logits = torch.rot90(predict_logits(model, spec, form, exact=exact), -turns, dims=(1, 2))
            total = total + (logits.flip(2) if mirrored else logits)
    return total / 8


def _predict_exactly(model: nn.Module, spec: ModelSpec, image: Array, tile_px: int) -> Tensor:
    if spec.config.norm in ("group", "instance"):
        raise ModelError(
            f"no exact tiles with model.norm: {spec.config.norm}, whose statistics are those of the tile. "
            "Predict without --exact, or train with norm batch or none."
        )
    height, width = image.shape[:2]
    logits = torch.empty(spec.class_map.num_classes, height, width)
    for tile in exact_tiles(height, width, spec.config, tile_px=tile_px):
        seen = _predict_tile(model, spec, image[_slices(tile.seen)])
        top, left = tile.kept.top - tile.seen.top, tile.kept.left - tile.seen.left
        logits[(slice(None), *_slices(tile.kept))] = seen[
            :, top : top + tile.kept.height, left : left + tile.kept.width
        ]
    return logits


def _slices(window: Window) -> tuple[slice, slice]:
    return slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)


def predict_mask(logits: Tensor, spec: ModelSpec) -> Array:
    """Logits (K, H, W) -> class indices (H, W), or (H, W, K) zeros and ones for overlapping classes; uint8."""
    if spec.class_map.kind != "multilabel":
        return logits.argmax(dim=0).to(torch.uint8).numpy()
    return predict_planes(logits).permute(1, 2, 0).to(torch.uint8).numpy()


def _predict_tile(model: nn.Module, spec: ModelSpec, image: Array) -> Tensor:
    device = next(model.parameters()).device
    # A copy: mapped files are read-only, and torch wants memory that it may write.
    batch = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(device)
    with torch.inference_mode(), autocast(device, spec.precision):
        logits: Tensor = model(batch)
    return logits[0].float().cpu()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The arithmetic that the recipe names, as a context."""
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")


def _tiles(height: int, width: int, tile_px: int, overlap_px: int, stride: int) -> Iterator[Window]:
    for top, bottom in _spans(height, tile_px, overlap_px, stride):
        for left, right in _spans(width, tile_px, overlap_px, stride):
            yield Window(top=top, left=left, height=bottom - top, width=right - left)


def _spans(length: int, tile_px: int, overlap_px: int, stride: int) -> Iterator[tuple[int, int]]:
    """Starts and ends of tiles that cover `length`. A start is a multiple of the stride: elsewhere pooling would
    pair other pixels than it does in the whole image, and the answer would depend on the tiles.
    """
    step = max(stride, (tile_px - overlap_px) // stride * stride)
    start = 0
    while start + tile_px < length:
        yield start, start + tile_px
        start += step
    yield start, length


def _ramp(length: int, overlap_px: int) -> Tensor:
    """Weights along one side of a tile: 1 inside, falling to its ends over the overlap."""
    distance = torch.arange(1, length + 1, dtype=torch.float32)
    ramp = max(1, overlap_px)
    return torch.minimum(distance, distance.flip(0)).clamp(max=ramp) / ramp
