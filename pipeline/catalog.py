"""The catalog: one row a sample, as Parquet; written by `ingest`, completed by `validate`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow
from pyarrow import parquet

SCHEMA = pyarrow.schema(
    [
        ("key", pyarrow.string()),
        ("image", pyarrow.string()),
        ("masks", pyarrow.list_(pyarrow.string())),
        ("group", pyarrow.string()),
        ("declared_split", pyarrow.string()),
        ("batch", pyarrow.int64()),
        ("image_sha256", pyarrow.string()),
        ("mask_sha256", pyarrow.string()),
        ("height", pyarrow.int64()),
        ("width", pyarrow.int64()),
        ("channels", pyarrow.int64()),
        ("batch_pixels", pyarrow.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class CatalogRow:
    """One sample."""

    key: str
    image: str
    """Path below the source."""
    masks: tuple[str, ...]
    group: str
    declared_split: str | None
    batch: int
    """In which batch of the ledger it first came."""
    image_sha256: str
    mask_sha256: str
    height: int | None = None
    """Pixels; known once validated, as are width and channels."""
    width: int | None = None
    channels: int | None = None
    batch_pixels: int = 0
    """Pixels of its whole batch as recorded at arrival, samples included that were removed since."""


def write_catalog(path: Path, rows: Sequence[CatalogRow]) -> None:
    """Write rows in their order; equal rows are equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
    parquet.write_table(table, path)


def read_catalog(path: Path) -> list[CatalogRow]:
    """Read all rows."""
    rows = parquet.read_table(path, schema=SCHEMA).to_pylist()
    return [CatalogRow(**{**row, "masks": tuple(row["masks"])}) for row in rows]
