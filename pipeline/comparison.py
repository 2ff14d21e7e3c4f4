"""Two models' scores on the same images -> differences with intervals: overall, of each class, of each slice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.bootstrap import Bootstrap, Floats, bootstrap_means

#: With fewer groups a class or a slice has no interval.
MIN_PART_GROUPS = 5


@dataclass(frozen=True, kw_only=True)
class PairedScores:
    """Scores of two models on the same N images and K scored classes."""

    groups: Sequence[str]
    """Of each image: what is drawn as one."""
    classes: Sequence[str]
    challenger: Floats
    """(N, K), NaN where a class is neither in the mask nor predicted."""
    champion: Floats
    slices: Mapping[str, Sequence[str | None]]
    """Column -> each image's word."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two means over the same images, and their difference."""

    name: str
    """Of a class, or a slice's word; empty for the main score."""
    column: str | None
    """The slice's column."""
    images: int
    groups: int
    challenger: float
    champion: float
    difference: float
    interval_95: tuple[float, float] | None
    """None with too few groups."""


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """All that two models are compared by."""

    whole: Comparison
    """The main score: the mean over images of the mean over their scored classes."""
    classes: tuple[Comparison, ...]
    """Those that occur."""
    slices: tuple[Comparison, ...]
    drawn: Bootstrap
    """Of the differences; column 0 is the main score's."""


def compare(scores: PairedScores, *, draws: int, seed: int) -> Comparisons:
    """A paired bootstrap over groups; there must be an image with a score."""
    new, old = fill_right(scores.challenger, scores.champion), fill_right(scores.champion, scores.challenger)
    slices = [
        (word, column) for column, words in scores.slices.items() for word in sorted(set(words) - {None}, key=str)
    ]
    is_in = [np.array([word == other for other in scores.slices[str(column)]]) for word, column in slices]
    challenger, champion = _columns(new, is_in), _columns(old, is_in)
    _, numbers = np.unique(np.asarray(scores.groups, dtype=np.str_), return_inverse=True)
    drawn = bootstrap_means(challenger - champion, numbers, draws=draws, seed=seed)
    names = [("", None), *((name, None) for name in scores.classes), *slices]
    whole, *parts = (
        _comparison(drawn, number, challenger[:, number], champion[:, number], str(name), column)
        for number, (name, column) in enumerate(names)
    )
    defined = [part for part in parts if part.images]
    return Comparisons(
        whole=whole,
        classes=tuple(part for part in defined if part.column is None),
        slices=tuple(part for part in defined if part.column is not None),
        drawn=drawn,
    )


def fill_right(scores: Floats, others: Floats) -> Floats:
    """A model that rightly does not predict a class has no score; beside one that paints some of it, it counts as 1.

    Otherwise a model that hallucinates could win. Where both are rightly empty the class stays undefined.
    """
    return np.where(np.isnan(scores) & ~np.isnan(others), 1.0, scores)


def image_means(scores: Floats) -> Floats:
    """(N, K) -> (N,), the mean of each image's defined classes; NaN where none is."""
    is_defined = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        return np.where(is_defined, scores, 0.0).sum(axis=1) / is_defined.sum(axis=1)


def _columns(scores: Floats, is_in: Sequence[npt.NDArray[np.bool_]]) -> Floats:
    """(N, 1 + K + slices): the main score, the classes, and the main score inside each slice."""
    means = image_means(scores)
    return np.column_stack([means, scores, *(np.where(mask, means, np.nan) for mask in is_in)])


def _comparison(
    drawn: Bootstrap, number: int, challenger: Floats, champion: Floats, name: str, column: str | None
) -> Comparison:
    is_defined = ~np.isnan(challenger)
    groups = int(drawn.num_groups[number])
    return Comparison(
        name=name,
        column=column,
        images=int(is_defined.sum()),
        groups=groups,
        challenger=_mean(challenger[is_defined]),
        champion=_mean(champion[is_defined]),
        difference=float(drawn.means[number]),
        interval_95=drawn.interval(number) if groups >= (2 if not name else MIN_PART_GROUPS) else None,
    )


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")
