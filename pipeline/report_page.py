"""The report as HTML: one file, no scripts, nothing fetched from elsewhere, readable on a phone."""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.gate import Verdict
from pipeline.page import embed, html_page, picture, table
from pipeline.score_sections import (
    class_section,
    curve_section,
    object_section,
    say_interval,
    slice_section,
    verdict_section,
)
from pipeline.scores import SCORE_NAMES, ScoreRow

if TYPE_CHECKING:
    # The stage `report` needs no registry, and not its seconds.
    from pipeline.tracking import Version

NUM_BATCHES = 10
#: As `cases.py` paints them: the page needs no torch.
ERROR_COLOURS = {"missed": "#ff40a0", "invented": "#00dcff", "taken for another class": "#ffff00"}
#: Where `unet promote` puts the verdict.
VERDICT_MARK = "<!-- verdict -->"


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that the page shows."""

    arrivals: Sequence[Mapping[str, int]]
    """What each batch brought."""
    data: Mapping[str, Any]
    splits: Mapping[str, int]
    training: Mapping[str, Any]
    scores: Mapping[str, Any]
    rejected: Sequence[Mapping[str, str]]
    cases: Sequence[Mapping[str, Any]]
    colours: Mapping[str, str]
    """Class -> its colour in the pictures, as in #e69f00."""
    rows: Sequence[ScoreRow]
    receipt: Mapping[str, str]
    recipe: str
    curves: Path
    validation: Path
    data_examples: Path
    validation_examples: Path
    score_plots: Mapping[str, Path]
    """score_histogram, calibration, confusion and slices."""
    cases_dir: Path


def render(page: Page) -> str:
    """The whole page."""
    sections = [
        _head(page),
        VERDICT_MARK,
        class_section(page.scores, page.rows),
        object_section(page.scores),
        slice_section(page.scores, _main_score(page), page.score_plots),
        curve_section(page.scores, page.score_plots),
        _cases(page, "worst", "Worst test images"),
        _cases(page, "median", "Test images around the median"),
        _training(page),
        _data(page),
        _lineage(page),
    ]
    return html_page(f"Report: {page.receipt['model']}", sections)


def add_promotion(report: Path, verdict: Verdict, challenger: "Version", champion: "Version | None") -> Path:
    """Write the report once more, with the gate's verdict and where the version lies, as `promotion.html` beside it.

    The report itself is a result that DVC tracks, and a promotion must not change it.
    """
    css = {"promoted": "promoted", "not promoted": "not"}.get(verdict.decision, "wait")
    against = f"version {champion.number}" if champion else "no champion before"
    tags = {"Training run": challenger.run_id or "unknown", **dict(sorted(challenger.tags.items()))}
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td><code>{html.escape(value)}</code></td></tr>"
        for key, value in tags.items()
        if not key.startswith(("gate.", "retrain."))
    )
    text = (
        f'<div class="verdict {css}"><p><b>{html.escape(verdict.sentence)}</b></p>'
        f'<p class="soft">{html.escape(challenger.name)} version {challenger.number} against {against}. '
        "So the gate judged; what became of the champion since, <code>unet history</code> tells.</p></div>"
        f"{verdict_section(verdict)}"
        f'<details><summary class="soft">The version in the registry</summary><div class="scroll"><table>{rows}</table>'
        "</div></details>"
    )
    page = report.with_name("promotion.html")
    page.write_text(report.read_text(encoding="utf-8").replace(VERDICT_MARK, text, 1), encoding="utf-8")
    return page


def _head(page: Page) -> str:
    score = _main_score(page)
    numbers = [
        (f"{page.scores[score]:.3f}", f"test {SCORE_NAMES[score]} (95 % interval {say_interval(page.scores)})"),
        (f"{page.training['val_loss']:.3f}", "validation loss"),
        (str(page.scores["images"]), "test images"),
        (str(page.splits["train"]), "training images"),
    ]
    cells = "".join(f"<div><b>{value}</b><span class='soft'>{label}</span></div>" for value, label in numbers)
    return (
        f"<h1>{html.escape(page.receipt['model'])}</h1>"
        f"<p class='soft'>weights <code>{page.receipt['weights_sha256'][:16]}</code></p>"
        f"<div class='numbers'>{cells}</div>"
    )


def _main_score(page: Page) -> str:
    return "dice" if "dice" in page.scores else "iou"


