"""The table of scores -> what stands in metrics/evaluate.json: means, pooled scores, intervals, slices."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.bootstrap import Bootstrap, bootstrap_means
from pipeline.comparison import MIN_PART_GROUPS, image_means
from pipeline.scores import (
    Score,
    ScoreRow,
    by_class,
    class_scores,
    image_rows,
    pixel_error,
    score_matrix,
    scored_classes,
)
from unet_core.calibration import NUM_BINS, expected_calibration_error
from unet_core.counts import mean_defined
from unet_core.errors import DataError
from unet_core.objects import IOU_LIMITS, average_precision

Body = dict[str, Any]


def summarise(rows: Sequence[ScoreRow], score: Score, *, draws: int, seed: int) -> Body:
    """Means are over images, `pooled` scores those of all pixels together. null is a score that is undefined."""
    means = image_means(score_matrix(rows, score))
    if np.isnan(means).all():
        raise DataError(
            "no score is defined: no scored class occurs in the test images or predictions. "
            "Check masks.classes and the test split."
        )
    intervals = _Intervals(rows, score, draws=draws, seed=seed)
    pooled = by_class(rows)
    body: Body = {
        score: float(np.nanmean(means)),
        "interval_95": intervals.of("image"),
        "images": int((~np.isnan(means)).sum()),
        "groups": intervals.groups("image"),
        **{f"class_{name}": class_scores(rows, name) for name in ("dice", "iou", "precision", "recall")},
        f"class_{score}_interval_95": {name: intervals.of(f"class {name}") for name in scored_classes(rows)},
        **{
            f"pooled_{name}": {of: getattr(counts, name) for of, counts in pooled.items()}
            for name in ("dice", "iou", "precision", "recall")
        },
        "images_without_dice": _count_by_class(rows, lambda row: row.dice is None),
        **_surfaces(rows),
        "ece": ece(rows),
    }
    slices = _slices(rows, means, intervals, score)
    if slices:
        body["slices"] = slices
    if rows[0].confusion:
        body["pixel_error"] = pixel_error(rows)
        body["confusion"] = confusion(rows)
    if any(row.true_objects is not None for row in rows):
        body["objects"] = {**_objects(rows), "interval_95": intervals.of("objects")}
    return body


def ece(rows: Sequence[ScoreRow]) -> float | None:
    """Expected calibration error of all decisions together."""
    decisions, right, confidence = calibration(rows)
    return expected_calibration_error(decisions, right, confidence)


def calibration(
    rows: Sequence[ScoreRow],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Decisions, right ones, and sums of confidence, by bins of confidence, of all rows that have them."""
    counted = [row for row in rows if row.decisions]
    decisions, right, confidence = (
        np.sum([getattr(row, name) for row in counted] or [(0,) * NUM_BINS], axis=0)
        for name in ("decisions", "right", "confidence")
    )
    return decisions, right, confidence


def confusion(rows: Sequence[ScoreRow]) -> dict[str, dict[str, int]]:
    """Pixels by true class and by the class that they were given."""
    names = list(dict.fromkeys(row.class_name for row in rows))
    sums = {name: np.sum([row.confusion for row in rows if row.class_name == name], axis=0) for name in names}
    return {name: dict(zip(names, sums[name].tolist(), strict=True)) for name in names}


