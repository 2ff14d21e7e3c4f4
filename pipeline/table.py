"""A table (CSV, TSV, words or Parquet): what it says about samples, or the samples themselves (a manifest)."""

import csv
import io
import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.source import IngestConfig, Pair
from pipeline.storage import join, read_file
from unet_core.errors import DataError, RecipeError
from unet_core.samples import ClassMap

#: A cell is a text; a list in Parquet is several.
Cell = str | tuple[str, ...]
Row = Mapping[str, Cell]


@dataclass(frozen=True, kw_only=True)
class About:
    """What is known of a sample beside its files."""

    group: str
    split: str | None
    stratum: str | None
    position: int | None
    slices: Mapping[str, str]


def read_table(source: str, config: IngestConfig) -> dict[str, Row]:
    """The table's rows by key, empty without a table; DataError for a missing file, column or cell."""
    if config.table is None:
        return {}
    address = join(source, config.table)
    columns, rows = _read_rows(source, config.table, config.table_columns)
    key_column = config.key_column or ("key" if config.image_column is None or "key" in columns else None)
    named = [key_column, config.image_column, config.mask_column, *(config.mask_columns or {}).values()]
    needed = [column for column in (*named, *config.about_columns) if column is not None]
    for column in (*needed, *config.slice_columns):
        if column not in columns:
            raise DataError(f"no such column: {address}: {column}. It has {columns}; correct the ingest section.")
    found: dict[str, Row] = {}
    for line, row in rows:
        where = f"{address}: line {line}"
        if len(row) > len(columns):
            raise DataError(
                f"too many cells: {where}: {len(row)} cells, {len(columns)} columns. Quote cells that hold a comma."
            )
        # A space that nobody sees would make two groups of one.
        about = {
            column: cell.strip() if isinstance(cell, str) else cell for column, cell in zip(columns, row, strict=False)
        }
        for column in needed:
            if not about.get(column):
                raise DataError(f"an empty cell: {where}: no {column}. Complete the line.")
        if config.order_column is not None:
            _whole(about[config.order_column], config.order_column, where)
        key = str(about[key_column]) if key_column else PurePosixPath(str(about[str(config.image_column)])).stem
        if "/" in key or key in (".", ".."):
            raise DataError(f"a key is a name, not a path: {where}: {key}. Write it without slashes.")
        if key in found:
            hint = "" if config.key_column else " or, if they are two, name them in a key_column"
            raise DataError(f"two lines for one sample: {where}: {key}. Keep one of them{hint}.")
        found[key] = about
    return found


def list_samples(source: str, names: Collection[str], config: IngestConfig, class_map: ClassMap) -> list[Pair]:
    """The pairs that a manifest lists; DataError for a path that is not a file of the source."""
    is_multilabel = class_map.kind == "multilabel"
    if is_multilabel != (config.mask_columns is not None):
        raise RecipeError(
            f"masks of kind {class_map.kind}: set ingest."
            + ("mask_columns (class: column)." if is_multilabel else "mask_column, one column.")
        )
    if config.mask_columns is not None and set(config.mask_columns) != set(class_map.names):
        raise RecipeError(
            f"ingest.mask_columns: has {sorted(config.mask_columns)}, masks.classes has {sorted(class_map.names)}. "
            "Name a column for each class."
        )
    address = join(source, str(config.table))
    known = set(names)
    pairs = []
    images: dict[str, str] = {}
    owners: dict[str, str] = {}
    for key, row in sorted(read_table(source, config).items()):
        where = f"{address}: {key}"
        columns = (
            [config.mask_columns[name] for name in class_map.names] if config.mask_columns else [config.mask_column]
        )
        cells = [_paths(row[str(column)]) for column in columns]
        if not all(cells):
            raise DataError(f"an empty cell: {where}: no mask. Complete the line.")
        if str(class_map.kind) != "instances" and any(len(paths) != 1 for paths in cells):
            raise DataError(
                f"several masks for one image: {where}: {max(cells, key=len)}. Masks of kind {class_map.kind} are one "
                "file; set masks.kind to instances if each file is an object."
            )
        image, *masks = (
            _checked(path, known, where, source) for path in (str(row[str(config.image_column)]), *sum(cells, ()))
        )
        if image in images:
            raise DataError(f"one image for two samples: {address}: {image}: {images[image]} and {key}. Keep one line.")
        for mask in masks:
            if mask == image or mask in owners:
                other = "its own image" if mask == image else f"{owners[mask]} and {key}"
                raise DataError(f"one mask for two: {address}: {mask}: {other}. Name each sample's own mask.")
            owners[mask] = key
        images[image] = key
        pairs.append(Pair(key=key, image=image, masks=tuple(masks)))
    if not pairs:
        raise DataError(f"no samples: {address} has no lines. Write a line for each sample.")
    return pairs


