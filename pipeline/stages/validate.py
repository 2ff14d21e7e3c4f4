"""Stage 2: read every pair once -> accepted rows, and those rejected with their reasons."""

import dataclasses
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.catalog import CatalogRow, read_catalog, write_catalog
from pipeline.params import load_section
from pipeline.pictures import contact_sheet, write_picture
from pipeline.progress import progress
from pipeline.source import IngestConfig
from pipeline.storage import read_file
from unet_core.errors import DataError, RecipeError
from unet_core.pairs import read_sample
from unet_core.samples import ClassMap, ImageConfig, Sample, count_class_pixels

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """Recipe section `validate`."""

    max_rejected_fraction: float
    """Share of samples, 0 to 1, that may be rejected before the stage fails."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_rejected_fraction <= 1:
            raise RecipeError(
                f"validate.max_rejected_fraction: {self.max_rejected_fraction}: choose a number from 0 to 1."
            )


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What reading one sample told."""

    row: CatalogRow
    reason: str | None
    class_pixels: tuple[int, ...] = ()


def run(*, catalog: Path, accepted: Path, rejected: Path, metrics: Path, examples: Path) -> None:
    """Check all samples; DataError if more are rejected than the recipe allows."""
    config = load_section("validate", ValidateConfig)
    class_map = load_section("masks", ClassMap)
    source = load_section("ingest", IngestConfig).source
    images = load_section("images", ImageConfig)
    rows = read_catalog(catalog)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checks = pool.map(lambda row: check_row(row, source, images, class_map), rows)
        findings = list(progress(checks, total=len(rows), label="validate", unit="samples"))
    good = [finding for finding in findings if finding.reason is None]
    bad = [{"key": finding.row.key, "reason": finding.reason} for finding in findings if finding.reason is not None]
    _write_json(rejected, bad)
    _write_json(metrics, _summary(good, len(bad), class_map))
    _judge(bad, len(rows), config, rejected)
    write_catalog(accepted, [finding.row for finding in good])
    shown = [_read(row, source, images, class_map) for row in _spread([finding.row for finding in good], 8)]
    write_picture(examples, contact_sheet(shown, class_map))
    log.info("validate: %d accepted, %d rejected", len(good), len(bad))


def check_row(row: CatalogRow, source: str, images: ImageConfig, class_map: ClassMap) -> Finding:
    """Read one sample; the reason says why it can't be used."""
    try:
        sample = _read(row, source, images, class_map)
    except DataError as error:
        return Finding(row=row, reason=str(error))
    height, width = sample.image.shape[:2]
    done = dataclasses.replace(row, height=height, width=width)
    return Finding(row=done, reason=None, class_pixels=count_class_pixels(sample.mask, class_map))


def _read(row: CatalogRow, source: str, images: ImageConfig, class_map: ClassMap) -> Sample:
    masks = [read_file(source, mask) for mask in row.masks]
    return read_sample(row.key, read_file(source, row.image), masks, images, class_map)


def _judge(bad: list[dict[str, str]], total: int, config: ValidateConfig, rejected: Path) -> None:
    if len(bad) > config.max_rejected_fraction * total:
        reasons = "\n".join(f"  {entry['key']}: {entry['reason']}" for entry in bad[:5])
        more = f"\n  ... and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise DataError(
            f"{len(bad)} of {total} samples are rejected, validate.max_rejected_fraction allows "
            f"{config.max_rejected_fraction:g}. All reasons are in {rejected}; correct the files or raise the limit.\n"
            f"{reasons}{more}"
        )
    if len(bad) == total:
        raise DataError(f"no sample is left: all {total} are rejected. See {rejected}.")


def _summary(good: list[Finding], num_rejected: int, class_map: ClassMap) -> dict[str, object]:
    pixels = np.array([finding.class_pixels for finding in good], dtype=np.int64).reshape(-1, class_map.num_classes)
    area = sum((finding.row.height or 0) * (finding.row.width or 0) for finding in good)
    sizes = [(finding.row.width, finding.row.height) for finding in good]
    return {
        "accepted": len(good),
        "rejected": num_rejected,
        "image_sizes": len(set(sizes)),
        "pixels": area,
        "class_fraction": {
            name: float(count) / max(1, area)
            for name, count in zip(class_map.names, pixels.sum(axis=0).tolist(), strict=True)
        },
    }


def _spread(rows: list[CatalogRow], count: int) -> list[CatalogRow]:
    """A few rows, evenly from the whole list."""
    return [rows[number * len(rows) // count] for number in range(min(count, len(rows)))] if rows else []


def _write_json(path: Path, body: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