class _Intervals:
    """95 % intervals of means over images, all from the same draws of groups."""

    def __init__(self, rows: Sequence[ScoreRow], score: Score, *, draws: int, seed: int) -> None:
        matrix = score_matrix(rows, score)
        means = image_means(matrix)
        images = image_rows(rows)
        columns = {"image": means, **{f"class {name}": matrix[:, k] for k, name in enumerate(scored_classes(rows))}}
        for column, word in slice_words(images):
            is_in = np.array([row.slices.get(column) == word for row in images])
            columns[f"slice {column} {word}"] = np.where(is_in, means, np.nan)
        columns["objects"] = score_matrix(rows, "average_precision")[:, 0]
        _, groups = np.unique(np.array([row.group for row in images], dtype=np.str_), return_inverse=True)
        self._names = list(columns)
        self._drawn: Bootstrap = bootstrap_means(
            np.column_stack(list(columns.values())), groups, draws=draws, seed=seed
        )

    def of(self, name: str) -> list[float] | None:
        """None with too few groups."""
        number = self._names.index(name)
        least = 2 if name == "image" else MIN_PART_GROUPS
        interval = self._drawn.interval(number) if self.groups(name) >= least else None
        return [max(0.0, interval[0]), interval[1]] if interval else None

    def groups(self, name: str) -> int:
        """How many groups have a value."""
        return int(self._drawn.num_groups[self._names.index(name)])


def slice_words(images: Sequence[ScoreRow]) -> list[tuple[str, str]]:
    """Columns and words of all slices, in order."""
    return sorted({(column, word) for row in images for column, word in row.slices.items()})


def _slices(
    rows: Sequence[ScoreRow], means: npt.NDArray[np.float64], intervals: _Intervals, score: Score
) -> dict[str, dict[str, Body]]:
    images = image_rows(rows)
    found: dict[str, dict[str, Body]] = {}
    for column, word in slice_words(images):
        values = [mean for mean, row in zip(means, images, strict=True) if row.slices.get(column) == word]
        defined = [float(value) for value in values if not np.isnan(value)]
        name = f"slice {column} {word}"
        found.setdefault(column, {})[word] = {
            score: mean_defined(defined),
            "interval_95": intervals.of(name),
            "images": len(defined),
            "groups": intervals.groups(name),
        }
    return found


def _surfaces(rows: Sequence[ScoreRow]) -> Body:
    """Of scored classes; the distance is undefined where the class is only in the mask, or only predicted."""
    scored = [row for row in rows if row.scored]
    pooled = {}
    for name in scored_classes(rows):
        points, hits = (
            sum(getattr(row, count) for row in scored if row.class_name == name)
            for count in ("surface_points", "surface_hits")
        )
        pooled[name] = hits / points if points else None
    return {
        "class_surface_dice": class_scores(scored, "surface_dice"),
        "pooled_surface_dice": pooled,
        "class_hausdorff95_px": class_scores(scored, "hausdorff95_px"),
        "images_without_hausdorff95": _count_by_class(scored, lambda row: row.hausdorff95_px is None),
    }


def _count_by_class(rows: Sequence[ScoreRow], is_counted: Callable[[ScoreRow], bool]) -> Mapping[str, int]:
    names = dict.fromkeys(row.class_name for row in rows)
    return {name: sum(is_counted(row) for row in rows if row.class_name == name) for name in names}


def _objects(rows: Sequence[ScoreRow]) -> Body:
    """The Data Science Bowl's score, and how far counts of objects are off."""
    counted = [row for row in rows if row.true_objects is not None]
    true, predicted = (np.array([getattr(row, f"{kind}_objects") for row in counted]) for kind in ("true", "predicted"))
    matched = np.array([row.matched_objects for row in counted])
    errors = predicted - true
    at_limits = {
        f"{limit:.2f}": mean_defined(
            average_precision(true=int(t), predicted=int(p), matched=[int(m)])
            for t, p, m in zip(true, predicted, matched[:, number], strict=True)
        )
        for number, limit in enumerate(IOU_LIMITS)
    }
    return {
        "average_precision": mean_defined(row.average_precision for row in counted),
        "average_precision_at": at_limits,
        "pooled_average_precision": average_precision(
            true=int(true.sum()), predicted=int(predicted.sum()), matched=matched.sum(axis=0).tolist()
        ),
        "true": int(true.sum()),
        "predicted": int(predicted.sum()),
        "mean_count_error": float(errors.mean()),
        "mean_absolute_count_error": float(np.abs(errors).mean()),
    }
