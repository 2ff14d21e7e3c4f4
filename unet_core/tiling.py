"""Which tiles an image is cut into for prediction. Geometry only: no network runs here."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from unet_core.errors import ModelError
from unet_core.model import ModelConfig
from unet_core.samples import Window


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A part of an image that the network sees, and the part of it whose answer counts."""

    seen: Window
    kept: Window


def receptive_radius(config: ModelConfig) -> int:
    """How many pixels far the network looks, at most: what lies further off can't change a pixel's logits.

    True of networks whose normalisation has no statistics of the image (norm none, or batch in prediction).
    """
    spans = [(place, *_span_seen(config, place)) for place in range(2**config.depth)]
    return max(max(place - first, last - place) for place, first, last in spans)


def _span_seen(config: ModelConfig, place: int) -> tuple[int, int]:
    """First and last input pixel, along one axis, that the output pixel at `place` depends on."""
    first = last = place
    reached: list[tuple[int, int]] = []
    for level in range(config.depth):
        # Two 3x3 convolutions of the decoder, whose skip connection is the encoder's output of this level.
        first, last = first - 2, last + 2
        reached.append(_through_encoder(level, first, last))
        if config.upsampling == "resize":
            first, last = first - 1, last + 1
        first, last = first // 2, last // 2
    reached.append(_through_encoder(config.depth, first, last))
    return min(first for first, _ in reached), max(last for _, last in reached)


def _through_encoder(level: int, first: int, last: int) -> tuple[int, int]:
    for _ in range(level):
        first, last = 2 * (first - 2), 2 * (last + 2) + 1
    return first - 2, last + 2


def exact_tiles(height: int, width: int, config: ModelConfig, *, tile_px: int) -> Iterator[Tile]:
    """Tiles of at most `tile_px` whose kept parts cover the image once, each out of reach of its tile's border.

    A tile begins at multiples of the network's stride, where pooling pairs the pixels that it pairs in the whole image.
    Raises ModelError where tiles are too small to keep anything.
    """
    stride, radius = 2**config.depth, receptive_radius(config)
    step = (tile_px - 2 * (radius + stride)) // stride * stride
    if step < stride and max(height, width) > tile_px:
        raise ModelError(
            f"tiles of {tile_px} pixels are too small: the network looks {radius} pixels far. "
            f"Make them larger than {2 * (radius + stride) + stride}."
        )
    for (top, bottom), (left, right) in product(_cells(height, tile_px, step), _cells(width, tile_px, step)):
        kept = Window(top=top, left=left, height=bottom - top, width=right - left)
        first_row, last_row = _reach(top, bottom, height, radius, stride)
        first_column, last_column = _reach(left, right, width, radius, stride)
        seen = Window(top=first_row, left=first_column, height=last_row - first_row, width=last_column - first_column)
        yield Tile(seen=seen, kept=kept)


def _cells(length: int, tile_px: int, step: int) -> Iterator[tuple[int, int]]:
    if length <= tile_px:
        yield 0, length
        return
    for start in range(0, length, step):
        yield start, min(start + step, length)


def _reach(start: int, end: int, length: int, radius: int, stride: int) -> tuple[int, int]:
    return max(0, (start - radius) // stride * stride), min(length, end + radius)
