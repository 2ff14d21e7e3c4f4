"""Stage 3: accepted samples -> train, val and test, by a stable hash of the group or as the source declares."""

import csv
import json
import logging
from collections import Counter
from pathlib import Path

from pipeline.catalog import read_catalog
from pipeline.params import load_section
from unet_core.errors import DataError
from unet_core.splits import SPLITS, Split, SplitConfig, assign_split

log = logging.getLogger(__name__)


def run(*, accepted: Path, splits: Path, metrics: Path) -> None:
    """Write key -> split; DataError if one of the three splits gets nothing."""
    config = load_section("split", SplitConfig)
    rows = read_catalog(accepted)
    assigned = {row.key: assign_split(row.group, row.declared_split, config) for row in rows}
    counts = Counter(assigned.values())
    empty = [split for split in SPLITS if not counts[split]]
    if empty:
        found = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
        raise DataError(
            f"too few images for three splits: {len({row.group for row in rows})} groups give {found}. Add images, "
            f"{_remedy(empty[0])}, try another split.seed, or declare splits (ingest.split_column)."
        )
    splits.parent.mkdir(parents=True, exist_ok=True)
    with splits.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["key", "split"])
        writer.writerows(sorted(assigned.items()))
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps({split: counts[split] for split in SPLITS}, indent=1) + "\n", encoding="utf-8")
    log.info("split: %s", ", ".join(f"{counts[split]} {split}" for split in SPLITS))


def _remedy(split: Split) -> str:
    return "lower the fractions of split" if split == "train" else f"raise split.{split}_fraction"


def read_splits(path: Path) -> dict[str, Split]:
    """Key -> split, as this stage wrote it."""
    with path.open(newline="", encoding="utf-8") as stream:
        found = {row["key"]: row["split"] for row in csv.DictReader(stream)}
    return {key: split for key, word in found.items() for split in SPLITS if split == word}
