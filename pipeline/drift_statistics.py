"""Do recent images look like the training images? Decisions on numbers, no input or output.

Each quantity of an image (brightness, size, share of a class ...) is compared by itself, by the Kolmogorov-Smirnov
distance: the largest difference, over all values, between the share of recent images below it and the share of training
images below it; 0 where the two agree, 1 where they have nothing in common. It needs no idea of how values are
distributed, has no unit, and one limit does for all quantities. Two things make a drift of it:

- the distance is above the limit. Of thousands of images, a difference that nobody would care about is beyond chance.
- chance alone would hardly give it: of twenty images of the same kind, one quantity in twenty is above 0.3. The
  p-values of all quantities are held against one chance of a false alarm, divided by their number (Bonferroni).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from unet_core.errors import RecipeError
from unet_core.traits import Traits

Values = npt.NDArray[np.float64]
"""One of each image; NaN where it is undefined."""

Decision = Literal["drift", "alike", "too few to tell"]

EMBEDDING = "embedding distance"
#: A feature's spread counts as at least this share of all features' spread, or a feature that never varies in training
#: (a dead one) would decide alone.
LEAST_SPREAD = 0.1
#: Directions in which training images' features differ most, that are compared one by one.
NUM_DIRECTIONS = 3
#: A century: a calendar has no day a million days ago.
MAX_DAYS = 36_500
#: Every second training image tells the directions; the others are compared.
_LEARNT = slice(0, None, 2)


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """Recipe section `drift`; where there is none, `unet drift` takes these values and `unet retrain` does not look."""

    max_distance: float = 0.3
    """Kolmogorov-Smirnov distance, 0 to 1, that a quantity may have."""
    confidence: float = 0.99
    """Share of looks at images like those of the training that raise no alarm, at least."""
    min_images: int = 20
    """Recent ones, and training images, that a decision needs."""
    window_days: float = 30
    """Older predictions don't count."""
    window_images: int = 1000
    """The newest, of those, that count."""
    training_images: int = 1000
    """Training images, at most, that are compared with; where there are more, a fixed choice of them."""

    def __post_init__(self) -> None:
        for name in ("max_distance", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise RecipeError(f"drift.{name}: {getattr(self, name)}: must be between 0 and 1.")
        if not 0 < self.window_days <= MAX_DAYS:
            raise RecipeError(f"drift.window_days: {self.window_days}: must be above 0 and at most {MAX_DAYS}.")
        # The spread of training images without one of them needs two others.
        if self.min_images < 3:
            raise RecipeError(f"drift.min_images: {self.min_images}: must be at least 3.")
        for name in ("window_images", "training_images"):
            if getattr(self, name) < self.min_images:
                raise RecipeError(
                    f"drift.{name}: {getattr(self, name)}: fewer than min_images ({self.min_images}) never suffice."
                )


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of one quantity."""

    images: int
    """Where it is defined."""
    low: float
    """Of twenty images, one has less."""
    median: float
    high: float
    """Of twenty images, one has more."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of one quantity."""

    name: str
    distance: float | None
    """None where too few images have a value."""
    p_value: float | None
    is_drift: bool
    recent: Spread | None
    training: Spread | None
    unseen: float | None
    """Share of recent images with a value below or above that of every training image."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All quantities."""

    decision: Decision
    num_recent: int
    num_training: int | None
    """None where there was nothing to compare with them."""
    findings: tuple[Finding, ...]
    """The largest distance first, undefined ones last."""

    @property
    def drifted(self) -> tuple[Finding, ...]:
        """Those beyond the limit."""
        return tuple(finding for finding in self.findings if finding.is_drift)


def recent_quantities(images: Sequence[Traits], training: Sequence[Traits]) -> dict[str, Values]:
    """Name -> a value of each image; which there are, and from where features are measured, training images tell."""
    cloud = _cloud(training)
    return {
        **_columns(images, training[0]),
        **_along_directions(images, training, cloud),
        EMBEDDING: _distances(images, cloud),
    }


def training_quantities(training: Sequence[Traits]) -> dict[str, Values]:
    """The same of the training images; each one's features are measured from those of all the others."""
    cloud = _cloud(training)
    along = _along_directions(training, training, cloud)
    for values in along.values():
        # Directions follow the images that they were found by: later ones of the same kind would seem less spread.
        values[_LEARNT] = math.nan
    return {**_columns(training, training[0]), **along, EMBEDDING: _distances_to_others(training, cloud)}


def compare(recent: Mapping[str, Values], training: Mapping[str, Values], config: DriftConfig) -> Comparison:
    """Compare quantity by quantity and decide."""
    num_recent, num_training = (len(values["height"]) for values in (recent, training))
    defined = {name: (_defined(recent[name]), _defined(training[name])) for name in training}
    tested = [name for name, both in defined.items() if min(map(len, both)) >= config.min_images]
    # A false alarm of any of them is one.
    largest_p = (1 - config.confidence) / max(1, len(tested))
    findings = []
    for name, (new, old) in defined.items():
        distance, p_value = _kolmogorov_smirnov(new, old) if name in tested else (None, None)
        is_drift = (
            distance is not None and p_value is not None and distance > config.max_distance and p_value <= largest_p
        )
        findings.append(
            Finding(
                name=name,
                distance=distance,
                p_value=p_value,
                is_drift=is_drift,
                recent=_spread(new),
                training=_spread(old),
                unseen=float(np.mean((new < old.min()) | (new > old.max()))) if len(new) and len(old) else None,
            )
        )
    findings.sort(key=lambda finding: -1.0 if finding.distance is None else finding.distance, reverse=True)
    decision: Decision = "too few to tell"
    if tested:
        decision = "drift" if any(finding.is_drift for finding in findings) else "alike"
    return Comparison(decision=decision, num_recent=num_recent, num_training=num_training, findings=tuple(findings))


def _columns(images: Sequence[Traits], like: Traits) -> dict[str, Values]:
    columns: dict[str, list[float | None]] = {}
    for number in range(len(like.means)):
        of_channel = f" of channel {number + 1}" if len(like.means) > 1 else ""
        columns[f"brightness{of_channel}"] = [_at(image.means, number) for image in images]
        columns[f"contrast{of_channel}"] = [_at(image.deviations, number) for image in images]
    if like.channel_range is not None:
        columns["difference of channels"] = [image.channel_range for image in images]
    columns["height"] = [image.height for image in images]
    columns["width"] = [image.width for image in images]
    for name in like.shares:
        columns[f"share of {name}"] = [image.shares.get(name) for image in images]
    return {
        name: np.array([math.nan if value is None else value for value in column], dtype=np.float64)
        for name, column in columns.items()
    }


@dataclass(frozen=True, kw_only=True)
class _Cloud:
    """Where the training images' features lie."""

    count: int
    mean: Values
    squares: Values
    """Sums, by feature, of squared distances to the mean."""
    least: float
    """Variance that a feature counts with at least."""


def _cloud(training: Sequence[Traits]) -> _Cloud | None:
    """None where there is no unit: too few images, or all have the same features."""
    known = _features(training, len(training[0].embedding))
    known = known[np.isfinite(known).all(axis=1)]
    if len(known) < 3 or not known.shape[1]:
        return None
    mean = known.mean(axis=0)
    squares = np.square(known - mean).sum(axis=0)
    least = LEAST_SPREAD**2 * float(squares.mean()) / (len(known) - 1)
    return _Cloud(count=len(known), mean=mean, squares=squares, least=least) if least > 0 else None


def _distances(images: Sequence[Traits], cloud: _Cloud | None) -> Values:
    """How far each image's features lie from the training images' mean, in units of their spread: the root mean square
    over all features.
    """
    if cloud is None:
        return np.full(len(images), math.nan)
    return _root_mean(np.square(_scaled(images, cloud)))


def _distances_to_others(training: Sequence[Traits], cloud: _Cloud | None) -> Values:
    """The same of each training image to the others: an image is nearer to a mean in which it counts itself, and those
    that don't would seem far.
    """
    if cloud is None:
        return np.full(len(training), math.nan)
    count = cloud.count
    squared = np.square(_features(training, len(cloud.mean)) - cloud.mean)
    # Mean and spread of all images but one, without going over them again.
    variances = np.maximum((cloud.squares - squared * count / (count - 1)) / (count - 2), cloud.least)
    return _root_mean(squared * (count / (count - 1)) ** 2 / variances)


def _along_directions(images: Sequence[Traits], training: Sequence[Traits], cloud: _Cloud | None) -> dict[str, Values]:
    """Where each image lies along the principal directions of training images' features.

    A distance from the mean has no sign: features that all move to one side, by as much as training images differ
    anyway, change it little.
    """
    if cloud is None:
        return {}
    learnt = _scaled(training[_LEARNT], cloud)
    learnt = learnt[np.isfinite(learnt).all(axis=1)]
    if len(learnt) < 2:
        return {}
    _, spreads, directions = np.linalg.svd(learnt - learnt.mean(axis=0), full_matrices=False)
    # Where no training image differs from another, directions are those of rounding.
    directions = directions[spreads > spreads[0] / 1000][:NUM_DIRECTIONS]
    scaled = _scaled(images, cloud)
    return {
        # A direction has no forward: its heaviest feature counts as that.
        f"feature direction {number}": scaled @ (direction * np.sign(direction[np.abs(direction).argmax()]))
        for number, direction in enumerate(directions, start=1)
    }


def _scaled(images: Sequence[Traits], cloud: _Cloud) -> Values:
    """(images, features), from the training images' mean in units of their spread."""
    deviations = np.sqrt(np.maximum(cloud.squares / (cloud.count - 1), cloud.least))
    scaled: Values = (_features(images, len(cloud.mean)) - cloud.mean) / deviations
    return scaled


def _features(images: Sequence[Traits], length: int) -> Values:
    """(images, length); rows of NaN where there are none, or others."""
    nothing = [math.nan] * length
    rows = [
        [math.nan if value is None else value for value in image.embedding]
        if len(image.embedding) == length
        else nothing
        for image in images
    ]
    return np.array(rows, dtype=np.float64).reshape(len(images), length)


def _root_mean(squares: Values) -> Values:
    root: Values = np.sqrt(squares.mean(axis=1))
    return root


def _at(values: Sequence[float], number: int) -> float | None:
    return values[number] if number < len(values) else None


def _defined(values: Values) -> Values:
    return values[np.isfinite(values)]


def _kolmogorov_smirnov(new: Values, old: Values) -> tuple[float, float]:
    # Importing it takes most of a second.
    from scipy.stats import ks_2samp

    found = ks_2samp(new, old, method="asymp")
    return float(found.statistic), float(found.pvalue)


def _spread(values: Values) -> Spread | None:
    if not len(values):
        return None
    low, median, high = np.percentile(values, (5, 50, 95)).tolist()
    return Spread(images=len(values), low=low, median=median, high=high)
