"""Stage 2: read every pair once -> accepted rows, those rejected with their reasons, duplicates, a page for people."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.catalog import CatalogRow, read_catalog, write_catalog
from pipeline.data_page import count_kinds, render
from pipeline.duplicates_table import write_duplicates
from pipeline.findings import Finding, Findings, Reading, check_all, read_one
from pipeline.json_file import write_json
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
    found = check_all(read_catalog(catalog), reading, read_placement())
    good, bad = found.good, found.bad
    write_json(rejected, [{"key": finding.row.key, "reason": finding.reason} for finding in bad])
    summary = _summary(found, reading.class_map)
    write_json(metrics, summary)
    if good:
        shown = [read_one(row, reading) for row in _spread([finding.row for finding in good], 8)]
        write_picture(examples, contact_sheet(shown, reading.class_map))
    page.parent.mkdir(parents=True, exist_ok=True)
    text = render(summary, found, reading, examples if good else None)
    page.write_text(text, encoding="utf-8")
    _judge(bad, len(good) + len(bad), config, rejected, page)
    write_catalog(accepted, [finding.row for finding in good])
    write_duplicates(duplicates, found.pairs)
    log.info("validate: %d accepted, %d rejected, %d pairs of duplicates", len(good), len(bad), len(found.pairs))
    if found.num_crowded:
        log.warning(
            "validate: %d samples look like so many others that they were not compared with all of them",
            found.num_crowded,
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


def _summary(found: Findings, class_map: ClassMap) -> dict[str, Any]:
    good, pairs = found.good, found.pairs
    pixels = np.array([finding.row.class_pixels for finding in good], dtype=np.int64).reshape(-1, class_map.num_classes)
    area = sum((finding.row.height or 0) * (finding.row.width or 0) for finding in good)
    return {
        "accepted": len(good),
        "rejected": len(found.bad),
        "problems": count_kinds(found.bad),
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
        "not_compared_with_all": found.num_crowded,
    }


def _spread(rows: Sequence[CatalogRow], count: int) -> list[CatalogRow]:
    """A few rows, evenly from the whole list."""
    return [rows[number * len(rows) // count] for number in range(min(count, len(rows)))] if rows else []
