"""Scores as a table: one row per image and class, the only state of an evaluation. Light: no model, no registry.

Counts of all kinds stand in the rows, so tables of parts of a data set are put together by concatenating them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow
from pyarrow import parquet

from unet_core.counts import Counts, mean_defined

Score = Literal["dice", "iou"]
#: As people write them.
SCORE_NAMES: Mapping[str, str] = {"dice": "Dice", "iou": "IoU"}

_INTS, _FLOATS = pyarrow.list_(pyarrow.int64()), pyarrow.list_(pyarrow.float64())
SCHEMA = pyarrow.schema(
    [
        ("key", pyarrow.string()),
        ("group", pyarrow.string()),
        ("slices", pyarrow.map_(pyarrow.string(), pyarrow.string())),
        ("class_name", pyarrow.string()),
        ("scored", pyarrow.bool_()),
        *((name, pyarrow.int64()) for name in ("true_positive", "false_positive", "false_negative")),
        *((name, pyarrow.float64()) for name in ("dice", "iou", "precision", "recall")),
        *((name, pyarrow.int64()) for name in ("surface_points", "surface_hits")),
        *((name, pyarrow.float64()) for name in ("surface_dice", "hausdorff95_px")),
        ("confusion", _INTS),
        ("decisions", _INTS),
        ("right", _INTS),
        ("confidence", _FLOATS),
        *((name, pyarrow.int64()) for name in ("true_objects", "predicted_objects")),
        ("matched_objects", _INTS),
        ("average_precision", pyarrow.float64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One class in one image, at the image's own size. An undefined score is None."""

    key: str
    class_name: str
    scored: bool
    """Whether the class counts in the main score; only such classes have surfaces and objects."""
    true_positive: int
    false_positive: int
    false_negative: int
    dice: float | None
    iou: float | None
    precision: float | None = None
    recall: float | None = None
    group: str = ""
    """What is drawn as one by the bootstrap."""
    slices: Mapping[str, str] = field(default_factory=dict)
    """Word by column."""
    surface_points: int = 0
    """Outline pixels, predicted and true, and how many of them lie within the tolerance; see `SurfaceScores`."""
    surface_hits: int = 0
    surface_dice: float | None = None
    hausdorff95_px: float | None = None
    confusion: tuple[int, ...] = ()
    """Pixels of this class by the class that they were given; empty where classes overlap."""
    decisions: tuple[int, ...] = ()
    """Decisions about pixels by confidence, how many were right, and the sum of their confidence; see
    `ConfidenceHistogram`."""
    right: tuple[int, ...] = ()
    confidence: tuple[float, ...] = ()
    true_objects: int | None = None
    """Of masks of kind instances, as are the next three."""
    predicted_objects: int | None = None
    matched_objects: tuple[int, ...] = ()
    """At each of `IOU_LIMITS`."""
    average_precision: float | None = None

    @property
    def counts(self) -> Counts:
        """Its pixels, to be added to others'."""
        return Counts(
            true_positive=self.true_positive, false_positive=self.false_positive, false_negative=self.false_negative
        )


def image_scores(rows: Sequence[ScoreRow], score: Score) -> dict[str, float]:
    """Key -> mean over the image's scored classes; images where none is defined are left out."""
    by_key: dict[str, list[float | None]] = {}
    for row in rows:
        if row.scored:
            by_key.setdefault(row.key, []).append(getattr(row, score))
    means = {key: mean_defined(values) for key, values in by_key.items()}
    return {key: mean for key, mean in means.items() if mean is not None}


def score_matrix(rows: Sequence[ScoreRow], score: str) -> npt.NDArray[np.float64]:
    """(images, scored classes), in the rows' order; NaN where undefined."""
    names = scored_classes(rows)
    values = [getattr(row, score) for row in rows if row.scored]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64).reshape(-1, len(names))


def scored_classes(rows: Sequence[ScoreRow]) -> list[str]:
    """Names of the classes that count in the main score."""
    return list(dict.fromkeys(row.class_name for row in rows if row.scored))


def image_rows(rows: Sequence[ScoreRow]) -> list[ScoreRow]:
    """The first row of each image: what all its rows say alike."""
    return list({row.key: row for row in reversed(rows)}.values())[::-1]


def class_scores(rows: Sequence[ScoreRow], score: str) -> dict[str, float | None]:
    """Class -> mean over the images where it is defined."""
    names = dict.fromkeys(row.class_name for row in rows)
    return {name: mean_defined(getattr(row, score) for row in rows if row.class_name == name) for name in names}


def by_class(rows: Sequence[ScoreRow]) -> Mapping[str, Counts]:
    """Counts of each class, pooled over all images."""
    pooled: dict[str, Counts] = {}
    for row in rows:
        pooled[row.class_name] = pooled[row.class_name] + row.counts if row.class_name in pooled else row.counts
    return pooled


def pixel_error(rows: Sequence[ScoreRow]) -> float | None:
    """Share of the pixels with a class (multiclass) that got another one."""
    missed = sum(row.false_negative for row in rows)
    total = missed + sum(row.true_positive for row in rows)
    return missed / total if total else None


def write_rows(path: Path, rows: Sequence[ScoreRow]) -> None:
    """Write the table as Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A map is written as its sorted items: equal rows are equal bytes, whatever their order.
    bodies = [{**asdict(row), "slices": sorted(row.slices.items())} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(bodies, schema=SCHEMA), path)


def read_rows(path: Path) -> list[ScoreRow]:
    """Read the table."""
    lists = ("confusion", "decisions", "right", "confidence", "matched_objects")
    return [
        ScoreRow(**{**row, **{name: tuple(row[name]) for name in lists}, "slices": dict(row["slices"])})
        for row in parquet.read_table(path, schema=SCHEMA).to_pylist()
    ]
