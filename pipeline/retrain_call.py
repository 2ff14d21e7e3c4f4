"""One call of `unet retrain`, with the lock held.

    update, pull -> look -> add -> reproduce -> push -> record (branch or patch) -> gate -> tell

Killed at any moment, the next call goes on: but while git moves the tree, no file says how far it came. Each step is
done where a look at source, DVC, git and registry tells that it is needed, and doing it twice changes nothing.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.arrivals import add, record, tracked_by
from pipeline.command import say
from pipeline.params import load_section
from pipeline.placement import DVC_REMOTE, Placement
from pipeline.retrain_failure import tell_of_failure, to_sentence
from pipeline.retrain_leftovers import clear_leftovers
from pipeline.retrain_look import Look, Paths, look, make_record
from pipeline.retrain_reasons import Reason, find_reasons, is_stale, join_reasons, say_idle
from pipeline.retrain_record import (
    added_samples,
    check_branch,
    check_name,
    drop_patch,
    is_recorded,
    push_branch,
    unpushed_branch,
    write_record,
)
from pipeline.retrain_standing import (
    Memory,
    conclude,
    forget,
    forget_reasons,
    note_reasons,
    nowhere,
    read_standing,
    read_verdict,
    remember,
)
from pipeline.retrain_steps import has_remote, pull, push, reproduce, reproduce_there
from pipeline.retrain_summary import Outcome, Scored, Summary, write_summary
from pipeline.retrain_update import update
from pipeline.source import IngestConfig
from pipeline.time_limit import stop_clock, time_limit
from pipeline.tracking import Client
from pipeline.webhook import call_webhook
from unet_core.errors import UnetError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the scheduler asks for."""

    branch: str | None = None
    """Where results are committed; None: a patch file."""
    submit: bool = False
    """Whether a Ray cluster reproduces the pipeline, as a job."""
    wait: bool = False
    max_age_days: float | None = None
    """Of the champion; None: however old."""
    force: str | None = None
    """Why to act without a reason of its own."""
    time_limit_hours: float | None = None
    dry_run: bool = False


