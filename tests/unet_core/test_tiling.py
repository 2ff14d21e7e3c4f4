"""How far a network looks, and tiles that follow from it."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unet_core.model import ModelConfig, ModelSpec, UNet
from unet_core.tiling import Tile, exact_tiles, fading_tiles, receptive_radius

KNOBS: tuple[dict[str, Any], ...] = (
    {},
    {"depth": 1},
    {"depth": 3},
    {"stem_stride": 2},
    {"stem_stride": 4, "depth": 1, "residual": True, "upsampling": "resize"},
    {"stem_stride": 2, "nested": True},
    {"upsampling": "resize"},
    {"residual": True, "attention": True, "upsampling": "resize"},
    {"padding": "none"},
    {"padding": "none", "depth": 3, "residual": True, "attention": True},
    {"padding": "none", "upsampling": "resize"},
    {"nested": True},
    {"nested": True, "depth": 3, "upsampling": "resize", "deep_supervision": 2},
)


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_the_radius_is_as_far_as_a_gradient_reaches(make_spec: Callable[..., ModelSpec], knobs: dict[str, Any]) -> None:
    spec = make_spec(**{"norm": "none", "width": 2, **knobs})
    model = UNet(spec).double().eval()
    # Positive weights: nothing cancels, and no unit sleeps.
    for parameter in model.parameters():
        parameter.data = parameter.data.abs() + 0.01
    side, stride = 256, spec.config.stride
    farthest = 0
    for place in range(side // 2, side // 2 + stride):
        # Along a line: rows and columns are treated alike. Averages instead of maxima pass a gradient to all they see.
        image = torch.full((1, 1, side, stride), 255.0, dtype=torch.float64, requires_grad=True)
        _with_average_pooling(model, image)[0, 0, place, 0].backward()
        assert image.grad is not None
        (touched,) = np.nonzero(image.grad[0, 0].abs().sum(dim=1).numpy())
        farthest = max(farthest, place - touched.min(), touched.max() - place)
    assert receptive_radius(spec.config) == farthest


def _with_average_pooling(model: UNet, image: torch.Tensor) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unet_core.model.F.max_pool2d", torch.nn.functional.avg_pool2d)
        logits: torch.Tensor = model(image)
    return logits


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 3), st.integers(0, 60))
def test_kept_parts_cover_the_image_once_and_are_out_of_reach_of_their_tiles_border(
    height: int, width: int, depth: int, more: int
) -> None:
    config = ModelConfig(width=2, depth=depth, norm="none", input_statistics="train")
    stride, radius = 2**depth, receptive_radius(config)
    tile_px = 2 * (radius + stride) + stride + more
    covered = np.zeros((height, width), dtype=int)
    for tile in exact_tiles(height, width, config, tile_px=tile_px):
        covered[_slices(tile.kept)] += 1
        for axis, length in (("top", height), ("left", width)):
            size = "height" if axis == "top" else "width"
            first, kept = getattr(tile.seen, axis), getattr(tile.kept, axis)
            last, kept_last = first + getattr(tile.seen, size), kept + getattr(tile.kept, size)
            assert first % stride == 0
            assert getattr(tile.seen, size) <= tile_px
            assert first == 0 or kept - first >= radius
            assert last == length or last - kept_last >= radius
    assert (covered == 1).all()


def _slices(window: Any) -> tuple[slice, slice]:
    return slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)


def test_tiles_that_would_keep_nothing_are_made_larger_and_keep_a_third() -> None:
    config = ModelConfig(width=2, depth=4, norm="none", input_statistics="train")
    reach = receptive_radius(config) + 16
    sides = {tile.seen.height for tile in exact_tiles(5000, 16, config, tile_px=128)}
    assert 128 < max(sides) <= 3 * reach
    kept = [tile.kept.height for tile in exact_tiles(5000, 16, config, tile_px=128)]
    assert sum(kept) == 5000
    assert kept[0] == reach // 16 * 16


def test_an_image_of_the_size_of_a_tile_is_kept_whole() -> None:
    config = ModelConfig(width=2, depth=4, norm="none", input_statistics="train")
    (only,) = exact_tiles(100, 128, config, tile_px=128)
    assert only.seen == only.kept


@given(st.integers(1, 3000), st.integers(0, 6), st.integers(1, 40), st.integers(0, 200))
def test_fading_tiles_are_all_as_large_as_each_other_and_no_more_than_needed(
    length: int, depth: int, strides: int, overlap: int
) -> None:
    stride = 2**depth
    tile_px = stride * strides
    overlap_px = min(overlap, tile_px // 2)
    spans = _spans_of(fading_tiles(length, 1, tile_px=tile_px, overlap_px=overlap_px, stride=stride))
    sides = [end - start for start, end in spans]
    assert all(start % stride == 0 for start, _ in spans)
    assert max(sides) - min(sides) < stride
    assert max(sides) <= max(tile_px, stride + overlap_px)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    pairs = list(zip(spans, spans[1:], strict=False))
    assert all(end - start >= overlap_px for (_, end), (start, _) in pairs)
    assert all(first < second for (first, _), (second, _) in pairs)
    step = max(stride, (tile_px - overlap_px) // stride * stride)
    assert len(spans) <= max(1, -(-(length - overlap_px) // step))


def test_an_image_a_little_larger_than_a_tile_has_no_strips() -> None:
    tiles = fading_tiles(770, 1600, tile_px=768, overlap_px=64, stride=16)
    assert [(tile.seen.height, tile.seen.width) for tile in tiles] == [(432, 576)] * 3 + [(418, 576)] * 3


def _spans_of(tiles: Iterable[Tile]) -> list[tuple[int, int]]:
    return [(tile.seen.top, tile.seen.top + tile.seen.height) for tile in tiles]
