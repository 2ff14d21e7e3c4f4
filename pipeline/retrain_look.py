"""A look at source, pipeline, git and registry: all that a retraining decides by.

Nothing is changed; with `may_mend`, what a kill damaged is put right, and a registry is made.
"""

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import tracking
from pipeline.arrivals import find_all_pairs, find_changes, tracked_by
from pipeline.git_process import run_git
from pipeline.ledger import Changes, present, read_ledger
from pipeline.params import load_section
from pipeline.placement import Placement
from pipeline.retrain_drift import find_drift
from pipeline.retrain_leftovers import mend_record
from pipeline.retrain_reasons import Seen
from pipeline.retrain_record import Record, is_recorded, unpushed_branch
from pipeline.retrain_standing import Standing, nowhere, read_standing
from pipeline.retrain_steps import Status, read_status, start_status
from pipeline.source import IngestConfig, Pair
from pipeline.storage import is_url
from unet_core.errors import StorageError

LOCK_FILE = "dvc.lock"


@dataclass(frozen=True, kw_only=True)
class Paths:
    """What the stages leave behind."""

    accepted: Path
    splits: Path
    shards: Path
    model: Path
    receipt: Path
    metrics: Path
    report: Path


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was found."""

    seen: Seen
    changes: Changes | None
    """What `unet add` would record; None where the ledger is not here."""
    status: Status
    standing: Standing
    client: tracking.Client | None
    """None: there is no registry yet, and it was not to be made."""

    @property
    def must_add(self) -> bool:
        """Whether source or ledger differ from what DVC knows."""
        seen = self.seen
        names = [
            name for found in (self.status.inputs, self.status.altered) for part in found.values() for name in part
        ]
        counts = (seen.new, seen.changed, seen.missing)
        return self.changes is None or any(counts) or seen.source in names or seen.ledger in names


def make_record(paths: Paths, placement: Placement, branch: str | None) -> Record:
    """Where results go: what git tracks of them."""
    ledger = Path(load_section("ingest", IngestConfig).ledger)
    ignored = ledger.with_name(".gitignore")
    names = (LOCK_FILE, tracked_by(ledger), ignored, paths.metrics, paths.receipt)
    return Record(root=placement.root, results=tuple(map(str, names)), branch=branch)


def look(paths: Paths, placement: Placement, record: Record, *, may_mend: bool) -> Look:
    """Look at everything; with `may_mend`, a lock file that DVC was killed in writing is put right, a registry made."""
    config = load_section("ingest", IngestConfig)
    # DVC takes its second while this process lists the source and asks the registry.
    process = start_status()
    try:
        pairs = find_all_pairs(config)
        client = _connect(placement, may_make=may_mend)
        standing = read_standing(client, receipt=paths.receipt, shards=paths.shards) if client else nowhere()
        status = _read_status(process, record, may_mend=may_mend)
    finally:
        process.kill()
        process.wait()
    config = replace(config, source=_as_dvc_says(config.source), ledger=_as_dvc_says(config.ledger))
    changes = _find_changes(config, pairs, status)
    counts = (changes.new, changes.changed, changes.missing) if changes else ((), (), ())
    new, changed, missing = map(len, counts)
    ended = _ended_stages(placement.root / LOCK_FILE)
    never = [stage for stage in status.inputs if stage not in ended]
    seen = Seen(
        source=config.source,
        ledger=config.ledger,
        new=new,
        changed=changed,
        missing=missing,
        is_first=not ended,
        inputs={stage: names for stage, names in status.inputs.items() if stage in ended},
        unfinished=sorted(stage for stage in {*never, *status.absent, *status.altered} if not stage.endswith(".dvc")),
        is_recorded=is_recorded(record),
        unpushed=unpushed_branch(record),
        champion=standing.champion.number if standing.champion else None,
        champion_age_days=standing.champion_age_days,
        is_judged=_is_judged(standing, paths),
        interrupted=standing.memory.reasons if standing.memory else (),
        drift=find_drift(standing, paths.shards, placement, may_store=may_mend),
        is_half_moved=standing.is_half_moved,
    )
    return Look(seen=seen, changes=changes, status=status, standing=standing, client=client)


def _as_dvc_says(place: str) -> str:
    return place if is_url(place) else str(Path(place))


def _ended_stages(lock_file: Path) -> list[str]:
    """Names of the stages that ended once; read by pattern, since the door to YAML takes a while for so long a file."""
    return _stages_of(lock_file.read_text(encoding="utf-8", errors="replace") if lock_file.exists() else "")


def _stages_of(lock: str) -> list[str]:
    return re.findall(r"^  ([\w-]+):$", lock, re.MULTILINE)


def _connect(placement: Placement, *, may_make: bool) -> tracking.Client | None:
    database = placement.tracking_uri.removeprefix("sqlite:///")
    if not may_make and database != placement.tracking_uri and not Path(database).exists():
        return None
    return tracking.connect(placement.tracking_uri, placement.experiment)


def _read_status(process: "subprocess.Popen[str]", record: Record, *, may_mend: bool) -> Status:
    if may_mend and _is_cut(record):
        # DVC would take stages that have run for new ones; two of it would be in each other's way.
        process.kill()
        process.communicate()
        mend_record(record.root, LOCK_FILE)
        return read_status(start_status())
    try:
        return read_status(process)
    except StorageError as error:
        files = [name for name in record.results if name.endswith((LOCK_FILE, ".dvc")) and name in str(error)]
        # A merge that a person has to end is no damage.
        damaged = [name for name in files if b"<<<<<<<" not in (record.root / name).read_bytes()]
        if not may_mend or not damaged:
            raise
        for name in damaged:
            mend_record(record.root, name)
        return read_status(start_status())


def _is_cut(record: Record) -> bool:
    """Whether the lock file ends before stages that git's has behind: DVC was killed in writing it."""
    here = _ended_stages(record.root / LOCK_FILE)
    there = _stages_of(run_git(record.root, "show", f"HEAD:./{LOCK_FILE}").stdout.decode(errors="replace"))
    return bool(here) and len(here) < len(there) and here == there[: len(here)]


def _find_changes(config: IngestConfig, pairs: Sequence[Pair], status: Status) -> Changes | None:
    """What is new; files are only read where names or DVC's status tell that something is."""
    ledger = Path(config.ledger)
    if not ledger.exists():
        return None if tracked_by(ledger).exists() else find_changes(config, pairs)
    recorded = present(read_ledger(ledger))
    same_names = recorded.keys() == {pair.key for pair in pairs}
    if same_names and not _speak_of(config, status):
        return Changes(new=(), changed=(), missing=())
    return find_changes(config, pairs)


def _speak_of(config: IngestConfig, status: Status) -> bool:
    found: Iterable[tuple[str, ...]] = [*status.inputs.values(), *status.absent.values(), *status.altered.values()]
    return any(config.source in names or config.ledger in names for names in found)


def _is_judged(standing: Standing, paths: Paths) -> bool | None:
    if standing.version is None:
        # A receipt without a version: this registry lacks it, and the gate makes it anew.
        return False if paths.receipt.exists() else None
    return standing.answer is not None or standing.is_champion
