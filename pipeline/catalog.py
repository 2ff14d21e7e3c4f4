"""The catalog: one row a sample, as Parquet; written by `ingest`, completed by `validate`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
        ("stratum", pyarrow.string()),
        ("position", pyarrow.int64()),
        ("slices", pyarrow.map_(pyarrow.string(), pyarrow.string())),
        ("batch", pyarrow.int64()),
        ("batch_pixels", pyarrow.int64()),
        ("image_sha256", pyarrow.string()),
        ("mask_sha256", pyarrow.string()),
        ("height", pyarrow.int64()),
        ("width", pyarrow.int64()),
        ("class_pixels", pyarrow.list_(pyarrow.int64())),
        ("channel_sums", pyarrow.list_(pyarrow.uint64())),
        ("channel_square_sums", pyarrow.list_(pyarrow.uint64())),
    ]
)


@dataclass(frozen=True, kw_only=True)
class CatalogRow:
    """One sample."""

    key: str
    image: str
    """Path below the source."""
    masks: tuple[str, ...]
    """Paths below the source, or FILE.json#ID for an image's COCO annotations."""
    group: str
    declared_split: str | None
    stratum: str | None = None
    """What each split should hold its share of."""
    position: int | None = None
    """Place of a slice in its volume, or of a frame in its video."""
    slices: Mapping[str, str] = field(default_factory=dict)
    """Word by column: samples of one word are scored apart too."""
    batch: int
    """In which batch of the ledger it first came."""
    batch_pixels: int = 0
    """Pixels of all samples that first came in that batch, those removed since included: it never changes."""
    image_sha256: str
    mask_sha256: str
    height: int | None = None
    """Pixels; known once validated, as is the width."""
    width: int | None = None
    class_pixels: tuple[int, ...] = ()
    """Known once validated, as are the sums; see `packing.Counts`."""
    channel_sums: tuple[int, ...] = ()
    channel_square_sums: tuple[int, ...] = ()


def write_catalog(path: Path, rows: Sequence[CatalogRow]) -> None:
    """Write rows in their order; equal rows are equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A map is written as its sorted items: equal rows are equal bytes, whatever their order.
    bodies = [{**asdict(row), "slices": sorted(row.slices.items())} for row in rows]
    table = pyarrow.Table.from_pylist(bodies, schema=SCHEMA)
    parquet.write_table(table, path)


def read_catalog(path: Path) -> list[CatalogRow]:
    """Read all rows."""
    rows = parquet.read_table(path, schema=SCHEMA).to_pylist()
    lists = ("masks", "class_pixels", "channel_sums", "channel_square_sums")
    return [
        CatalogRow(**{**row, **{name: tuple(row[name]) for name in lists}, "slices": dict(row["slices"])})
        for row in rows
    ]
