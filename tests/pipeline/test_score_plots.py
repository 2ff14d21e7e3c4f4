import csv
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.score_plots import write_plots
from pipeline.score_summary import summarise
from pipeline.scores import ScoreRow


def row(key: str, name: str, dice: float | None, *, confusion: tuple[int, ...] = (2, 2)) -> ScoreRow:
    return ScoreRow(
        key=key,
        group=key,
        slices={"stain": "pink" if key < "s3" else "blue"},
        class_name=name,
        scored=True,
        true_positive=1,
        false_positive=1,
        false_negative=1,
        dice=dice,
        iou=dice,
        confusion=confusion,
        decisions=(0, 0, 4),
        right=(0, 0, 3),
        confidence=(0.0, 0.0, 3.2),
    )


def draw(folder: Path, rows: list[ScoreRow]) -> dict[str, Path]:
    body = summarise(rows, "dice", draws=50, seed=0)
    return {path.name: path for path in write_plots(folder, rows, body, "dice")}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    rows = [row(f"s{n}", name, n / 10) for n in range(9) for name in ("ring", "plus, filled")]
    return draw(tmp_path_factory.mktemp("plots"), [*rows, row("s9", "ring", 0.5), row("s9", "plus, filled", None)])


def test_every_plot_is_a_picture_with_ink(drawn: dict[str, Path]) -> None:
    assert set(drawn) == {"class_scores.csv", "score_histogram.png", "calibration.png", "confusion.png", "slices.png"}
    for name, path in drawn.items():
        if name.endswith(".png"):
            assert np.asarray(Image.open(path).convert("L")).std() > 5, name


def test_bars_hold_defined_scores_whatever_the_classes_are_called(tmp_path: Path) -> None:
    rows = [row("a", "ring", 0.5), row("a", "plus, filled", 0.75), row("a", "nowhere", None)]
    path = draw(tmp_path, [ScoreRow(**{**vars(r), "confusion": ()}) for r in rows])["class_scores.csv"]
    with path.open(newline="", encoding="utf-8") as stream:
        read = list(csv.DictReader(stream))
    assert read == [{"class": "ring", "dice": "0.5"}, {"class": "plus, filled", "dice": "0.75"}]


def test_long_words_and_formulas_of_several_columns_leave_the_bars_room(tmp_path: Path) -> None:
    words = {"site": "the clinic of a town with quite a long name " * 3, "scanner": "$B_{", "size": "$B_{"}
    rows = [replace(row(f"s{n}", "ring", n / 10, confusion=()), slices=words) for n in range(9)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = Image.open(draw(tmp_path, rows)["slices.png"])
    plain = Image.open(draw(tmp_path / "plain", [row("s1", "ring", 0.5, confusion=())])["slices.png"])
    assert picture.width == plain.width
    # Bars, beside the names.
    assert (np.asarray(picture.convert("RGB"))[:, picture.width // 2 :] == (0, 114, 178)).all(axis=2).any()


def test_equal_scores_are_equal_bytes(drawn: dict[str, Path], tmp_path: Path) -> None:
    rows = [row(f"s{n}", name, n / 10) for n in range(9) for name in ("ring", "plus, filled")]
    again = draw(tmp_path, [*rows, row("s9", "ring", 0.5), row("s9", "plus, filled", None)])
    assert all(path.read_bytes() == again[name].read_bytes() for name, path in drawn.items())
