"""Drift as pictures. Made without pyplot: no display, no global state."""

import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from pipeline.drift_statistics import Finding, Values
from pipeline.score_plots import BLUE, GRAY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: So many quantities fit on a picture that can be read; the table on the page has all.
MAX_PANELS = 24
COLUMNS = 3
HALF_DAY = np.timedelta64(12, "h")
#: Letters of a quantity's name above a panel.
MAX_NAME = 36


def draw_shares(findings: Sequence[Finding], recent: Mapping[str, Values], training: Mapping[str, Values]) -> bytes:
    """A panel a quantity: the share of images below each value, recent and training; their distance is the longest gap
    between the two curves, drawn as a line. PNG.
    """
    from matplotlib.figure import Figure

    shown = findings[:MAX_PANELS]
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(9.6, 2.4 * rows), dpi=130, layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, finding in zip(panels, shown, strict=False):
        _draw_panel(axes, finding, recent[finding.name], training[finding.name])
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    panels[0].legend(frameon=False, fontsize=8, loc="lower right")
    return _png(figure)


def draw_times(finding: Finding, recent: Values, times: Sequence[datetime]) -> bytes:
    """A point an image, by time (UTC, without a zone); the band holds nine of ten training images. PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 2.8), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    if finding.training is not None:
        axes.axhspan(finding.training.low, finding.training.high, color=BLUE, alpha=0.18, linewidth=0)
        axes.axhline(finding.training.median, color=BLUE, linewidth=1)
    seen = np.isfinite(recent)
    places = np.array(times, dtype="datetime64[s]")
    axes.scatter(places[seen], recent[seen], s=8, color=ORANGE)
    if len(set(times)) == 1:
        # By itself, an axis of one second would span four years.
        axes.set_xlim(places[0] - HALF_DAY, places[0] + HALF_DAY)
    axes.set(ylabel=_name(finding))
    axes.tick_params(axis="x", labelsize=8)
    return _png(figure)


def _draw_panel(axes: "Axes", finding: Finding, recent: Values, training: Values) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(ylim=(0, 1), yticks=[0, 0.5, 1])
    # More would run into each other.
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(labelsize=8)
    axes.set_title(f"{_name(finding)}: {_said(finding)}", fontsize=9, color=ORANGE if finding.is_drift else "black")
    old, new = (np.sort(values[np.isfinite(values)]) for values in (training, recent))
    for values, colour, name in ((old, BLUE, "training"), (new, ORANGE, "recent")):
        if len(values):
            axes.ecdf(values, color=colour, linewidth=1.4, label=name)
    if finding.distance is not None:
        places = np.concatenate([old, new])
        below = [np.searchsorted(values, places, side="right") / len(values) for values in (old, new)]
        widest = int(np.abs(below[0] - below[1]).argmax())
        axes.plot([places[widest]] * 2, [below[0][widest], below[1][widest]], color=GRAY, linewidth=1.2)


def _name(finding: Finding) -> str:
    """A class may be called anything: no formula begins in its name, and it stays above its panel."""
    name = finding.name
    return (name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…").replace("$", r"\$")


def _said(finding: Finding) -> str:
    return "undefined" if finding.distance is None else f"{finding.distance:.2f}"


def _png(figure: "Figure") -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
