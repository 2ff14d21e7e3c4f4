"""What the catalog tells of samples once they are scored: what they belong to, and by which words they stand apart."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline.catalog import CatalogRow, read_catalog
from unet_core.errors import DataError
from unet_core.splits import Split, SplitConfig, Subject, unit_of

#: Columns of the catalog, beside those that the source brought, by which samples can be scored apart.
SliceColumn = Literal["stratum", "group", "batch", "size"]
SLICE_COLUMNS: tuple[SliceColumn, ...] = get_args(SliceColumn)


@dataclass(frozen=True, kw_only=True)
class Membership:
    """Of one sample."""

    group: str
    """Name of what is never divided between splits: its group, or the block of its volume."""
    slices: Mapping[str, str]
    """Word by column."""


def read_memberships(accepted: Path, split: SplitConfig, columns: Sequence[SliceColumn]) -> dict[str, Membership]:
    """Key -> membership, of all accepted samples; slices are the source's columns and `columns`."""
    found = {}
    for row in read_catalog(accepted):
        words = {column: _word(row, column) for column in columns}
        found[row.key] = Membership(
            group=unit_of(Subject(key=row.key, group=row.group, position=row.position), split),
            slices={**row.slices, **{column: word for column, word in words.items() if word is not None}},
        )
    return found


def groups_in(
    splits: Mapping[str, Split | None], memberships: Mapping[str, Membership], *wanted: Split
) -> dict[str, str]:
    """Key -> group of all samples of some splits; DataError where splits and catalog are not of one run."""
    keys = sorted(key for key, split in splits.items() if split in wanted)
    lost = [key for key in keys if key not in memberships]
    if lost:
        raise DataError(f"splits and catalog differ: {lost[0]} has a split and is not in the catalog. Run `dvc repro`.")
    return {key: memberships[key].group for key in keys}


def todays_groups(recorded: Mapping[str, str], memberships: Mapping[str, Membership]) -> Collection[str]:
    """Groups, as they are named today, of samples that were recorded with the names of then.

    Blocks may have another length by now; a sample that has left the data keeps its recorded group.
    """
    return {memberships[key].group if key in memberships else group for key, group in recorded.items()}


def _word(row: CatalogRow, column: SliceColumn) -> str | None:
    if column == "size":
        if row.height is None or row.width is None:
            return None
        # Powers of two: as many slices as people can read, and an image's slice depends on no other image.
        side = max(row.height, row.width)
        return f"up to {1 << (side - 1).bit_length()} px"
    return None if column == "stratum" and row.stratum is None else str(getattr(row, column))
