"""A user's folder -> image-mask pairs. Later kinds of source (manifests, COCO, URLs) belong here too."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unet_core.errors import DataError
from unet_core.samples import ClassMap

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp"})


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Recipe section `ingest`."""

    source: str
    """The folder with the user's data."""
    ledger: str
    """The record of arrivals, written by `unet init` and `unet add`."""
    images: str = "images"
    """Folder of images, below the source."""
    masks: str = "masks"
    """Folder of masks, below the source; for multilabel it has one folder per class."""
    table: str | None = None
    """A table below the source with more about the samples: .csv, .tsv, or words between spaces."""
    table_columns: Sequence[str] | None = None
    """Names of the table's columns; null: its first line has them."""
    key_column: str = "key"
    """Column with the name of the image file, without its ending."""
    split_column: str | None = None
    """Column with a declared split."""
    group_column: str | None = None
    """Column with what must stay together in one split: patient, slide, video."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image and its mask files, paths relative to the source."""

    key: str
    image: str
    masks: tuple[str, ...]


def list_pictures(folder: Path) -> dict[str, Path]:
    """Picture files directly in a folder, by key (the name without its ending), sorted."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() not in PICTURE_SUFFIXES or path.name.startswith("."):
            continue
        if "." in path.stem:
            raise DataError(f"a dot inside a name: {path}. Rename the file: a key ends at its first dot in a shard.")
        if path.stem in found:
            raise DataError(f"two files of one name: {found[path.stem]} and {path.name}. Keep one of them.")
        found[path.stem] = path
    return found


def find_pairs(source: Path, config: IngestConfig, class_map: ClassMap) -> list[Pair]:
    """All pairs of a folder, in order of their keys; DataError for a folder without images or an image alone."""
    if not source.is_dir():
        raise DataError(f"no such folder: {source}. Correct ingest.source in params.yaml, or restore the data.")
    images = list_pictures(source / config.images)
    if not images:
        raise DataError(
            f"no images: {source / config.images} has no picture files. "
            f"Put images there ({', '.join(sorted(PICTURE_SUFFIXES))}), or correct ingest.images."
        )
    folders = [source / config.masks]
    if class_map.kind == "multilabel":
        folders = [source / config.masks / name for name in class_map.names]
    masks = [list_pictures(folder) for folder in folders]
    for folder, found in zip(folders, masks, strict=True):
        alone = sorted(set(images) - set(found))
        if alone:
            raise DataError(
                f"image without mask: {images[alone[0]]}{_and_more(alone)}: nothing of that name in {folder}. "
                "Add the mask, or remove the image."
            )
        orphans = sorted(set(found) - set(images))
        if orphans:
            raise DataError(
                f"mask without image: {found[orphans[0]]}{_and_more(orphans)}: nothing of that name in "
                f"{source / config.images}. Add the image, or remove the mask."
            )
    return [
        Pair(
            key=key,
            image=str(path.relative_to(source)),
            masks=tuple(str(found[key].relative_to(source)) for found in masks),
        )
        for key, path in images.items()
    ]


def read_table(source: Path, config: IngestConfig) -> dict[str, dict[str, str]]:
    """The table's rows by key, empty without a table; DataError for a missing file or column."""
    if config.table is None:
        return {}
    path = source / config.table
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"table can't be read: {path}: not UTF-8: {error}. Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"table can't be read: {path}: {error.strerror}. Correct ingest.table.") from error
    match path.suffix.lower():
        case ".csv":
            rows = list(csv.reader(lines))
        case ".tsv":
            rows = list(csv.reader(lines, delimiter="\t"))
        case _:
            rows = [line.split() for line in lines]
    rows = [row for row in rows if row]
    columns = list(config.table_columns) if config.table_columns else (rows.pop(0) if rows else [])
    for column in (config.key_column, config.split_column, config.group_column):
        if column is not None and column not in columns:
            raise DataError(f"no such column: {path}: {column}. It has {columns}; correct the ingest section.")
    found: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=1 if config.table_columns else 2):
        about = dict(zip(columns, row, strict=False))
        for column in (config.key_column, config.split_column, config.group_column):
            if column is not None and not about.get(column):
                raise DataError(f"an empty cell: {path}: line {number}: no {column}. Complete the line.")
        key = about[config.key_column]
        if key in found:
            raise DataError(f"two lines for one sample: {path}: line {number}: {key}. Keep one of them.")
        found[key] = about
    return found


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
