"""Which tiles an image is cut into for prediction. Geometry only: no network runs here."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from unet_core.model import ModelConfig
from unet_core.model_config import ENCODERS, EncoderLayers
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
    spans = [(place, *span_seen(config, place)) for place in range(config.stride)]
    return max(max(place - first, last - place) for place, first, last in spans)


def span_seen(config: ModelConfig, place: int) -> tuple[int, int]:
    """First and last pixel of the image, along one axis, that the logits at `place` depend on."""
    if config.encoder is not None:
        return _around_encoder(ENCODERS[config.encoder], place)
    square = place // config.stem_stride
    first, last = _through_decoder(config, 0, config.depth, square, square)
    return first * config.stem_stride - config.margin_px, (last + 1) * config.stem_stride - 1 - config.margin_px


def _through_decoder(config: ModelConfig, level: int, step: int, first: int, last: int) -> tuple[int, int]:
    """What the decoder's pixels `first` to `last` of a level depend on; `step` counts the blocks from the encoder's.

    Places are counted in each map on its own: without padding, a convolution's pixel stands at the first of the three
    that it sees, and a skip connection's at another than in the encoder's map.
    """
    if step == 0:
        return _through_encoder(config, level, first, last)
    first, last = _through_convolutions(config, 2, first, last)
    # In U-Net++, the latest block of the level has seen what the earlier ones have, and more.
    cropped = config.cropped_px[level]
    beside = _through_decoder(config, level, step - 1 if config.nested else 0, first + cropped, last + cropped)
    if config.upsampling == "resize":
        first, last = _through_convolutions(config, 1, first, last)
    below = _through_decoder(config, level + 1, step - 1, first // 2, last // 2)
    return min(beside[0], below[0]), max(beside[1], below[1])


def _through_encoder(config: ModelConfig, level: int, first: int, last: int) -> tuple[int, int]:
    first, last = _through_convolutions(config, 2, first, last)
    if level == 0:
        return first, last
    return _through_encoder(config, level - 1, 2 * first, 2 * last + 1)


def _through_convolutions(config: ModelConfig, count: int, first: int, last: int) -> tuple[int, int]:
    before = count if config.padding == "zeros" else 0
    return first - before, last + 2 * count - before


def _around_encoder(layers: EncoderLayers, place: int) -> tuple[int, int]:
    """As `span_seen`, for segmentation_models_pytorch's U-Net: 3x3 convolutions pad, the finest level has no skip."""
    # The head, and the decoder's last two convolutions.
    first, last = place - 3, place + 3
    seen = []
    for level in range(1, len(layers.further)):
        first, last = first // 2 - 2, last // 2 + 2
        seen.append(_through_layers(layers, level, first, last))
    seen.append(_through_layers(layers, len(layers.further), first // 2, last // 2))
    return min(first for first, _ in seen), max(last for _, last in seen)


def _through_layers(layers: EncoderLayers, level: int, first: int, last: int) -> tuple[int, int]:
    """What pixels `first` to `last` of the encoder's map of a level, 1 the finest, depend on."""
    for number in range(level, 0, -1):
        further = layers.further[number - 1]
        around = 1 if number > 1 else layers.first_kernel // 2
        first, last = 2 * (first - further) - around, 2 * (last + further) + around
    return first, last


def fading_tiles(height: int, width: int, *, tile_px: int, overlap_px: int, stride: int) -> Iterator[Tile]:
    """Tiles of at most `tile_px` that overlap by `overlap_px` at least; all they see counts.

    A start is a multiple of the network's stride: elsewhere pooling would pair other pixels than it does in the whole
    image, and the answer would depend on the tiles.
    """
    rows, columns = (list(_spans(length, tile_px, overlap_px=overlap_px, stride=stride)) for length in (height, width))
    for (top, bottom), (left, right) in product(rows, columns):
        window = Window(top=top, left=left, height=bottom - top, width=right - left)
        yield Tile(seen=window, kept=window)


def _spans(length: int, tile_px: int, *, overlap_px: int, stride: int) -> Iterator[tuple[int, int]]:
    """As few as are needed, and all as long as each other to a stride: in a strip that is left over, group norm's
    statistics would be those of the strip.
    """
    if length <= tile_px:
        yield 0, length
        return
    longest_step = max(stride, (tile_px - overlap_px) // stride * stride)
    count = -(-(length - overlap_px) // longest_step)
    step = -(-(length - overlap_px) // (count * stride)) * stride
    last_start = -(-(length - step - overlap_px) // stride)  # in strides, as the others
    for start in sorted({last_start * number // max(1, count - 1) * stride for number in range(count)}):
        yield start, min(start + step + overlap_px, length)


def exact_tiles(height: int, width: int, config: ModelConfig, *, tile_px: int) -> Iterator[Tile]:
    """Tiles of at most `tile_px` whose kept parts cover the image once, each out of reach of its tile's border.

    A tile begins at multiples of the network's stride, where pooling pairs the pixels that it pairs in the whole image.
    Where the network looks so far that tiles would keep nothing, they are larger and keep a third of their side.
    """
    stride, radius = config.stride, receptive_radius(config)
    border = 2 * (radius + stride)
    if tile_px < border + stride:
        tile_px = border + border // 2
    step = (tile_px - border) // stride * stride
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
