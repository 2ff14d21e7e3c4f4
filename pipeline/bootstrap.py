"""Bootstrap over groups of images -> means, and intervals that hold for few and skewed groups. Arrays in and out."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Numbers drawn at a time: 32 MB. Few large products of matrices, since threads wait for each other in every one.
BLOCK = 2**22
#: More groups than this are drawn in bundles, put together at random: the mean of so many is normal, and its standard
#: error over bundles is the one over groups, to less than a percent.
MAX_UNITS = 10_000
#: Differences and deviations below this are rounding: scores lie between 0 and 1.
TINY = 1e-12
#: Up to so many groups a whole skewness of standard errors is added on the side of the tail; with more, less (1 / G).
SKEWED_GROUPS = 20


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Means of S columns over images, and what B draws of groups made of them.

    Two methods judge together, and the more doubtful one counts. The percentile interval is too sure where differences
    have a long tail of losses; the studentised one (bootstrap-t, Efron 1979) corrects for skewness, but alone is too
    sure where most differences are zero. Both are stretched for few groups: the bootstrap's variance lacks a factor
    G / (G - 1), and its tails are those of a normal, not of a t distribution (Hesterberg 2015). What both lack where
    few groups show too little of a long tail is of the order of skewness / G (Hall 1988), and is added on its side; how
    much of it was measured (benchmarks/gate.py).
    """

    means: Floats
    """(S,); NaN for a column without values."""
    num_groups: npt.NDArray[np.int64]
    """(S,) groups that have a value."""
    errors: Floats
    """(S,) standard error of each mean, over groups."""
    skewness: Floats
    """(S,) of what groups add to a mean: negative where the long tail is one of losses; 0 where all add the same."""
    deviations: Floats
    """(B, S) a draw's mean minus the mean; NaN where a draw has no value."""

    studentised: Floats
    """(B, S) the same in units of the draw's own standard error."""

    def interval(self, column: int, level: float = 0.95) -> tuple[float, float] | None:
        """Two-sided interval of a mean, at most -1 to 1; None with fewer than two groups."""
        if self.num_groups[column] < 2:
            return None
        mean, error = self.means[column], self.errors[column]
        upper = (1 + level) / 2
        stretch = _stretch(int(self.num_groups[column]), upper)
        bounds = []
        for share in (1 - upper, upper):
            plain = stretch * self._quantile(self.deviations, column, share)
            # A studentised quantile bounds the other side.
            turned = -stretch * error * self._quantile(self.studentised, column, 1 - share) if error > TINY else 0.0
            bounds.append(min(plain, turned) if share < 0.5 else max(plain, turned))
        low, high = bounds[0] - self._unseen(column, -1), bounds[1] + self._unseen(column, 1)
        return max(-1.0, float(mean + low)), min(1.0, float(mean + high))

    def confidence_above(self, column: int, limit: float, level: float) -> float:
        """With which confidence a mean lies above a limit; stretched as a test at `level` must be."""
        mean, error = self.means[column], self.errors[column]
        if error <= TINY:
            return float(mean > limit + TINY)
        mean -= self._unseen(column, -1)
        stretch = _stretch(int(self.num_groups[column]), level)
        plain = np.mean(mean + stretch * self.deviations[:, column] > limit)
        studentised = np.mean(stretch * self.studentised[:, column] < (mean - limit) / error)
        return float(min(plain, studentised))

    def _unseen(self, column: int, side: int) -> float:
        """What a tail on this side (-1 or 1) may hold that no group has shown; 0 where the longer tail is the other."""
        share = min(1.0, SKEWED_GROUPS / float(self.num_groups[column]))
        return float(max(0.0, side * self.skewness[column]) * share * self.errors[column])

    def _quantile(self, draws: Floats, column: int, share: float) -> float:
        # A value that occurs: between two infinite ones there is nothing to interpolate.
        return float(np.nanquantile(draws[:, column], share, method="inverted_cdf"))


def bootstrap_means(values: Floats, groups: npt.NDArray[np.int64], *, draws: int, seed: int) -> Bootstrap:
    """Draw whole groups with replacement; means are over images.

    `values` (N, S), NaN where undefined; `groups` (N,) says which of G groups, 0 to G - 1, an image belongs to.
    """
    rng = np.random.default_rng(seed)
    sums = _GroupSums(values, groups, rng)
    parts = [sums.draw(weights) for weights in _weights(rng, len(sums.counts), draws)]
    deviations, studentised = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Bootstrap(
        means=sums.means,
        num_groups=sums.num_groups,
        errors=sums.errors,
        skewness=sums.skewness,
        deviations=deviations,
        studentised=studentised,
    )


