"""`unet add` and `unet shapes`: data arrive. Recording is an explicit act; every stage follows from the record."""

import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pipeline.command import say
from pipeline.dvc_process import dvcs_reason, run_dvc
from pipeline.ledger import Changes, append, compare, read_ledger
from pipeline.listing import find_pairs
from pipeline.params import load_section
from pipeline.progress import progress
from pipeline.public_text import public
from pipeline.source import IngestConfig, Pair
from unet_core.errors import DataError, StorageError
from unet_core.samples import ClassMap
from unet_core.synthetic import SHAPE_NAMES, draw_shapes

log = logging.getLogger(__name__)


def add(*, allow_removal: bool = False) -> None:
    """Record what is new or changed in the source as a batch, and let DVC track the ledger."""
    config = load_section("ingest", IngestConfig)
    record(config, find_changes(config, find_all_pairs(config)), allow_removal=allow_removal)


def find_all_pairs(config: IngestConfig) -> list[Pair]:
    """All pairs of the recipe's source."""
    return find_pairs(config.source, config, load_section("masks", ClassMap))


def find_changes(config: IngestConfig, pairs: Sequence[Pair]) -> Changes:
    """What a new batch would record; every file of the source is read."""
    ledger = Path(config.ledger)
    if tracked_by(ledger).exists() and not ledger.exists():
        raise DataError(f"the ledger is recorded in git but not here: {ledger}. Run `dvc pull` before you add to it.")
    return compare(read_ledger(ledger) if ledger.exists() else [], pairs, config.source)


def record(config: IngestConfig, changes: Changes, *, allow_removal: bool = False) -> None:
    """Append the changes to the ledger, and let DVC track it."""
    ledger = Path(config.ledger)
    if changes.missing and not allow_removal:
        raise DataError(
            f"recorded samples are missing from {public(config.source)}: {changes.missing[0].key}"
            f"{f' and {len(changes.missing) - 1} more' if len(changes.missing) > 1 else ''}. "
            "Restore them, or record their removal with `unet add --allow-removal`."
        )
    lines = [*changes.new, *changes.changed, *changes.missing]
    if lines:
        append(ledger, lines)
        say(
            f"batch {lines[0].batch} recorded in {ledger}: {len(changes.new)} new, {len(changes.changed)} changed, "
            f"{len(changes.missing)} removed"
        )
    else:
        say(f"nothing new in {public(config.source)}")
    # Always: an earlier attempt may have written the ledger and not reached DVC.
    _track(ledger)


def tracked_by(ledger: Path) -> Path:
    """The file in git by which DVC knows the ledger."""
    return ledger.with_name(ledger.name + ".dvc")


def _track(ledger: Path) -> None:
    done = run_dvc("add", str(ledger))
    if done.returncode:
        why = dvcs_reason(done.stderr, done.returncode)
        raise StorageError(f"DVC can't track the ledger {ledger}: {why}. Mend it, then try again.")


def draw_source(folder: Path, *, count: int, seed: int) -> None:
    """Write the tutorial's shapes as files, one folder of masks per shape; files that are there already stay."""
    if count < 1 or seed < 0:
        raise DataError(f"--count {count} --seed {seed}: the count is at least 1, the seed not negative.")
    for number in progress(range(count), total=count, label="shapes", unit="images"):
        image, masks = draw_shapes(seed=seed, number=number)
        name = f"{number:05d}.png"
        targets = [folder / "images" / name, *(folder / "masks" / shape / name for shape in SHAPE_NAMES)]
        pictures = [image, *(masks[..., plane] * 255 for plane in range(len(SHAPE_NAMES)))]
        for target, picture in zip(targets, pictures, strict=True):
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_suffix(".partial")
                Image.fromarray(picture).save(partial, format="PNG")
                partial.replace(target)
    say(f"{count} pictures of shapes in {folder}")
