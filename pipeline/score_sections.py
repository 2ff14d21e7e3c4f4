"""The parts of the report that speak of scores, as HTML."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.comparison import Comparison
from pipeline.gate import Measured, Verdict
from pipeline.page import Cell, picture, table
from pipeline.scores import SCORE_NAMES, ScoreRow

Scores = Mapping[str, Any]


def say_interval(body: Scores) -> str:
    """A 95 % interval in words."""
    interval = body["interval_95"]
    return "{:.3f} to {:.3f}".format(*interval) if interval else "unknown, too few groups"


def class_section(scores: Scores, rows: Sequence[ScoreRow]) -> str:
    """Scores of each class, mean over images and pooled."""
    head = [
        "class",
        "Dice",
        "IoU",
        "precision",
        "recall",
        "Dice, pooled",
        "surface Dice",
        "95 % Hausdorff",
        "images with it",
    ]
    lines: list[list[Cell]] = []
    for name in scores["class_dice"]:
        images = [row for row in rows if row.class_name == name]
        there = sum(row.true_positive + row.false_negative > 0 for row in images)
        scored = "" if images and images[0].scored else " (not in the mean)"
        means = [scores[f"class_{kind}"][name] for kind in ("dice", "iou", "precision", "recall")]
        distance = scores["class_hausdorff95_px"].get(name)
        lines.append(
            [
                name + scored,
                *(_number(value) for value in (*means, scores["pooled_dice"][name])),
                _number(scores["class_surface_dice"].get(name)),
                "undefined" if distance is None else f"{distance:.1f} px",
                there,
            ]
        )
    return f"<h2>Scores per class on the test split</h2>{table(head, lines)}{_notes(scores)}"


def object_section(scores: Scores) -> str:
    """Objects found, of masks whose objects are told apart."""
    if "objects" not in scores:
        return ""
    found = scores["objects"]
    at = found["average_precision_at"]
    limits: list[list[Cell]] = [[f"precision at IoU {limit}", _number(at[limit])] for limit in ("0.50", "0.75", "0.90")]
    lines: list[list[Cell]] = [
        ["average precision, IoU 0.50 to 0.95", f"{_number(found['average_precision'])} ({say_interval(found)})"],
        *limits,
        ["objects, true and predicted", f"{found['true']} and {found['predicted']}"],
        ["counts are off, per image", f"{found['mean_absolute_count_error']:.1f}"],
    ]
    return f"<h2>Objects on the test split</h2>{table(['mean over images', ''], lines)}"


def slice_section(scores: Scores, score: str, plots: Mapping[str, Path]) -> str:
    """The main score of samples that belong together."""
    slices = scores.get("slices", {})
    if not slices:
        return ""
    head = ["slice", SCORE_NAMES[score], "95 % interval", "images", "groups"]
    tables = [
        f"<h2>Test images by {html.escape(column)}</h2>"
        + table(head, [_slice(word, words[word], score) for word in words])
        for column, words in slices.items()
    ]
    text = f"mean {SCORE_NAMES[score]} of each slice"
    return "".join(tables) + f"<figure class='plot'>{picture(plots['slices'], text)}</figure>"


def _slice(word: str, part: Scores, score: str) -> list[Cell]:
    return [word, _number(part[score]), say_interval(part), part["images"], part["groups"]]


def curve_section(scores: Scores, plots: Mapping[str, Path]) -> str:
    """How scores are spread, whether confidence can be believed, and what is taken for what."""
    texts = {
        "score_histogram": "How many images have which score",
        "calibration": "How often the model is right, by how sure it is; on the line it knows what it knows",
        "confusion": "Where pixels of each true class went",
    }
    shown = [name for name in texts if name != "confusion" or "confusion" in scores]
    figures = "".join(
        f"<figure>{picture(plots[name], texts[name])}<figcaption>{texts[name]}.</figcaption></figure>" for name in shown
    )
    return f"<h2>Spread, confidence, confusion</h2><div class='plots'>{figures}</div>"


def verdict_section(verdict: Verdict) -> str:
    """Class by class and slice by slice, challenger beside champion."""
    parts = [("class", verdict.classes), ("slice", verdict.slices)]
    head = ["challenger", "champion", "difference", "95 % interval", "images", "groups"]
    tables = [table([kind, *head], [_compared(part) for part in compared]) for kind, compared in parts if compared]
    return "".join(tables) + _measured(verdict.measured)


def _measured(measured: Measured) -> str:
    known = (
        ("calibration error", measured.ece, ".3f", ""),
        ("weights", measured.weights_mb, ".3g", " MB"),
        ("time for an image", measured.latency_ms, ".0f", " ms"),
    )
    said = [f"{name} {value:{digits}}{unit}" for name, value, digits, unit in known if value is not None]
    return f"<p class='soft'>Challenger: {', '.join(said)}.</p>" if said else ""


def _compared(part: Comparison) -> list[Cell]:
    interval = "{:+.3f} to {:+.3f}".format(*part.interval_95) if part.interval_95 else "too few groups"
    name = part.name if part.column is None else f"{part.column}: {part.name}"
    scores = (f"{part.challenger:.3f}", f"{part.champion:.3f}", f"{part.difference:+.3f}")
    return [name, *scores, interval, part.images, part.groups]


def _notes(scores: Scores) -> str:
    notes = []
    error = scores.get("pixel_error")
    if error is not None:
        notes.append(f"Pixels of another class than true: {error:.2%}.")
    for what, name in (("Dice", "images_without_dice"), ("Hausdorff distance", "images_without_hausdorff95")):
        undefined = {of: count for of, count in scores[name].items() if count}
        if undefined:
            listed = ", ".join(f"{of} {count}" for of, count in undefined.items())
            notes.append(f"Images where the {what} is undefined, left out of its mean: {listed}.")
    return f"<p class='soft'>{html.escape(' '.join(notes))}</p>" if notes else ""


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
