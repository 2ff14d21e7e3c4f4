"""The history of champions, and the only way in which the alias `champion` moves.

A move is three calls, of which only the second is seen by readers:

    1. claim the next number of the log with what is going to happen
    2. let the alias name the version
    3. claim the number's mark that it is done

A number can be claimed once, by one process of any host (append_log.py), and nobody claims the next one before the
mark is there: the claim is the lock. Who was killed before 1 has done nothing; what was claimed is finished by the next
command, at once where it sees that the claimant is dead, else after LEASE_SECONDS without a mark. It claims the entry's
inheritance first, so that of several only one moves the alias. What somebody did to the alias by other means (MLflow's
pages) is no mistake: `champion` is the authority, and the history records it.
"""

import getpass
import itertools
import json
import logging
import os
import platform
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Literal, get_args

from pipeline import tracking
from pipeline.append_log import AppendLog, find_log, open_log
from pipeline.claimant import Claimant, is_dead, this_process
from unet_core.errors import RegistryError

log = logging.getLogger(__name__)

Action = Literal["promoted", "forced", "rolled back", "found"]
#: Longer than MLflow's client tries a call (20 s, three times), so that a live claimant has ended by then.
LEASE_SECONDS = 90.0
POLL_SECONDS = 0.2
#: A reason and all that stands beside it fit into a line of the log.
MAX_REASON = 2000


@dataclass(frozen=True, kw_only=True)
class Move:
    """What shall happen."""

    action: Action
    version: str | None
    """None: no champion was found."""
    reason: str
    model_sha256: str = ""
    """Of the version's model: numbers are given anew where a registered model was deleted. Empty in old entries."""


@dataclass(frozen=True, kw_only=True)
class Entry(Move):
    """What has happened, or is about to."""

    number: int
    before: str | None
    """The champion until then."""
    by: str
    time: str
    """ISO 8601, UTC."""
    identity: str
    claimant: Claimant
    """Who finishes it: who began it, or the last heir."""
    heirs: int = 0
    is_done: bool = False
    void: str | None = None
    """Why nothing came of it."""


Decide = Callable[[Sequence[Entry]], Move]


def history(client: tracking.Client, name: str) -> tuple[Entry, ...]:
    """All entries, oldest first; the last one may be under way."""
    found = find_log(client, _title(name))
    return _read(found) if found else ()


def move_champion(client: tracking.Client, name: str, decide: Decide) -> Entry:
    """Let `champion` name what `decide` says of the history, and record it.

    `decide` is called again if others were quicker; it may raise. RegistryError where the version does not exist.
    """
    log_ = open_log(client, _title(name))
    while True:
        entries = _settle(client, name, log_)
        move = decide(entries)
        try:
            entry = _claim(log_, entries, move)
            done = entry and _finish(client, name, log_, entry)
        except RegistryError as error:
            raise RegistryError(
                f"the registry went away while champion of {name} was moved to version {move.version}: "
                f"{str(error).rstrip('.')}. It is as before or as after; `unet history` tells, and finishes what was "
                "begun."
            ) from error
        if done is not None and done.void:
            raise RegistryError(f"champion of {name} was not moved: {done.void}.")
        if done is not None:
            return done


def settle(client: tracking.Client, name: str) -> tuple[Entry, ...]:
    """Finish what a dead process left, and record what was done to the alias by other means."""
    found = find_log(client, _title(name))
    if found is None and tracking.version_by_alias(client, name, tracking.CHAMPION) is None:
        return ()
    return _settle(client, name, found or open_log(client, _title(name)))


def check_reason(reason: str) -> None:
    """RegistryError for a reason that does not fit into a line of the log."""
    if len(reason) > MAX_REASON or not reason.isprintable():
        raise RegistryError(
            f"not a reason for the history: {len(reason)} characters, {MAX_REASON} at most, or with line breaks. "
            "Say it in a sentence."
        )


def champions(entries: Sequence[Entry]) -> list[str | None]:
    """The champion and those before it, the present one last: a promotion adds one, a rollback takes away."""
    line: list[str | None] = []
    for entry in entries:
        if entry.void or not entry.is_done:
            continue
        if entry.action == "rolled back":
            while line and line[-1] != entry.version:
                line.pop()
        if not line or line[-1] != entry.version:
            line.append(entry.version)
    return line


def earlier_champions(entries: Sequence[Entry]) -> list[str]:
    """Champions before the present one (or before there was none), the last one first."""
    *earlier, present = champions(entries) or [None]
    return [version for version in reversed(earlier) if version not in (None, present)]


def is_another_model(entries: Sequence[Entry], version: tracking.Version) -> bool:
    """Whether a version has the number of a former champion, and is not that model."""
    known = [entry.model_sha256 for entry in entries if entry.version == version.number and entry.is_done]
    return bool(known) and known[-1] not in ("", version.model_sha256)


def _title(name: str) -> str:
    return f"{name} promotions"