class _GroupSums:
    """Sums of each group, from which a draw's means and errors follow by one product of matrices."""

    def __init__(self, values: Floats, groups: npt.NDArray[np.int64], rng: np.random.Generator) -> None:
        is_defined = ~np.isnan(values)
        counts = _sum_groups(is_defined.astype(np.float64), groups)
        totals = _sum_groups(np.where(is_defined, values, 0.0), groups)
        with np.errstate(invalid="ignore"):
            self.means = totals.sum(axis=0) / counts.sum(axis=0)
        self.num_groups = (counts > 0).sum(axis=0)
        # What a group adds beyond the mean: small numbers, so that differences of their squares keep their digits.
        rests = totals - np.nan_to_num(self.means) * counts
        if len(counts) > MAX_UNITS:
            bundles = rng.permutation(len(counts)) % MAX_UNITS
            counts, rests = _sum_groups(counts, bundles), _sum_groups(rests, bundles)
        self.counts, self._rests = counts, rests
        num_units = (counts > 0).sum(axis=0)
        self._freedom = num_units / np.maximum(num_units - 1, 1)

    @cached_property
    def errors(self) -> Floats:
        """Standard error of each ratio of sums (linearised, over groups)."""
        squares = (self._rests**2).sum(axis=0) * self._freedom
        with np.errstate(invalid="ignore"):
            return np.sqrt(squares) / self.counts.sum(axis=0)

    @cached_property
    def skewness(self) -> Floats:
        """Third moment of what groups add, in units of their deviation; their mean is 0."""
        num_units = (self.counts > 0).sum(axis=0)
        squares, cubes = ((self._rests**power).sum(axis=0) for power in (2, 3))
        spread = np.where(squares > TINY**2, squares, np.inf)
        return np.sqrt(num_units) * cubes / spread**1.5

    @cached_property
    def _columns(self) -> Floats:
        n, e = self.counts, self._rests
        # With one image a group, as mostly, n * n is n and n * e is e.
        return np.concatenate([n, e, e * e] if self._is_single else [n, e, e * e, n * e, n * n], axis=1)

    @cached_property
    def _is_single(self) -> bool:
        return bool((self.counts <= 1).all())

    def draw(self, weights: Floats) -> tuple[Floats, Floats]:
        """Deviations and studentised deviations, (rows, S) each, of draws that take group g `weights[:, g]` times."""
        n, e, ee, *rest = np.split(weights @ self._columns, 3 if self._is_single else 5, axis=1)
        ne, nn = rest or (e, n)
        with np.errstate(invalid="ignore", divide="ignore"):
            deviations = e / n
            variances = np.maximum(ee - 2 * deviations * ne + deviations**2 * nn, 0.0) * self._freedom
            errors = np.sqrt(variances) / n
            studentised = np.where(errors > TINY, deviations / errors, np.sign(deviations) * np.inf)
        is_zero = np.abs(deviations) <= TINY
        return deviations, np.where(is_zero, 0.0, studentised)


def _sum_groups(columns: Floats, groups: npt.NDArray[np.int64]) -> Floats:
    size = int(groups.max(initial=-1)) + 1
    sums = [np.bincount(groups, weights=column, minlength=size) for column in columns.T]
    return np.stack(sums, axis=1)


def _weights(rng: np.random.Generator, num_groups: int, draws: int) -> Iterator[Floats]:
    """How often each draw takes each group, a block of draws at a time: all at once would fill the memory."""
    rows = max(1, BLOCK // num_groups)
    for start in range(0, draws, rows):
        size = min(rows, draws - start)
        numbers = rng.integers(0, num_groups, size=(size, num_groups))
        numbers += num_groups * np.arange(size)[:, None]
        yield np.bincount(numbers.ravel(), minlength=numbers.size).reshape(size, num_groups).astype(np.float64)


def _stretch(num_groups: int, level: float) -> float:
    # Not scipy.stats, whose import takes a second.
    from scipy.special import ndtri, stdtrit

    if level <= 0.5:
        return 1.0
    exact = float(stdtrit(num_groups - 1, level) / ndtri(level))
    return exact * float(np.sqrt(num_groups / (num_groups - 1)))
