"""Scores as a table: one row per image and class; means and their interval. Light: no model, no registry."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow
from pyarrow import parquet

from unet_core.counts import Counts, mean_defined

Score = Literal["dice", "iou"]


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One class in one image, at the image's own size."""

    key: str
    class_name: str
    scored: bool
    """Whether the class counts in the main score."""
    true_positive: int
    false_positive: int
    false_negative: int
    dice: float | None
    iou: float | None


def image_scores(rows: Sequence[ScoreRow], score: Score) -> dict[str, float]:
    """Key -> mean over the image's scored classes; images where none is defined are left out."""
    by_key: dict[str, list[float | None]] = {}
    for row in rows:
        if row.scored:
            by_key.setdefault(row.key, []).append(getattr(row, score))
    means = {key: mean_defined(values) for key, values in by_key.items()}
    return {key: mean for key, mean in means.items() if mean is not None}


def class_scores(rows: Sequence[ScoreRow], score: Score) -> dict[str, float | None]:
    """Class -> mean over the images where it is defined."""
    names = dict.fromkeys(row.class_name for row in rows)
    return {name: mean_defined(getattr(row, score) for row in rows if row.class_name == name) for name in names}


def bootstrap_interval(values: Sequence[float], *, draws: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean, drawing images with replacement."""
    array = np.asarray(values)
    numbers = np.random.default_rng(seed).integers(0, len(array), size=(draws, len(array)))
    low, high = np.quantile(array[numbers].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def write_rows(path: Path, rows: Sequence[ScoreRow]) -> None:
    """Write the table as Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist([asdict(row) for row in rows]), path)


def read_rows(path: Path) -> list[ScoreRow]:
    """Read the table."""
    return [ScoreRow(**row) for row in parquet.read_table(path).to_pylist()]


def pixel_error(rows: Sequence[ScoreRow]) -> float | None:
    """Share of the pixels with a class (multiclass) that got another one."""
    missed = sum(row.false_negative for row in rows)
    total = missed + sum(row.true_positive for row in rows)
    return missed / total if total else None


def by_class(rows: Sequence[ScoreRow]) -> Mapping[str, Counts]:
    """Counts of each class, pooled over all images."""
    pooled: dict[str, Counts] = {}
    for row in rows:
        counts = Counts(
            true_positive=row.true_positive, false_positive=row.false_positive, false_negative=row.false_negative
        )
        pooled[row.class_name] = pooled[row.class_name] + counts if row.class_name in pooled else counts
    return pooled