def _settle(client: tracking.Client, name: str, log_: AppendLog) -> tuple[Entry, ...]:
    """Wait until nobody is at it; then the alias and the history agree."""
    patience = _Patience()
    while True:
        entries = _read(log_)
        if entries and not entries[-1].is_done:
            if patience.is_over(entries[-1]) and _inherit(log_, entries[-1]):
                log.warning("finishing what another process left: %s", describe(entries[-1]))
                _finish(client, name, log_, entries[-1])
            continue
        # After the history: nobody moves the alias without a claim, and the claim below fails if there was one.
        alias = tracking.version_by_alias(client, name, tracking.CHAMPION)
        number = alias.number if alias else None
        if number == (champions(entries) or [None])[-1]:
            return entries
        model = alias.model_sha256 if alias else ""
        found = Move(action="found", version=number, reason="not by this command", model_sha256=model)
        if _claim(log_, entries, found) is not None:
            log.warning("champion of %s was moved by other means: version %s", name, number)


class _Patience:
    """How long others may take: until they are seen to be dead, or have had LEASE_SECONDS on this process's clock."""

    def __init__(self) -> None:
        self._waits_for: tuple[str, int] | None = None
        self._since = 0.0

    def is_over(self, entry: Entry) -> bool:
        """Whether the entry may be finished by others; sleeps a little where not."""
        if (entry.identity, entry.heirs) != self._waits_for:
            self._waits_for, self._since = (entry.identity, entry.heirs), time.monotonic()
        if is_dead(entry.claimant) or time.monotonic() - self._since > LEASE_SECONDS:
            return True
        # Unevenly: those that wait for the same entry should not all ask at the same time.
        time.sleep(random.uniform(0.5, 1.5) * POLL_SECONDS)  # noqa: S311
        return False


def _claim(log_: AppendLog, entries: Sequence[Entry], move: Move) -> Entry | None:
    """The entry under the next number, or None where another process has it."""
    entry = Entry(
        **asdict(move),
        number=len(entries) + 1,
        before=(champions(entries) or [None])[-1],
        by=f"{_user()}@{platform.node()}",
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        identity=uuid.uuid4().hex,
        claimant=this_process(),
        # What was found is done already.
        is_done=move.action == "found",
    )
    return entry if log_.claim(_key(entry), json.dumps(asdict(entry), ensure_ascii=False)) else None


def _inherit(log_: AppendLog, entry: Entry) -> bool:
    """Whether this process, and no other, is to finish what another one left."""
    return log_.claim(_heir_key(entry.number, entry.heirs + 1), json.dumps(asdict(this_process())))


def _finish(client: tracking.Client, name: str, log_: AppendLog, entry: Entry) -> Entry:
    """Steps 2 and 3."""
    void = _set_alias(client, name, entry)
    mark = {"void": void, "claimant": asdict(this_process())}
    if not log_.claim(f"{_key(entry)}.done", json.dumps(mark)):
        # Somebody lost patience with us, and more may have happened before our late call reached the alias.
        return _put_right(client, name, log_, entry)
    return replace(entry, is_done=True, void=void)


def _set_alias(client: tracking.Client, name: str, entry: Entry) -> str | None:
    """Let the alias name the entry's version; the reason where the version is gone."""
    assert entry.version is not None
    version = tracking.version_by_number(client, name, entry.version)
    if version is None:
        return f"version {entry.version} is not in the registry"
    tracking.set_alias(client, version, tracking.CHAMPION)
    return None


def _put_right(client: tracking.Client, name: str, log_: AppendLog, late: Entry) -> Entry:
    """The alias again as the history has it, after a late call of ours; the entry as it was finished by others."""
    entries = _read(log_)
    newest = (champions(entries) or [None])[-1]
    alias = tracking.version_by_alias(client, name, tracking.CHAMPION)
    if entries[-1].is_done and newest not in (None, late.version) and alias and alias.number == late.version:
        tracking.set_alias(client, replace(alias, number=str(newest)), tracking.CHAMPION)
    return next(entry for entry in entries if entry.number == late.number)


def _read(log_: AppendLog) -> tuple[Entry, ...]:
    lines = log_.read()
    keys = sorted(key for key in lines if key.isdigit())
    return tuple(_parse(number, lines[key], lines) for number, key in enumerate(keys, 1))


def _parse(number: int, line: str, lines: Mapping[str, str]) -> Entry:
    mark = lines.get(f"{number:06d}.done")
    heirs = next(count for count in itertools.count() if _heir_key(number, count + 1) not in lines)
    try:
        body = json.loads(line)
        owner = json.loads(lines[_heir_key(number, heirs)]) if heirs else body["claimant"]
        entry = Entry(**{**body, "claimant": Claimant(**owner), "heirs": heirs})
        if entry.action not in get_args(Action) or entry.number != number:
            raise ValueError(f"not entry {number}")
        return entry if mark is None else replace(entry, is_done=True, void=json.loads(mark)["void"])
    except (ValueError, TypeError, KeyError) as error:
        raise RegistryError(
            f"the history of promotions is damaged: entry {number}: {error}. It was not written by this command; "
            "look with `make ui`."
        ) from error


def _key(entry: Entry) -> str:
    return f"{entry.number:06d}"


def _heir_key(number: int, heir: int) -> str:
    return f"{number:06d}.heir.{heir}"


def describe(entry: Entry) -> str:
    """An entry as a line for people."""
    state = f" (nothing came of it: {entry.void})" if entry.void else "" if entry.is_done else " (under way)"
    before = "" if entry.before is None else f", before version {entry.before}"
    what = "no champion" if entry.version is None else f"version {entry.version}"
    return f"{entry.number}  {entry.time}  {entry.by}  {entry.action} {what}{before}{state}: {entry.reason}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
