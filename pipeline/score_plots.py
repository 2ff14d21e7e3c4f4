"""Scores as pictures, for `dvc plots`, MLflow and the report. Made without pyplot: no display, no global state."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.score_summary import calibration
from pipeline.scores import SCORE_NAMES, Score, ScoreRow, image_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GRAY = "#0072b2", "#d55e00", "#8a94a0"
#: So many slices fit on a picture that can be read; the table in the report has all.
MAX_BARS = 24
#: Letters of a name beside a bar.
MAX_LABEL = 28


def write_plots(directory: Path, rows: Sequence[ScoreRow], body: Mapping[str, Any], score: Score) -> list[Path]:
    """A CSV with a bar a class, and pictures: histogram, calibration, confusion, slices."""
    directory.mkdir(parents=True, exist_ok=True)
    bars = directory / "class_scores.csv"
    with bars.open("w", newline="", encoding="utf-8") as stream:
        defined = [(name, dice) for name, dice in body["class_dice"].items() if dice is not None]
        csv.writer(stream, lineterminator="\n").writerows([("class", "dice"), *defined])
    figures = {
        "score_histogram": _draw_histogram(rows, score),
        "calibration": _draw_calibration(rows, body["ece"]),
        "confusion": _draw_confusion(body.get("confusion")),
        "slices": _draw_slices(body, score),
    }
    paths = [directory / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, format="png", metadata={"Software": None})
    return [bars, *paths]


def _new(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_histogram(rows: Sequence[ScoreRow], score: Score) -> "Figure":
    figure, axes = _new(4.5, 3.2)
    values = list(image_scores(rows, score).values())
    axes.hist(values, bins=[number / 20 for number in range(21)], color=BLUE)
    mean = float(np.mean(values))
    axes.axvline(mean, color=ORANGE, linewidth=1.2, label=f"mean {mean:.3f}")
    axes.legend(frameon=False, loc="upper left")
    axes.set(xlim=(0, 1), xlabel=f"{SCORE_NAMES[score]} of an image", ylabel="images")
    return figure


def _draw_calibration(rows: Sequence[ScoreRow], error: float | None) -> "Figure":
    """How often the model is right, by how sure it is; the size of a point grows with its share of decisions."""
    figure, axes = _new(3.6, 3.2)
    decisions, right, confidence = calibration(rows)
    seen = decisions > 0
    axes.plot([0, 1], [0, 1], color=GRAY, linewidth=0.8, linestyle="--")
    sure, share = confidence[seen] / decisions[seen], right[seen] / decisions[seen]
    axes.plot(sure, share, color=BLUE, linewidth=1)
    axes.scatter(sure, share, s=8 + 90 * decisions[seen] / decisions.sum(), color=BLUE)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="share of right pixels")
    axes.set_title("" if error is None else f"calibration error {error:.3f}", fontsize=10)
    return figure


def _draw_confusion(confusion: Mapping[str, Mapping[str, int]] | None) -> "Figure":
    """Rows are true classes; each row adds up to one."""
    if confusion is None:
        return _say("Classes overlap: a pixel may have several,\nso none is taken for another.")
    names = list(confusion)
    counts = np.array([[confusion[true][given] for given in names] for true in names], dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(3.2, 1.2 + 0.6 * len(names))
    figure, axes = _new(side + 0.6, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*shares.shape):
        ink = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{shares[row, column]:.1%}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def _draw_slices(body: Mapping[str, Any], score: Score) -> "Figure":
    """The main score of each slice with its interval, below that of all images."""
    whole = {score: body[score], "interval_95": body["interval_95"], "images": body["images"]}
    slices = body.get("slices", {})
    bars = [("all", whole)]
    for column, words in slices.items():
        # Two columns may have the same words.
        start = f"{column} " if len(slices) > 1 else ""
        bars += [(_label(start + word), part) for word, part in words.items()]
    shown = [(f"{name} ({part['images']})", part) for name, part in bars if part[score] is not None][: MAX_BARS + 1]
    figure, axes = _new(6, 0.9 + 0.3 * len(shown))
    for place, (_, part) in enumerate(shown):
        axes.barh(place, part[score], height=0.65, color=GRAY if place == 0 else BLUE)
        if part["interval_95"] is not None:
            axes.plot(part["interval_95"], [place, place], color="black", linewidth=1.2)
    axes.set_yticks(range(len(shown)), [name for name, _ in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    # Below all of the picture: below the bars alone there may be little room.
    title = f"{SCORE_NAMES[score]}, mean over images (number of images); line: 95 % interval"
    figure.supxlabel(title, fontsize="medium")
    return figure


def _label(text: str) -> str:
    """A user's word beside a bar: no formula begins in it, and it leaves the bars room."""
    return (text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 1]}…").replace("$", r"\$")


def _say(text: str) -> "Figure":
    figure, axes = _new(4.5, 1.2)
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=10)
    axes.set_axis_off()
    return figure
