"""A few numbers of an image and of what the network made of it: what later images are compared by."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Of one image. Undefined numbers are None."""

    height: int
    width: int
    means: tuple[float, ...]
    """Of each channel, as the network sees it, in units of full scale (0 to 1)."""
    deviations: tuple[float, ...]
    """Standard deviation of each channel's pixels, in the same units."""
    channel_range: float | None
    """Mean difference of a pixel's largest and smallest channel: 0 of a gray image that is read as RGB. None where
    there is one channel."""
    shares: Mapping[str, float]
    """Class -> share of the pixels that were predicted as it; without the background, which is what the others leave.
    """
    embedding: tuple[float | None, ...]
    """Mean over all places of each channel of the network's deepest feature map."""


def parse_traits(body: dict[str, Any]) -> Traits:
    """Traits as JSON has them; ValueError, KeyError or TypeError where these are none."""
    spread = body["channel_range"]
    return Traits(
        height=operator.index(body["height"]),
        width=operator.index(body["width"]),
        means=tuple(map(float, body["means"])),
        deviations=tuple(map(float, body["deviations"])),
        channel_range=None if spread is None else float(spread),
        shares={str(name): float(share) for name, share in body["shares"].items()},
        embedding=tuple(None if value is None else float(value) for value in body["embedding"]),
    )
