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
from pipeline.findings import KILLED, Finding, Findings, Reading
from pipeline.page import Bar, embed, html_page, picture, table
from pipeline.pictures import TILE_PX, as_rgb, class_colours, fit, grid, paint_mask
from pipeline.references import read_reference
from unet_core.errors import UnetError
from unet_core.images import convert_image, read_picture
from unet_core.masks import read_mask
from unet_core.samples import Array, ClassMap, ImageConfig

#: Pictures of each kind of problem, and of pairs.
NUM_SHOWN = 3
NUM_SIZES = 12
#: Lines of a list; all stand in the files that the pipeline writes beside the page.
NUM_LISTED = 1000


def render(summary: Mapping[str, Any], found: Findings, reading: Reading, examples: Path | None) -> str:
    """The whole page."""
    rows = {finding.row.key: finding.row for finding in (*found.good, *found.bad)}
    sections = [
        _head(summary),
        _problems(found.bad, reading),
        _pairs(found, rows, reading),
        _classes(summary, reading.class_map),
        _sizes(found.good),
        _files(found.good),
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
    counts = sorted(count_kinds(bad).items())
    note = "<p class='soft'>Pictures: image and mask, brightened; crossed out what can't be read.</p>"
    parts = [f"<h2>Rejected</h2>{table(['problem', 'samples'], counts)}{note}"]
    for kind, count in counts:
        of_kind = [finding for finding in bad if problem_of(finding) == kind]
        figures = "".join(
            f"<figure>{_show(finding, reading)}<figcaption>{html.escape(finding.reason or '')}</figcaption></figure>"
            for finding in of_kind[:NUM_SHOWN]
        )
        title = kind[:1].upper() + kind[1:]
        number = f" <span class='soft'>{NUM_SHOWN} of {count}</span>" if count > NUM_SHOWN else ""
        parts.append(f"<h3>{html.escape(title)}{number}</h3><div class='cases'>{figures}</div>")
    reasons = [(finding.row.key, finding.reason or "") for finding in bad]
    parts.append(_listing(f"All {len(bad)} rejected samples", ["sample", "reason"], reasons, "data/rejected.json"))
    return "".join(parts)


def problem_of(finding: Finding) -> str:
    """The kind of problem: what stands before the first colon of the reason."""
    return (finding.reason or "").partition(":")[0]


def count_kinds(bad: Sequence[Finding]) -> dict[str, int]:
    """How many samples each kind of problem has."""
    return dict(Counter(problem_of(finding) for finding in bad))


def _listing(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], file: str) -> str:
    """A list that opens on a click."""
    rest = f"<p class='soft'>and {len(rows) - NUM_LISTED} more in {file}</p>" if len(rows) > NUM_LISTED else ""
    listed = table(head, rows[:NUM_LISTED], kind="texts")
    return f"<details><summary class='soft'>{html.escape(title)}</summary>{listed}{rest}</details>"


def _pairs(found: Findings, rows: Mapping[str, CatalogRow], reading: Reading) -> str:
    crowded = (
        f"<p>{found.num_crowded} samples look like so many others that they were not compared with all of them.</p>"
        if found.num_crowded
        else ""
    )
    if not found.pairs:
        return f"<h2>Duplicates</h2><p>No two accepted samples show one picture.</p>{crowded}"
    pairs = sorted(found.pairs, key=lambda pair: (pair.masks_agree, pair.kind, pair.a, pair.b))
    figures = "".join(
        f"<figure>{_show_row(rows[pair.a], reading)}{_show_row(rows[pair.b], reading)}"
        f"<figcaption>{html.escape(f'{pair.a} and {pair.b}: {pair.kind}, {_judgement(pair)}')}</figcaption></figure>"
        for pair in pairs[: 2 * NUM_SHOWN]
    )
    listed = [(pair.a, pair.b, pair.kind, _judgement(pair)) for pair in pairs]
    return (
        "<h2>Duplicates</h2><p class='soft'>Image and mask of two samples that show one picture; "
        f"where the recipe divides, they stay in one split.</p>{crowded}<div class='cases'>{figures}</div>"
        + _listing(f"All {len(pairs)} pairs", ["first", "second", "kind", "masks"], listed, "data/duplicates.csv")
    )


