"""Stage 3: accepted samples -> train, val and test, by a stable hash of the group or as the source declares."""

import csv
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.catalog import CatalogRow, read_catalog
from pipeline.duplicates_table import read_duplicates
from pipeline.json_file import write_json
from pipeline.params import load_section
from unet_core.errors import DataError
from unet_core.splits import SPLITS, Division, Leak, Split, SplitConfig, Subject, divide

log = logging.getLogger(__name__)

COLUMNS = ["key", "split"]
#: In the place of a split.
QUARANTINED = "quarantined"


def run(*, accepted: Path, duplicates: Path, splits: Path, quarantined: Path, leaks: Path, metrics: Path) -> None:
    """Write key -> split, and those that fit into none; DataError for leaks, too many of those, or an empty split."""
    config = load_section("split", SplitConfig)
    rows = read_catalog(accepted)
    pairs = read_duplicates(duplicates)
    division = divide([_subject(row) for row in rows], [(pair.a, pair.b) for pair in pairs], config)
    left_out = [{"key": key, "reason": reason} for key, reason in sorted(division.quarantined.items())]
    write_json(quarantined, left_out)
    write_json(leaks, [asdict(leak) for leak in division.leaks])
    kinds = Counter(pair.kind for pair in pairs)
    strata = _count_strata(rows, division)
    samples = Counter(division.splits.values())
    summary = {
        "samples": {split: samples[split] for split in SPLITS},
        "quarantined": len(left_out),
        "exact_pairs": kinds["exact"],
        "near_pairs": kinds["near"],
        "pairs_in_blocks": division.num_pairs_in_blocks,
        "leaks": len(division.leaks),
    }
    write_json(metrics, {**summary, "strata": strata} if strata else summary)
    _judge_leaks(division.leaks, config, leaks)
    _judge_quarantined(left_out, len(rows), config, quarantined)
    _judge_counts(samples, len({row.group for row in rows}))
    _warn_of_strata(strata)
    _tell_of_moves(splits, division.splits)
    _write_splits(splits, division)
    log.info("split: %s", ", ".join(f"{samples[split]} {split}" for split in SPLITS))


def _subject(row: CatalogRow) -> Subject:
    return Subject(
        key=row.key,
        group=row.group,
        declared=row.declared_split,
        batch=row.batch,
        stratum=row.stratum,
        position=row.position,
    )


def _judge_leaks(leaks: Sequence[Leak], config: SplitConfig, path: Path) -> None:
    if not leaks:
        return
    named = [
        f"  {leak.keys[0]} ({leak.splits[0]}) and {leak.keys[1]} ({leak.splits[1]}): {leak.bond}" for leak in leaks[:5]
    ]
    more = [f"  ... and {len(leaks) - 5} more in {path}"] if len(leaks) > 5 else []
    listed = "\n".join(named + more)
    if config.leaks == "error":
        raise DataError(
            f"leaks between declared splits: {len(leaks)} pairs of samples that belong together are in two splits, so "
            "that scores would flatter. Correct the declared splits or groups, or set split.leaks to report.\n"
            f"{listed}"
        )
    log.warning("split: %d leaks between declared splits:\n%s", len(leaks), listed)


def _judge_quarantined(left_out: Sequence[Mapping[str, str]], total: int, config: SplitConfig, path: Path) -> None:
    named = [f"  {entry['key']}: {entry['reason']}" for entry in left_out[:5]]
    more = [f"  ... and {len(left_out) - 5} more"] if len(left_out) > 5 else []
    listed = "\n".join(named + more)
    if len(left_out) > config.max_quarantined_fraction * total:
        raise DataError(
            f"{len(left_out)} of {total} samples belong to two splits, split.max_quarantined_fraction allows "
            f"{config.max_quarantined_fraction:g}. All reasons are in {path}; remove them or raise the limit.\n"
            f"{listed}"
        )
    if left_out:
        log.warning("split: %d of %d samples left out, all in %s:\n%s", len(left_out), total, path, listed)


def _judge_counts(samples: Mapping[Split, int], num_groups: int) -> None:
    empty = [split for split in SPLITS if not samples[split]]
    if empty:
        found = ", ".join(f"{samples[split]} {split}" for split in SPLITS)
        raise DataError(
            f"too few images for three splits: {num_groups} groups give {found}. Add images, "
            f"{_remedy(empty[0])}, try another split.seed, or declare splits (ingest.split_column)."
        )


def _remedy(split: Split) -> str:
    return "lower the fractions of split" if split == "train" else f"raise split.{split}_fraction"


def _count_strata(rows: Sequence[CatalogRow], division: Division) -> dict[str, dict[str, int]]:
    """Samples of each stratum in each split."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(SPLITS, 0))
    for row in rows:
        if row.stratum is not None and row.key in division.splits:
            counts[row.stratum][division.splits[row.key]] += 1
    return dict(sorted(counts.items()))


def _warn_of_strata(strata: Mapping[str, Mapping[str, int]]) -> None:
    for stratum, counts in strata.items():
        empty = [split for split in ("val", "test") if not counts[split]]
        if empty:
            log.warning(
                "split: stratum %s (%d samples) has none in %s: no score will tell how the model does there",
                stratum,
                sum(counts.values()),
                " and ".join(empty),
            )


def _tell_of_moves(path: Path, splits: Mapping[str, Split]) -> None:
    """Name samples that the last run had in another split: a model that trained on them must not be tested on them."""
    try:
        before = read_splits(path) if path.exists() else {}
    except DataError:
        # Of another version, or cut short: there is nothing to compare with.
        return
    moved = [key for key in sorted(before) if before[key] and key in splits and before[key] != splits[key]]
    if moved:
        named = ", ".join(f"{key} ({before[key]} to {splits[key]})" for key in moved[:5])
        more = f" and {len(moved) - 5} more" if len(moved) > 5 else ""
        log.warning(
            "split: %d samples moved since the last run, since the recipe changed, or samples that they belong to were "
            "removed or corrected: %s%s. Scores of models trained before are no longer comparable on them.",
            len(moved), named, more,
        )  # fmt: skip


def _write_splits(path: Path, division: Division) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        # All cells in quotes: Python leaves a carriage return in a name without them, and reads it as the line's end.
        writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(COLUMNS)
        left_out = dict.fromkeys(division.quarantined, QUARANTINED)
        writer.writerows(sorted({**division.splits, **left_out}.items()))


def read_splits(path: Path) -> dict[str, Split | None]:
    """Key -> split, as this stage wrote it; None for a sample that is left out."""
    with path.open(newline="", encoding="utf-8") as stream:
        head, *lines = list(csv.reader(stream)) or [[]]
    if head != COLUMNS:
        raise DataError(f"not a table of splits: {path}: its columns are {head}. Run `dvc repro -f -s split`.")
    known: dict[str, Split | None] = {**{split: split for split in SPLITS}, QUARANTINED: None}
    for number, line in enumerate(lines, start=2):
        if len(line) != len(COLUMNS) or line[1] not in known:
            raise DataError(f"table of splits is damaged: {path}: line {number}: {line}. Run `dvc repro -f -s split`.")
    return {key: known[word] for key, word in lines}
