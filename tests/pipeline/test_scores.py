from pathlib import Path

import numpy as np
import pytest

from pipeline.scores import (
    ScoreRow,
    by_class,
    class_scores,
    image_rows,
    image_scores,
    pixel_error,
    read_rows,
    score_matrix,
    scored_classes,
    write_rows,
)
from unet_core.counts import Counts


def row(key: str, name: str, hit: int, extra: int, missed: int, *, scored: bool = True) -> ScoreRow:
    counts = Counts(true_positive=hit, false_positive=extra, false_negative=missed)
    return ScoreRow(
        key=key,
        class_name=name,
        scored=scored,
        true_positive=hit,
        false_positive=extra,
        false_negative=missed,
        dice=counts.dice,
        iou=counts.iou,
        precision=counts.precision,
        recall=counts.recall,
        group=f"group of {key}",
        slices={"stain": "pink", "site": "a"},
        surface_points=8,
        surface_hits=6,
        surface_dice=0.75,
        confusion=(hit, missed),
        decisions=(0, 3),
        right=(0, 2),
        confidence=(0.0, 2.5),
    )


#: Two images of 10 pixels and two scored classes; "plus" is nowhere in image b.
ROWS = [
    row("a", "soil", 4, 1, 0, scored=False),
    row("a", "ring", 2, 0, 2),  # Dice 4 / 6, IoU 2 / 4
    row("a", "plus", 1, 1, 0),  # Dice 2 / 3, IoU 1 / 2
    row("b", "soil", 5, 0, 0, scored=False),
    row("b", "ring", 3, 2, 2),  # Dice 6 / 10, IoU 3 / 7
    row("b", "plus", 0, 0, 0),  # undefined
]


def test_an_images_score_is_the_mean_of_its_scored_and_defined_classes() -> None:
    assert image_scores(ROWS, "dice") == {"a": pytest.approx(2 / 3), "b": pytest.approx(0.6)}
    assert image_scores(ROWS, "iou") == {"a": pytest.approx(0.5), "b": pytest.approx(3 / 7)}


def test_an_image_without_a_defined_score_is_left_out() -> None:
    assert image_scores([row("a", "ring", 0, 0, 0), row("b", "ring", 1, 0, 0)], "dice") == {"b": 1.0}


def test_a_class_score_is_the_mean_over_the_images_where_it_is_defined() -> None:
    dice = class_scores(ROWS, "dice")
    assert dice == {
        "soil": pytest.approx((8 / 9 + 1) / 2),
        "ring": pytest.approx((2 / 3 + 0.6) / 2),
        "plus": pytest.approx(2 / 3),
    }
    assert class_scores([row("a", "ring", 0, 0, 0)], "dice") == {"ring": None}


def test_scores_as_a_matrix_have_a_row_an_image_and_a_column_a_scored_class() -> None:
    assert scored_classes(ROWS) == ["ring", "plus"]
    matrix = score_matrix(ROWS, "dice")
    assert matrix[:, 0].tolist() == [pytest.approx(2 / 3), pytest.approx(0.6)]
    assert matrix[0, 1] == pytest.approx(2 / 3)
    assert np.isnan(matrix[1, 1])
    assert [row.key for row in image_rows(ROWS)] == ["a", "b"]


def test_pooled_counts_are_added_before_they_are_divided() -> None:
    pooled = by_class(ROWS)
    assert pooled["ring"] == Counts(true_positive=5, false_positive=2, false_negative=4)
    assert pooled["ring"].dice == pytest.approx(10 / 16)
    assert list(pooled) == ["soil", "ring", "plus"]


def test_pixel_error_is_the_share_of_pixels_that_got_another_class() -> None:
    rows = [row("a", "soil", 6, 1, 1), row("a", "plant", 2, 1, 1)]
    assert pixel_error(rows) == pytest.approx(0.2)
    assert pixel_error([row("a", "soil", 0, 3, 0)]) is None


def test_rows_are_read_as_they_were_written_undefined_scores_too(tmp_path: Path) -> None:
    path = tmp_path / "evaluation" / "scores.parquet"
    write_rows(path, ROWS)
    assert read_rows(path) == ROWS
    assert read_rows(path)[-1].dice is None


def test_rows_whose_scores_are_all_undefined_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [row("a", "ring", 0, 0, 0), row("b", "ring", 0, 0, 0)]
    write_rows(tmp_path / "s.parquet", rows)
    assert read_rows(tmp_path / "s.parquet") == rows


def test_equal_rows_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("1", "2"):
        write_rows(tmp_path / name, ROWS)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