def _judgement(pair: DuplicatePair) -> str:
    return "masks agree" if pair.masks_agree else "masks differ"


def _classes(summary: Mapping[str, Any], class_map: ClassMap) -> str:
    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in class_colours(class_map).tolist()]
    shares, without = summary["class_fraction"], summary["images_without_class"]
    rows = [
        (name, Bar(share=shares[name], colour=colour), f"{shares[name]:.2%}", without[name])
        for name, colour in zip(class_map.names, colours, strict=True)
    ]
    return "<h2>Classes</h2>" + table(["class", "", "share of pixels", "images without it"], rows)


def _sizes(good: Sequence[Finding]) -> str:
    sizes = Counter((finding.row.width, finding.row.height) for finding in good).most_common()
    rows = [(f"{width} x {height}", count) for (width, height), count in sizes[:NUM_SIZES]]
    if len(sizes) > NUM_SIZES:
        rows.append((f"{len(sizes) - NUM_SIZES} others", sum(count for _, count in sizes[NUM_SIZES:])))
    return "<h2>Sizes</h2>" + table(["width x height", "images"], rows)


def _files(good: Sequence[Finding]) -> str:
    kinds = Counter(finding.file for finding in good).most_common()
    return "<h2>Image files</h2>" + table(["what they are", "images"], kinds) if kinds else ""


def _examples(examples: Path | None) -> str:
    if examples is None:
        return ""
    return f"<h2>Accepted samples</h2><figure>{picture(examples, 'images above their masks')}</figure>"


def _show(finding: Finding, reading: Reading) -> str:
    if problem_of(finding) == KILLED:
        # Reading it here would end this process too.
        return "<p class='soft'>not read again</p>"
    return _show_row(finding.row, reading)


def _show_row(row: CatalogRow, reading: Reading) -> str:
    """Image and first mask beside each other; crossed out what can't be read."""
    shown = [_readable_image(row, reading), _readable_mask(row, reading)]
    if all(found is None for found in shown):
        return "<p class='soft'>no picture can be read</p>"
    tiles = [_crossed() if found is None else fit(found) for found in shown]
    stream = io.BytesIO()
    Image.fromarray(grid([tiles])).save(stream, format="PNG")
    return embed(stream.getvalue(), f"image and mask of {row.key}")


def _crossed() -> Array:
    """In the place of a picture that can't be read."""
    line = np.eye(TILE_PX, dtype=bool)
    tile = np.where(line | line[::-1], 160, 235).astype(np.uint8)
    return np.repeat(tile[..., None], 3, axis=-1)


def _readable_image(row: CatalogRow, reading: Reading) -> Array | None:
    """The image as a picture, bright enough to be seen; None where it can't be read."""
    # Of a file with several pages the one that the recipe means, or the first.
    return _picture(reading.source, row.image, reading.images.page or 0)


def _readable_mask(row: CatalogRow, reading: Reading) -> Array | None:
    """The mask in the colours of its classes; its first file as it is where it can't be read as the recipe says."""
    try:
        masks = [read_reference(reading.source, mask) for mask in row.masks]
        return paint_mask(read_mask(masks, reading.class_map), reading.class_map)
    except UnetError:
        return _picture(reading.source, row.masks[0], None)


def _picture(source: str, reference: str, page: int | None) -> Array | None:
    try:
        file = read_reference(source, reference)
        picture = read_picture(file, "file", page)
        channels = picture.pixels.shape[2] if picture.colour == "channels" else 3
        found = convert_image(picture, ImageConfig(channels=channels, percentiles=(0, 100)), where=file.name)
    except UnetError:
        return None
    return as_rgb(np.ascontiguousarray(found))
