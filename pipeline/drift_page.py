"""The page about drift: what was decided, each quantity of recent and training images, the oddest recent images."""

import html
from datetime import UTC
from pathlib import Path

import numpy as np

from pipeline.drift_look import Found, say_number
from pipeline.drift_plots import draw_times
from pipeline.drift_statistics import EMBEDDING, Finding, Spread
from pipeline.page import Cell, embed, html_page, picture, table
from pipeline.prediction_log import Entry

NUM_ODD = 12
#: How often more, or less, the model may predict a class on training images than their masks have it, untold.
TIMES = 2.0
CSS = {"alike": "promoted", "drift": "not", "too few to tell": "wait"}


def render(found: Found, shares: bytes | None, folder: Path) -> str:
    """The whole page; `shares` is the picture of all quantities, `folder` that of the log."""
    comparison = found.comparison
    sections = [
        "<h1>Drift</h1>",
        f'<div class="verdict {CSS[comparison.decision]}"><p><b>{html.escape(found.sentence)}</b></p></div>',
        _left_out(found),
    ]
    if shares is not None:
        sections += [_findings(found, shares), _classes(found), _times(found), _odd(found, folder)]
    return html_page("Drift", [section for section in sections if section])


def odd_images(found: Found) -> list[tuple[Entry, float]]:
    """Recent images whose features lie farthest from those of the training images, the farthest first."""
    far = found.recent.get(EMBEDDING, np.empty(0))
    order = sorted(np.flatnonzero(np.isfinite(far)), key=lambda number: -far[number])
    return [(found.log.entries[number], float(far[number])) for number in order[:NUM_ODD]]


def _left_out(found: Found) -> str:
    told = []
    if others := found.log.num_of_others:
        what = "1 prediction by another model is" if others == 1 else f"{others} predictions by other models are"
        told.append(f"{what} left out.")
    if damaged := found.log.num_damaged:
        told.append(f"{damaged} {'line' if damaged == 1 else 'lines'} of the log can't be read.")
    return f"<p class='soft'>{' '.join(told)}</p>" if told else ""


def _findings(found: Found, shares: bytes) -> str:
    head = ["quantity", "distance", "p", "recent", "training", "unseen in training", ""]
    rows: list[list[Cell]] = [
        [
            finding.name,
            "undefined" if finding.distance is None else f"{finding.distance:.2f}",
            "" if finding.p_value is None else f"{finding.p_value:.2g}",
            _range(finding.recent),
            _range(finding.training),
            "" if finding.unseen is None else f"{finding.unseen:.0%}",
            "drift" if finding.is_drift else "",
        ]
        for finding in found.comparison.findings
    ]
    note = (
        "<p class='soft'>Distance (Kolmogorov-Smirnov): the largest difference between the shares of recent and of "
        "training images below one value; 0 is alike, 1 nothing in common. p: how often chance gives as much. Values: "
        "the median, and what nine of ten images have.</p>"
    )
    return f"<h2>Quantities</h2>{note}<figure>{embed(shares, 'shares of images by value')}</figure>{table(head, rows)}"


def _range(spread: Spread | None) -> str:
    if spread is None:
        return "none"
    low, median, high = map(say_number, (spread.low, spread.median, spread.high))
    return f"{median} ({low} to {high})"


def _classes(found: Found) -> str:
    """Mean shares of pixels: predicted on recent and on training images, and those of the training masks."""
    assert found.reference is not None, "there is a comparison"
    masks = found.reference.mask_shares
    rows: list[list[Cell]] = []
    odd = []
    for name in found.reference.images[0].shares:
        new, old = (_mean(values[f"share of {name}"]) for values in (found.recent, found.training))
        true = masks.get(name)
        rows.append([name, *("undefined" if share is None else f"{share:.2%}" for share in (new, old, true))])
        if old is not None and true is not None and not true / TIMES <= old <= true * TIMES:
            odd.append(name)
    note = (
        f"<p>On the training images too, the model predicts {html.escape(', '.join(odd))} more than twice, or less "
        "than half, as often as their masks have it: that is no drift, it is the model.</p>"
        if odd
        else ""
    )
    return f"<h2>Classes</h2>{table(['class', 'recent', 'training, predicted', 'training masks'], rows)}{note}"


def _mean(values: np.ndarray) -> float | None:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else None


def _times(found: Found) -> str:
    """When it began: the largest distance, and that of features."""
    shown: dict[str, Finding] = {}
    for finding in found.comparison.findings:
        if finding.distance is not None and (not shown or finding.name == EMBEDDING):
            shown[finding.name] = finding
    times = [entry.time.astimezone(UTC).replace(tzinfo=None) for entry in found.log.entries]
    figures = "".join(
        f"<figure>{embed(draw_times(finding, found.recent[name], times), f'{name} by time')}</figure>"
        for name, finding in shown.items()
    )
    note = "<p class='soft'>A point an image (UTC); the band holds nine of ten training images.</p>"
    return f"<h2>When</h2>{note}{figures}" if shown else ""


def _odd(found: Found, folder: Path) -> str:
    odd = odd_images(found)
    if not odd:
        return ""
    rows = [(entry.image, f"{entry.time.astimezone(UTC):%Y-%m-%d}", f"{distance:.2f}") for entry, distance in odd]
    figures = "".join(
        f"<figure>{picture(path, entry.image)}<figcaption>{html.escape(entry.image)}</figcaption></figure>"
        for entry, _ in odd
        if (path := _copy(entry, folder)) is not None
    )
    return (
        "<h2>The oddest recent images</h2><p class='soft'>By distance of their features from those of the training "
        f"images, in units of the spread there.</p><div class='plots'>{figures}</div>"
        + table(["image", "predicted", "distance"], rows)
    )


def _copy(entry: Entry, folder: Path) -> Path | None:
    """The image's copy, if it is still there. The log is a file that anybody may have written."""
    if entry.copy is None:
        return None
    path = folder / entry.copy
    try:
        is_below = path.resolve().is_relative_to(folder.resolve())
        return path if is_below and path.suffix == ".png" and path.is_file() else None
    except (OSError, ValueError, RuntimeError):
        # No name of a file: too long, a zero in it, links in a circle.
        return None
