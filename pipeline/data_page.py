"""The page about the data: what was accepted, what was not and why, with pictures of each kind of problem."""

import html
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.catalog import CatalogRow
from pipeline.duplicates_table import DuplicatePair
from pipeline.findings import Finding, Reading
from pipeline.page import embed, html_page, picture, table
from pipeline.pictures import as_rgb, fit, grid
from pipeline.references import read_reference
from unet_core.errors import UnetError
from unet_core.images import read_image
from unet_core.samples import Array, ImageConfig

#: Pictures of each kind of problem, and of pairs.
NUM_SHOWN = 3
NUM_SIZES = 12


def render(
    summary: Mapping[str, Any],
    good: Sequence[Finding],
    bad: Sequence[Finding],
    pairs: Sequence[DuplicatePair],
    reading: Reading,
    examples: Path | None,
) -> str:
    """The whole page."""
    rows = {finding.row.key: finding.row for finding in [*good, *bad]}
    sections = [
        _head(summary),
        _problems(bad, reading),
        _pairs(pairs, rows, reading),
        _classes(summary),
        _sizes(good),
        _examples(examples),
    ]
    return html_page("Data", [section for section in sections if section])


def _head(summary: Mapping[str, Any]) -> str:
    numbers = [
        (summary["accepted"], "accepted"),
        (summary["rejected"], "rejected"),
        (summary["image_sizes"], "sizes"),
        (summary["exact_duplicates"] + summary["near_duplicates"], "pairs of duplicates"),
    ]
    cells = "".join(f"<div><b>{value}</b><span class='soft'>{label}</span></div>" for value, label in numbers)
    return f"<h1>Data</h1><div class='numbers'>{cells}</div>"


def _problems(bad: Sequence[Finding], reading: Reading) -> str:
    if not bad:
        return "<h2>Rejected</h2><p>No sample was rejected.</p>"
    parts = [f"<h2>Rejected</h2>{table(['problem', 'samples'], sorted(count_kinds(bad).items()))}"]
    for kind in sorted(count_kinds(bad)):
        found = [finding for finding in bad if problem_of(finding) == kind]
        figures = "".join(
            f"<figure>{_show(finding.row, reading)}"
            f"<figcaption>{html.escape(finding.reason or '')}</figcaption></figure>"
            for finding in found[:NUM_SHOWN]
        )
        rest = "".join(f"<li>{html.escape(finding.reason or '')}</li>" for finding in found[NUM_SHOWN:])
        more = f"<details><summary class='soft'>{len(found) - NUM_SHOWN} more</summary><ul>{rest}</ul></details>"
        parts.append(f"<h2>{html.escape(kind)}</h2><div class='cases'>{figures}</div>{more if rest else ''}")
    return "".join(parts)


def problem_of(finding: Finding) -> str:
    """The kind of problem: what stands before the first colon of the reason."""
    return (finding.reason or "").partition(":")[0]


def count_kinds(bad: Sequence[Finding]) -> dict[str, int]:
    """How many samples each kind of problem has."""
    return dict(Counter(problem_of(finding) for finding in bad))


def _pairs(pairs: Sequence[DuplicatePair], rows: Mapping[str, CatalogRow], reading: Reading) -> str:
    if not pairs:
        return "<h2>Duplicates</h2><p>No two samples show one picture.</p>"
    shown = sorted(pairs, key=lambda pair: (pair.masks_agree, pair.kind, pair.a, pair.b))
    figures = "".join(
        f"<figure>{_show(rows[pair.a], reading)}{_show(rows[pair.b], reading)}"
        f"<figcaption>{html.escape(f'{pair.a} and {pair.b}: {pair.kind}, masks')} "
        f"{'agree' if pair.masks_agree else 'differ'}</figcaption></figure>"
        for pair in shown[: 2 * NUM_SHOWN]
    )
    listed = table(
        ["first", "second", "kind", "masks"],
        [(pair.a, pair.b, pair.kind, "agree" if pair.masks_agree else "differ") for pair in shown],
    )
    return (
        "<h2>Duplicates</h2><p class='soft'>Image and mask of two samples that show one picture; "
        f"where the recipe divides, they stay in one split.</p><div class='cases'>{figures}</div>"
        f"<details><summary class='soft'>All {len(pairs)} pairs</summary>{listed}</details>"
    )


def _classes(summary: Mapping[str, Any]) -> str:
    rows = [
        (name, f"{share:.2%}", summary["images_without_class"][name])
        for name, share in summary["class_fraction"].items()
    ]
    return "<h2>Classes</h2>" + table(["class", "share of pixels", "images without it"], rows)


def _sizes(good: Sequence[Finding]) -> str:
    sizes = Counter((finding.row.width, finding.row.height) for finding in good).most_common()
    rows = [(f"{width} x {height}", count) for (width, height), count in sizes[:NUM_SIZES]]
    if len(sizes) > NUM_SIZES:
        rows.append((f"{len(sizes) - NUM_SIZES} others", sum(count for _, count in sizes[NUM_SIZES:])))
    return "<h2>Sizes</h2>" + table(["width x height", "images"], rows)


def _examples(examples: Path | None) -> str:
    if examples is None:
        return ""
    return f"<h2>Accepted samples</h2><figure>{picture(examples, 'images above their masks')}</figure>"


def _show(row: CatalogRow, reading: Reading) -> str:
    """Image and first mask beside each other, as far as they can be read."""
    shown = [_readable(reading.source, reference) for reference in (row.image, *row.masks[:1])]
    tiles = [fit(found) for found in shown if found is not None]
    if not tiles:
        return "<p class='soft'>no picture can be read</p>"
    stream = io.BytesIO()
    Image.fromarray(grid([tiles])).save(stream, format="PNG")
    return embed(stream.getvalue(), f"image and mask of {row.key}")


def _readable(source: str, reference: str) -> Array | None:
    """A file as a picture, bright enough to be seen; None where it can't be read."""
    try:
        found = read_image(read_reference(source, reference), ImageConfig(channels=3, percentiles=(0, 100)))
    except UnetError:
        return None
    return as_rgb(np.ascontiguousarray(found))
