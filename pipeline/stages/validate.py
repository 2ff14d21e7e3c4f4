"""Stage 2: read every pair once -> accepted rows, those rejected with their reasons, duplicates, a page for people."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.catalog import CatalogRow, read_catalog, write_catalog
from pipeline.data_page import count_kinds, render
from pipeline.duplicates_table import DuplicatePair, write_duplicates
from pipeline.findings import Finding, Reading, check_row, find_contradictions, find_duplicates, killed, read_one
from pipeline.parallel import map_parallel
from pipeline.params import load_section
from pipeline.pictures import contact_sheet, write_picture
from pipeline.placement import read_placement
from pipeline.source import IngestConfig
from unet_core.errors import DataError, RecipeError
from unet_core.samples import ClassMap, ImageConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """Recipe section `validate`."""

    max_rejected_fraction: float
    """Share of samples, 0 to 1, that may be rejected before the stage fails."""
    min_px: int = 8
    """Smallest side of an image, in pixels."""
    max_aspect: float = 50.0
    """Longest side of an image in units of its other side."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_rejected_fraction <= 1:
            raise RecipeError(
                f"validate.max_rejected_fraction: {self.max_rejected_fraction}: choose a number from 0 to 1."
            )
        if self.min_px < 1 or self.max_aspect < 1:
            raise RecipeError(
                f"validate.min_px: {self.min_px}, validate.max_aspect: {self.max_aspect}: both must be at least 1."
            )


def run(  # noqa: PLR0913  each is a path of dvc.yaml
    *, catalog: Path, accepted: Path, rejected: Path, duplicates: Path, metrics: Path, examples: Path, page: Path
) -> None:
    """Check all samples; DataError if more are rejected than the recipe allows, after the page tells why."""
    config = load_section("validate", ValidateConfig)
    reading = Reading(
        source=load_section("ingest", IngestConfig).source,
        images=load_section("images", ImageConfig),
        class_map=load_section("masks", ClassMap),
        min_px=config.min_px,
        max_aspect=config.max_aspect,
    )
    good, bad, pairs = check_all(read_catalog(catalog), reading)
    _write_json(rejected, [{"key": finding.row.key, "reason": finding.reason} for finding in bad])
    summary = _summary(good, bad, pairs, reading.class_map)
    _write_json(metrics, summary)
    if good:
        shown = [read_one(row, reading) for row in _spread([finding.row for finding in good], 8)]
        write_picture(examples, contact_sheet(shown, reading.class_map))
    page.parent.mkdir(parents=True, exist_ok=True)
    text = render(summary, good, bad, pairs, reading, examples if good else None)
    page.write_text(text, encoding="utf-8")
    _judge(bad, len(good) + len(bad), config, rejected, page)
    write_catalog(accepted, [finding.row for finding in good])
    write_duplicates(duplicates, pairs)
    log.info("validate: %d accepted, %d rejected, %d pairs of duplicates", len(good), len(bad), len(pairs))


def check_all(rows: Sequence[CatalogRow], reading: Reading) -> tuple[list[Finding], list[Finding], list[DuplicatePair]]:
    """Accepted and rejected findings in the order of the rows, and the pairs of accepted duplicates."""
    placement = read_placement()
    check = partial(check_row, reading=reading)
    findings = list(map_parallel(check, rows, placement=placement, label="validate", on_death=killed))
    good = [finding for finding in findings if finding.reason is None]
    pairs = find_duplicates(good, reading, placement)
    reasons = find_contradictions(good, pairs)
    bad = [finding for finding in findings if finding.reason is not None]
    bad += [Finding(row=finding.row, reason=reasons[finding.row.key]) for finding in good if finding.row.key in reasons]
    return (
        [finding for finding in good if finding.row.key not in reasons],
        sorted(bad, key=lambda finding: finding.row.key),
        [pair for pair in pairs if pair.a not in reasons and pair.b not in reasons],
    )


def _judge(bad: Sequence[Finding], total: int, config: ValidateConfig, rejected: Path, page: Path) -> None:
    if len(bad) > config.max_rejected_fraction * total:
        reasons = "\n".join(f"  {finding.row.key}: {finding.reason}" for finding in bad[:5])
        more = f"\n  ... and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise DataError(
            f"{len(bad)} of {total} samples are rejected, validate.max_rejected_fraction allows "
            f"{config.max_rejected_fraction:g}. All reasons are in {rejected}, with pictures in {page}; correct the "
            f"files or raise the limit.\n{reasons}{more}"
        )
    if len(bad) == total:
        raise DataError(f"no sample is left: all {total} are rejected. See {rejected}, with pictures in {page}.")


def _summary(
    good: Sequence[Finding], bad: Sequence[Finding], pairs: Sequence[DuplicatePair], class_map: ClassMap
) -> dict[str, Any]:
    pixels = np.array([finding.class_pixels for finding in good], dtype=np.int64).reshape(-1, class_map.num_classes)
    area = sum((finding.row.height or 0) * (finding.row.width or 0) for finding in good)
    return {
        "accepted": len(good),
        "rejected": len(bad),
        "problems": count_kinds(bad),
        "image_sizes": len({(finding.row.width, finding.row.height) for finding in good}),
        "pixels": area,
        "class_fraction": {
            name: float(count) / max(1, area)
            for name, count in zip(class_map.names, pixels.sum(axis=0).tolist(), strict=True)
        },
        "images_without_class": {
            name: int(count) for name, count in zip(class_map.names, (pixels == 0).sum(axis=0), strict=True)
        },
        "exact_duplicates": sum(pair.kind == "exact" for pair in pairs),
        "near_duplicates": sum(pair.kind == "near" for pair in pairs),
        "duplicates_with_other_masks": sum(not pair.masks_agree for pair in pairs),
    }


def _spread(rows: Sequence[CatalogRow], count: int) -> list[CatalogRow]:
    """A few rows, evenly from the whole list."""
    return [rows[number * len(rows) // count] for number in range(min(count, len(rows)))] if rows else []


def _write_json(path: Path, body: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
