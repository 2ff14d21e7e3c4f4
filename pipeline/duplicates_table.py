"""The pairs of duplicates, as CSV: found by `validate`, kept together by `split`."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from unet_core.errors import DataError

COLUMNS = ["a", "b", "kind", "masks_agree"]
#: As in `unet_core.duplicates`, which is not imported: its thresholds decide nothing in the stages that read the table.
Kind = Literal["exact", "near"]
_TRUTH = {"true": True, "false": False}


@dataclass(frozen=True, kw_only=True, order=True)
class DuplicatePair:
    """Two accepted samples that show one picture."""

    a: str
    """Key of the one that came first."""
    b: str
    kind: Kind
    masks_agree: bool
    """Whether their masks say the same."""


def write_duplicates(path: Path, pairs: Iterable[DuplicatePair]) -> None:
    """Write pairs, sorted: equal pairs are equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        # All cells in quotes: Python leaves a carriage return in a name without them, and reads it as the line's end.
        writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(COLUMNS)
        writer.writerows([pair.a, pair.b, pair.kind, str(pair.masks_agree).lower()] for pair in sorted(pairs))


def read_duplicates(path: Path) -> list[DuplicatePair]:
    """Read what `write_duplicates` wrote; DataError for a table that it did not write."""
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.reader(stream)
        header = next(reader, [])
        if header != COLUMNS:
            raise DataError(
                f"not a table of duplicates: {path}: its columns are {header}, not {COLUMNS}. "
                "Run the stage validate again."
            )
        return [_read_pair(words, f"{path}, line {reader.line_num}") for words in reader]


def _read_pair(words: list[str], where: str) -> DuplicatePair:
    for kind in get_args(Kind):
        if len(words) == len(COLUMNS) and words[2] == kind and words[3] in _TRUTH:
            return DuplicatePair(a=words[0], b=words[1], kind=kind, masks_agree=_TRUTH[words[3]])
    raise DataError(
        f"not a pair of duplicates: {where}: {words}, expected two keys, exact or near, true or false. "
        "Run the stage validate again."
    )
