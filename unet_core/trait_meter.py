"""Collects the traits of an image while it is predicted: rows and tiles as they come, no pass of their own."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from unet_core.inference import ImageRows
from unet_core.model import ModelSpec, Network
from unet_core.packing import channel_sums
from unet_core.samples import Array, count_class_pixels
from unet_core.traits import Traits

#: Digits that are kept: sums of another number of threads differ in the last ones.
DIGITS = 5
#: Rows whose differences between channels are taken at once.
BLOCK_ROWS = 64


class TraitMeter:
    """Adds up what it sees of one image, in whatever parts."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._next_row = 0
        self._pixels = self._mask_pixels = self._places = 0
        self._sums, self._squares = [0] * spec.channels, [0] * spec.channels
        self._ranges = 0
        self._class_pixels = np.zeros(spec.class_map.num_classes, dtype=np.int64)
        self._features: npt.NDArray[np.float64] | None = None

    def see_pixels(self, pixels: Array) -> None:
        """The next part of the image, (rows, columns, C)."""
        sums, squares = channel_sums(pixels)
        for channel, (total, square) in enumerate(zip(sums, squares, strict=True)):
            self._sums[channel] += total
            self._squares[channel] += square
        self._pixels += pixels.shape[0] * pixels.shape[1]
        for top in range(0, len(pixels), BLOCK_ROWS):
            self._ranges += int(np.ptp(pixels[top : top + BLOCK_ROWS], axis=2).sum(dtype=np.int64))

    def see_rows(self, top: int, rows: Array) -> None:
        """Rows from `top` on, of which some may have been seen already: tiles overlap."""
        fresh = rows[max(0, self._next_row - top) :]
        if len(fresh):
            self.see_pixels(fresh)
            self._next_row = top + len(rows)

    def see_mask(self, mask: Array) -> None:
        """The next part of the predicted mask, as `predict_mask` gives it."""
        self._class_pixels += np.array(count_class_pixels(mask, self._spec.class_map))
        self._mask_pixels += mask.shape[0] * mask.shape[1]

    def see_features(self, feature_map: Tensor) -> None:
        """A feature map of one image or tile, (1, C, h, w)."""
        summed = feature_map.detach().float().sum(dim=(0, 2, 3), dtype=torch.float64).cpu().numpy()
        self._features = summed if self._features is None else self._features + summed
        self._places += feature_map.shape[0] * feature_map.shape[2] * feature_map.shape[3]

    def read(self, *, height: int, width: int) -> Traits:
        """What was seen, of an image of this size."""
        white, pixels = self._spec.images.white, self._pixels
        means = [total / pixels for total in self._sums]
        # In integers up to the division: for 16 bits the difference of two squares would lose its digits.
        variances = [
            (squares * pixels - total**2) / pixels**2 for total, squares in zip(self._sums, self._squares, strict=True)
        ]
        names, ground = self._spec.class_map.names, self._spec.class_map.ground
        shares = {
            name: int(count) / self._mask_pixels
            for name, count in zip(names, self._class_pixels, strict=True)
            if name != ground
        }
        features = [] if self._features is None else (self._features / self._places).tolist()
        return Traits(
            height=height,
            width=width,
            means=tuple(_rounded(mean / white) for mean in means),
            deviations=tuple(_rounded(variance**0.5 / white) for variance in variances),
            channel_range=_rounded(self._ranges / pixels / white) if self._spec.channels > 1 else None,
            shares={name: _rounded(share) for name, share in shares.items()},
            # Arithmetic of 16 bits may overflow.
            embedding=tuple(_rounded(value) if math.isfinite(value) else None for value in features),
        )


@dataclass(frozen=True)
class MeasuredRows:
    """An image's rows, seen by a meter on their way."""

    image: ImageRows
    meter: TraitMeter

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width, channels."""
        return self.image.shape

    def read_rows(self, top: int, bottom: int) -> Array:
        """As the image's own."""
        rows = self.image.read_rows(top, bottom)
        self.meter.see_rows(top, rows)
        return rows


@contextmanager
def watched(network: Network, meter: TraitMeter) -> Iterator[None]:
    """While it lasts, the meter sees the deepest feature map of whatever the network predicts."""

    def note(_module: nn.Module, _inputs: tuple[Tensor, ...], out: Tensor | list[Tensor]) -> None:
        meter.see_features(out if isinstance(out, Tensor) else out[-1])

    # A known encoder gives the maps of all levels at once.
    deepest = network.encoder[-1] if isinstance(network.encoder, nn.ModuleList) else network.encoder
    handle = deepest.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