class Retraining:
    """One call, with the lock held."""

    def __init__(self, ask: Request, paths: Paths, placement: Placement, lock: int) -> None:
        self._ask, self._paths, self._placement, self._lock = ask, paths, placement, lock
        self._record = make_record(paths, placement, ask.branch)
        self._ledger = Path(load_section("ingest", IngestConfig).ledger)
        self._began = now()
        self._seconds: dict[str, float] = {}
        self._notes: list[str] = []
        self._reasons: Sequence[Reason] = ()
        self._recorded: str | None = None
        self._standing = nowhere()
        self._memory: Memory | None = None

    def run(self) -> Outcome:
        """All steps that are needed; people hear of a failure too."""
        try:
            with time_limit(self._ask.time_limit_hours):
                return self._decide()
        except Exception as error:
            summary = self._summarize("failed", to_sentence(error))
            tell_of_failure(summary, report=self._paths.report, webhook=self._placement.webhook)
            raise

    def _decide(self) -> Outcome:
        clear_leftovers(self._placement.root)
        self._update()
        check_name(self._record)
        found = self._look()
        self._standing = found.standing
        self._reasons = find_reasons(found.seen, max_age_days=self._ask.max_age_days, force=self._ask.force)
        if not self._reasons:
            self._tidy()
            summary = self._summarize("nothing to do", say_idle(found.seen, found.standing.model))
            write_summary(summary, self._paths.report)
            if self._notes:
                # Such as that upstream can't be taken: by themselves such things do not end.
                call_webhook(self._placement.webhook, summary.body())
            say(summary.line)
            return "nothing to do"
        check_branch(self._record)
        if (found.must_add or is_stale(found.seen)) and (error := refusal(self._placement.root)):
            raise error
        say(f"retraining: {join_reasons(self._reasons)}")
        return self._act(found)

    def _update(self) -> None:
        with self._timed("update"):
            moved, notes = update(self._record, self._ledger, tracked_by(self._ledger))
        self._notes += notes
        if moved:
            # Modules of two commits must not mix in one process. The lock is free until the new one takes it.
            sys.stdout.flush()
            stop_clock()
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606

    def _look(self) -> Look:
        with self._timed("look"):
            found = look(self._paths, self._placement, self._record, may_mend=True)
        if not (found.status.absent or found.status.altered) or not has_remote(self._lock):
            return found
        with self._timed("pull"):
            pull(found.status, self._lock)
        with self._timed("look"):
            return look(self._paths, self._placement, self._record, may_mend=True)

    def _tidy(self) -> None:
        """Nothing is under way any more."""
        forget_reasons(self._placement.state_dir)
        drop_patch(self._record)

    def _act(self, found: Look) -> Outcome:
        if found.must_add:
            with self._timed("add"):
                if found.changes is None:
                    # Git knows the ledger and it is not here: this tells.
                    add()
                else:
                    record(load_section("ingest", IngestConfig), found.changes)
        # Samples that can't be recorded are asked for by each call.
        self._reasons = note_reasons(self._placement.state_dir, self._reasons)
        if found.must_add or is_stale(found.seen):
            with self._timed("reproduce"):
                self._reproduce(self._placement.state_dir)
        self._stand(found)
        self._memory = memory = self._remember(found)
        # Also what people have committed and did not push: nobody could rebuild a champion of it.
        self._push()
        if not is_recorded(self._record):
            self._write_record(memory)
        if (branch := unpushed_branch(self._record)) is not None:
            with self._timed("push branch"):
                push_branch(self._record)
            log.info("branch %s is at origin", branch)
        if self._ask.force is not None or self._standing.is_open:
            with self._timed("gate"):
                self._promote()
            self._stand(found)
        outcome, sentence = conclude(self._standing, memory)
        # It trains nothing, so people must act: chat programs show them this sentence alone.
        sentence = "; ".join([sentence, *(reason.text for reason in self._reasons if reason.kind == "drift")])
        summary = self._summarize(outcome, sentence)
        write_summary(summary, self._paths.report)
        call_webhook(self._placement.webhook, summary.body())
        self._tidy()
        if self._standing.version is not None:
            forget(_client(found), self._standing.version)
        say(summary.line)
        return outcome

    def _reproduce(self, state_dir: Path) -> None:
        if self._ask.submit:
            reproduce_there(self._lock, state_dir / "retrain.log")
            return
        if self._placement.shards == DVC_REMOTE:
            # From there the training's workers read.
            reproduce(self._lock, state_dir / "retrain-shard.log", stage="shard")
            push(self._lock)
        reproduce(self._lock, state_dir / "retrain.log")

    def _stand(self, found: Look) -> None:
        """Look again how the model stands, which may be another one now."""
        self._standing = read_standing(_client(found), receipt=self._paths.receipt, shards=self._paths.shards)

    def _remember(self, found: Look) -> Memory:
        """Leave a note in the registry, or take up the one that an earlier call left."""
        standing, earlier = self._standing, self._standing.memory
        memory = Memory(
            reasons=earlier.reasons if earlier else tuple(reason.text for reason in self._reasons),
            samples=added_samples(self._placement.root, self._paths.metrics) or (earlier.samples if earlier else {}),
            was_champion=earlier.was_champion if earlier else standing.is_champion,
        )
        if earlier is None and standing.version is not None:
            remember(_client(found), standing.version, memory)
        return memory

    def _write_record(self, memory: Memory) -> None:
        with self._timed("record"):
            counts = [f"{count} {word}" for word, count in memory.samples.items() if count]
            title = f"Retrain: {', '.join(counts)} samples" if counts else f"Retrain: {memory.reasons[0]}"[:72]
            self._recorded = write_record(self._record, "\n\n".join([title, "\n".join(memory.reasons)]))
        say(f"results: {self._recorded}")

    def _push(self) -> None:
        if has_remote(self._lock):
            with self._timed("push"):
                push(self._lock)

    def _promote(self) -> None:
        # They import torch, which takes seconds; with nothing to do there is no need.
        from pipeline.judging import DataPaths
        from pipeline.promote import Request as Gate
        from pipeline.promote import promote

        paths = self._paths
        data = DataPaths(accepted=paths.accepted, splits=paths.splits, shards=paths.shards)
        promote(data=data, model=paths.model, receipt=paths.receipt, report=paths.report, ask=Gate())

    def _summarize(self, outcome: Outcome, sentence: str) -> Summary:
        standing = self._standing
        # An idle call was about none of what was judged before.
        verdict = {} if outcome == "nothing to do" else read_verdict(self._paths.report, standing)
        return Summary(
            outcome=outcome,
            sentence=sentence,
            model=standing.model,
            time=self._began,
            reasons=tuple(self._reasons),
            samples=self._memory.samples if self._memory else {},
            challenger=Scored(
                version=standing.version.number if standing.version else None, score=verdict.get("challenger")
            ),
            against=Scored(version=verdict.get("against"), score=verdict.get("champion")),
            champion=standing.champion.number if standing.champion else None,
            recorded=self._recorded,
            seconds={name: round(seconds, 2) for name, seconds in self._seconds.items()},
            notes=tuple(self._notes),
        )

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[step] = self._seconds.get(step, 0.0) + time.monotonic() - started


def now() -> str:
    """ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def refusal(root: Path) -> UnetError | None:
    """Why no stage should begin, or None."""
    # It imports torch, which takes seconds.
    from pipeline.recipe_check import find_refusal

    return find_refusal(root)


def _client(found: Look) -> Client:
    assert found.client is not None, "only a dry run goes without a registry"
    return found.client