def _cases(page: Page, kind: str, title: str) -> str:
    figures = "".join(
        f"<figure>{picture(page.cases_dir / case['picture'], 'image, mask, prediction, errors')}"
        f"<figcaption>{html.escape(case['key'])}: {case['score']:.3f}</figcaption></figure>"
        for case in page.cases
        if case["kind"] == kind
    )
    note = (
        f"<p class='soft'>Image, true mask, prediction:</p>{_colour_key(page.colours)}"
        f"<p class='soft'>What is wrong:</p>{_colour_key(ERROR_COLOURS)}"
    )
    return f"<h2>{title}</h2>{note}<div class='cases'>{figures}</div>"


def _colour_key(colours: Mapping[str, str]) -> str:
    entries = "".join(
        f"<li><i style='background:{html.escape(colour)}'></i>{html.escape(name)}</li>"
        for name, colour in colours.items()
    )
    return f"<ul class='key soft'>{entries}</ul>"


def _training(page: Page) -> str:
    resting = page.training["samples_resting_per_epoch"]
    who = "1 sample rests" if resting == 1 else f"{resting} samples rest"
    note = f" {who} in each epoch, {'another' if resting == 1 else 'others'} each time." if resting else ""
    return (
        f"<h2>Training</h2><p class='soft'>{page.training['steps']} steps; the weights are those after epoch "
        f"{page.training['best_epoch']}, best on validation.{note}</p>"
        f"<figure>{_curves(page.curves, page.validation)}</figure>"
        f"<h2>Validation images</h2><p class='soft'>Image, true mask, prediction.</p>"
        f"<figure>{picture(page.validation_examples, 'image, mask and prediction of validation images')}</figure>"
    )


def _data(page: Page) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{share:.2%}</td></tr>"
        for name, share in page.data["class_fraction"].items()
    )
    if page.rejected:
        entries = "".join(f"<li>{html.escape(bad['key'])}: {html.escape(bad['reason'])}</li>" for bad in page.rejected)
        rejected = f"<p>{len(page.rejected)} files were rejected:</p><ul>{entries}</ul>"
    else:
        rejected = "<p>No file was rejected.</p>"
    splits = ", ".join(f"{count} {split}" for split, count in page.splits.items())
    num_sizes = page.data["image_sizes"]
    sizes = "one size" if num_sizes == 1 else f"{num_sizes} sizes"
    return (
        f"<h2>Data</h2><p>{page.data['accepted']} images of {sizes}: {splits}.</p>{rejected}{_arrivals(page)}"
        "<div class='scroll'><table><thead><tr><th>class</th><th>share of pixels</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
        f"<figure>{picture(page.data_examples, 'images above their masks')}"
        "<figcaption>Images above their masks.</figcaption></figure>"
    )


def _arrivals(page: Page) -> str:
    """What the latest batches brought; one batch alone is all the data, and says nothing."""
    if len(page.arrivals) < 2:
        return ""
    columns = ("batch", "new", "changed", "removed")
    rows = [[batch[column] for column in columns] for batch in page.arrivals[-NUM_BATCHES:]]
    return "<p>What the latest batches brought:</p>" + table(columns, rows)


def _lineage(page: Page) -> str:
    return (
        "<h2>Lineage</h2><div class='scroll'><table>"
        f"<tr><td>weights</td><td><code>{page.receipt['weights_sha256']}</code></td></tr></table></div>"
        "<p class='soft'>Version, run and commit stand on the promotion page and in MLflow; data and code of every "
        f"stage in dvc.lock.</p><details><summary>Recipe</summary><pre>{html.escape(page.recipe)}</pre></details>"
    )


def _curves(curves: Path, validation: Path) -> str:
    """Loss of training (each step, thin) and of validation, logarithmic; validation Dice beside it."""
    # The figure is made without pyplot: no display, no global state.
    from matplotlib.figure import Figure

    train, val = _columns(curves), _columns(validation)
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    loss, score = figure.subplots(1, 2)
    loss.plot(train["step"], train["train_loss"], linewidth=0.6, color="#56b4e9", label="training, each step")
    # Points too: a short training has one validation, and a line needs two.
    loss.plot(val["step"], val["val_loss"], marker=".", color="#d55e00", label="validation")
    loss.set(yscale="log", xlabel="step", title="loss")
    loss.legend(frameon=False)
    score.plot(val["step"], val["val_dice"], marker=".", color="#009e73")
    score.set(xlabel="step", title="validation Dice", ylim=(0, 1))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return embed(stream.getvalue(), "loss and validation Dice over the steps")


def _columns(path: Path) -> dict[str, list[float]]:
    """A CSV's columns as numbers; an undefined score becomes a gap."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {name: [float(row[name] or "nan") for row in rows] for name in (rows[0] if rows else ())}