def tell_about(pair: Pair, row: Row, config: IngestConfig) -> About:
    """What path and table say of a sample; without a group each sample is its own."""
    if config.group_column and pair.group is not None:
        raise RecipeError("ingest: group_column and {group} in image_pattern both name groups. Keep one of them.")
    if config.split_column and pair.split is not None:
        raise RecipeError("ingest: split_column and {split} in image_pattern both declare splits. Keep one of them.")

    def cell(column: str | None) -> str | None:
        return str(row[column]) if column is not None else None

    position = cell(config.order_column)
    words = {column: row.get(column) for column in config.slice_columns}
    return About(
        group=cell(config.group_column) or pair.group or pair.key,
        split=cell(config.split_column) or pair.split,
        stratum=cell(config.stratum_column),
        position=None if position is None else _whole(position, str(config.order_column), pair.key),
        slices={**pair.slices, **{column: str(word) for column, word in words.items() if word}},
    )


def _read_rows(
    source: str, name: str, columns: Sequence[str] | None
) -> tuple[list[str], Iterator[tuple[int, Sequence[Cell]]]]:
    """Names of the columns, and rows with the number of their line."""
    address = join(source, name)
    try:
        data = read_file(source, name).data
    except DataError as error:
        raise DataError(f"no such table: {address}. Correct ingest.table, or restore the file.") from error
    if name.lower().endswith(".parquet"):
        return _read_parquet(data, address)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"table can't be read: {address}: not UTF-8: {error}. Save it as UTF-8.") from error
    rows = list(_lines(text, name.lower(), address))
    header = list(columns) if columns else [str(cell) for cell in (rows.pop(0)[1] if rows else ())]
    twice = sorted({column for column in header if column and header.count(column) > 1})
    if twice:
        raise DataError(f"two columns of one name: {address}: {twice[0]}. Rename one of them.")
    return header, iter(rows)


def _lines(text: str, name: str, address: str) -> Iterator[tuple[int, Sequence[str]]]:
    if name.endswith((".csv", ".tsv")):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if name.endswith(".tsv") else ",")
        line = 1
        try:
            for row in reader:
                if row:
                    yield line, row
                # A quoted cell may hold line breaks: the next row begins after them.
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"table can't be read: {address}: line {line}: {error}. Save it again as CSV.") from error
    else:
        for line, row in enumerate((line.split() for line in text.splitlines()), start=1):
            if row:
                yield line, row


def _read_parquet(data: bytes, address: str) -> tuple[list[str], Iterator[tuple[int, Sequence[Cell]]]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"table can't be read: {address}: {error}. Write it again as Parquet.") from error
    columns = [[_cell(value) for value in column.to_pylist()] for column in table.columns]
    return list(table.column_names), enumerate(zip(*columns, strict=True), start=1)


def _cell(value: object) -> Cell:
    """A value of Parquet as a CSV would have it; pandas writes a whole number beside an empty cell as 3.0."""
    if isinstance(value, list):
        return tuple(str(entry) for entry in value)
    if value is None or value != value:  # noqa: PLR0124 NaN is an empty cell
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _whole(text: Cell, column: str, where: str) -> int:
    try:
        return int(str(text))
    except ValueError as error:
        raise DataError(f"not a whole number: {where}: {column}: {text}. Write the place as 0, 1, 2 ...") from error


def _paths(cell: Cell) -> tuple[str, ...]:
    return cell if isinstance(cell, tuple) else tuple(path.strip() for path in cell.split(";") if path.strip())


def _checked(path: str, known: Collection[str], where: str, source: str) -> str:
    """A manifest's path as the source's listing has it."""
    if path.startswith("/") or ".." in path.split("/") or "://" in path:
        raise DataError(f"a path out of the source: {where}: {path}. Write paths relative to {source}.")
    name = posixpath.normpath(path)
    if name not in known:
        raise DataError(f"no such file: {where}: {path} is not in {source}. Restore it, or remove the line.")
    return name
