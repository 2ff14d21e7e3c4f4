"""Against real SQLite stores, with processes that are really killed."""

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from benchmarks.postgres import find_programs, postgres
from benchmarks.promotions import DIES, WRONG, make_versions, measure
from pipeline import history, tracking
from pipeline.append_log import open_log
from pipeline.claimant import this_process
from pipeline.history import Entry, Move, champions, describe, move_champion, settle
from unet_core.errors import RegistryError


def entry(number: int, action: str, version: str | None, **changes) -> Entry:
    made = Entry(
        action=action,
        version=version,
        reason="because",
        number=number,
        before=None,
        by="ada@host",
        time="2026-01-02T03:04:05+00:00",
        identity=f"id {number}",
        claimant=this_process(),
        is_done=True,
    )
    return replace(made, **changes)


# What follows from a history


def test_before_any_promotion_there_is_no_champion() -> None:
    assert champions([]) == []


def test_each_rollback_takes_one_champion_away() -> None:
    moves = [("promoted", "1"), ("promoted", "2"), ("forced", "3"), ("rolled back", "2"), ("rolled back", "1")]
    entries = [entry(number, *move) for number, move in enumerate(moves, 1)]
    assert [champions(entries[:count]) for count in range(1, 6)] == [
        ["1"],
        ["1", "2"],
        ["1", "2", "3"],
        ["1", "2"],
        ["1"],
    ]
    assert champions([*entries, entry(6, "promoted", "3")]) == ["1", "3"]


def test_a_rollback_past_a_deleted_version_takes_that_away_too() -> None:
    moves = [("promoted", "1"), ("promoted", "2"), ("promoted", "3"), ("found", None), ("rolled back", "1")]
    assert champions([entry(number, *move) for number, move in enumerate(moves, 1)]) == ["1"]


def test_what_is_under_way_or_void_moves_nothing() -> None:
    entries = [
        entry(1, "promoted", "1"),
        entry(2, "promoted", "2", void="gone"),
        entry(3, "forced", "3", is_done=False),
    ]
    assert champions(entries) == ["1"]


def test_an_entry_reads_as_a_line() -> None:
    assert describe(entry(7, "promoted", "3", before="2")) == (
        "7  2026-01-02T03:04:05+00:00  ada@host  promoted version 3, before version 2: because"
    )
    assert describe(entry(8, "found", None)).endswith("found no champion: because")
    assert describe(entry(8, "forced", "3", is_done=False)).endswith("forced version 3 (under way): because")
    assert describe(entry(8, "forced", "3", void="gone")).endswith("version 3 (nothing came of it: gone): because")


# In a registry


@pytest.fixture
def uri(client, tree) -> str:
    """A registry with five versions of which the first is champion."""
    uri = f"sqlite:///{tree.root / 'mlflow.db'}"
    make_versions(uri)
    return uri


def champion(client) -> str | None:
    found = tracking.version_by_alias(client, "unet", tracking.CHAMPION)
    return found.number if found else None


def promote(client, version: str) -> Entry:
    return move_champion(client, "unet", lambda _: Move(action="promoted", version=version, reason="better"))


@pytest.mark.slow
def test_a_move_is_seen_by_readers_and_recorded(client, uri: str) -> None:
    made = promote(client, "3")
    assert champion(client) == "3"
    entries = history.history(client, "unet")
    assert entries[-1] == made
    assert [(found.number, found.action, found.version, found.before) for found in entries] == [
        (1, "forced", "1", None),
        (2, "promoted", "3", "1"),
    ]
    assert all(found.is_done and found.void is None for found in entries)


@pytest.mark.slow
def test_a_version_that_was_deleted_meanwhile_is_void_and_moves_nothing(client, uri: str) -> None:
    client.delete_model_version("unet", "3")
    with pytest.raises(RegistryError) as caught:
        promote(client, "3")
    assert str(caught.value) == "champion of unet was not moved: version 3 is not in the registry."
    assert champion(client) == "1"
    assert history.history(client, "unet")[-1].void == "version 3 is not in the registry"
    assert promote(client, "2").number == 3


@pytest.mark.slow
def test_what_was_done_by_other_means_is_recorded_and_stays(client, uri: str, caplog) -> None:
    client.set_registered_model_alias("unet", "champion", "4")
    settle(client, "unet")
    assert "champion of unet was moved by other means: version 4" in caplog.text
    assert champion(client) == "4"
    assert promote(client, "2").before == "4"
    client.delete_registered_model_alias("unet", "champion")
    assert champions(settle(client, "unet")) == ["1", "4", "2", None]
    assert champion(client) is None
    assert [found.action for found in history.history(client, "unet")] == ["forced", "found", "promoted", "found"]


@pytest.mark.slow
def test_nothing_is_made_where_nobody_ever_promoted(client) -> None:
    assert settle(client, "unet") == () == history.history(client, "unet")
    assert [found.name for found in client.search_experiments()] == ["Default"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "when", "is_after"),
    [
        ("claim", "before", False),
        ("claim", "after", True),
        ("alias", "before", True),
        ("alias", "after", True),
        ("claim done", "before", True),
        ("claim done", "after", True),
    ],
)
def test_a_promoter_killed_anywhere_leaves_before_or_after_and_the_next_call_finishes(
    client, uri: str, place: str, when: str, is_after: bool
) -> None:
    done = subprocess.run([sys.executable, "-c", DIES, uri, "3", place, when], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert champion(client) in ("1", "3")
    entries = settle(client, "unet")
    assert champion(client) == ("3" if is_after else "1")
    assert [found.version for found in entries] == (["1", "3"] if is_after else ["1"])
    assert entries[-1].is_done
    made = promote(client, "2")
    assert (made.number, made.before) == (len(entries) + 1, "3" if is_after else "1")


def leave_undone(client, version: str, machine: str) -> None:
    """A claim by a process that does not go on."""
    log = open_log(client, "unet promotions")
    claimant = replace(this_process(), machine=machine)
    body = entry(2, "promoted", version, before="1", is_done=False, claimant=claimant)
    assert log.claim("000002", json.dumps(history.asdict(body)))


@pytest.mark.slow
def test_a_claim_of_another_host_is_finished_when_its_lease_is_over(client, uri: str, monkeypatch) -> None:
    leave_undone(client, "3", "elsewhere")
    monkeypatch.setattr(history, "LEASE_SECONDS", 0.3)
    slept: list[float] = []
    sleep = history.time.sleep
    monkeypatch.setattr(history.time, "sleep", lambda seconds: (slept.append(seconds), sleep(seconds)))
    assert promote(client, "2").before == "3"
    assert slept, "it was not taken away at once"
    assert [found.version for found in history.history(client, "unet")] == ["1", "3", "2"]


@pytest.mark.slow
def test_of_several_that_find_an_unfinished_claim_one_moves_the_alias(client, uri: str, monkeypatch) -> None:
    leave_undone(client, "3", "elsewhere")
    monkeypatch.setattr(history, "LEASE_SECONDS", 3.0)
    hosts = itertools.count()
    monkeypatch.setattr(history, "this_process", lambda: replace(this_process(), machine=f"host {next(hosts)}"))
    set_alias, moved = tracking.set_alias, []

    def counted(of_client, version, alias) -> None:
        moved.append(version.number)
        set_alias(of_client, version, alias)

    monkeypatch.setattr(tracking, "set_alias", counted)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: settle(tracking.connect(uri), "unet"), range(3)))
    assert moved == ["3"]
    assert [[found_entry.version for found_entry in entries] for entries in found] == [["1", "3"]] * 3
    assert all(entries[-1].heirs == 1 and entries[-1].is_done for entries in found)


@pytest.mark.slow
def test_who_was_late_leaves_the_alias_as_those_made_it_who_lost_patience(client, uri: str, monkeypatch) -> None:
    """The one thing that a lease can't exclude: the claimant slept, was finished by others, and wakes."""
    set_alias = tracking.set_alias

    def slept(late_client, version, alias) -> None:
        if version.number == "3":
            monkeypatch.setattr(tracking, "set_alias", set_alias)
            # Meanwhile, elsewhere: the entry is finished, and another promotion made.
            log = open_log(client, "unet promotions")
            history._finish(client, "unet", log, replace(history.history(client, "unet")[-1], claimant=this_process()))
            promote(client, "4")
        set_alias(late_client, version, alias)

    # The mark of the one who lost patience differs from ours.
    numbers = iter(range(100, 200))
    monkeypatch.setattr(history, "this_process", lambda: replace(this_process(), pid=next(numbers)))
    monkeypatch.setattr(tracking, "set_alias", slept)
    assert promote(client, "3").is_done
    assert champion(client) == "4"
    assert [found.version for found in history.history(client, "unet")] == ["1", "3", "4"]


@pytest.mark.slow
def test_a_registry_that_goes_away_in_the_middle_is_told_and_the_next_call_finishes(
    client, uri: str, monkeypatch
) -> None:
    def away(*_) -> None:
        raise RegistryError("MLflow refused: setting alias champion: connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "set_alias", away)
        with pytest.raises(RegistryError) as caught:
            promote(client, "3")
    assert str(caught.value) == (
        "the registry went away while champion of unet was moved to version 3: MLflow refused: setting alias champion: "
        "connection refused. It is as before or as after; `unet history` tells, and finishes what was begun."
    )
    assert champion(client) == "1"
    # It is this very process, which lives: the next one waits until the claimant's time is over.
    monkeypatch.setattr(history, "LEASE_SECONDS", 0.5)
    assert [(entry.version, entry.is_done, entry.void) for entry in history.settle(client, "unet")] == [
        ("1", True, None),
        ("3", True, None),
    ]
    assert champion(client) == "3"


@pytest.mark.slow
@pytest.mark.parametrize("line", ["{", "[]", '{"number": 2}', "{}"])
def test_a_history_that_others_wrote_into_is_named(client, uri: str, line: str) -> None:
    open_log(client, "unet promotions").claim("000002", line)
    with pytest.raises(
        RegistryError, match=r"^the history of promotions is damaged: entry 2: .* look with `make ui`\.$"
    ):
        promote(client, "2")
    assert champion(client) == "1"


@pytest.fixture
def postgres_uri(tree) -> Iterator[str]:
    if find_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres() as uri:
        make_versions(uri)
        yield uri


@pytest.mark.slow
def test_postgresql_lets_one_claim_through_and_a_killed_promoter_is_finished_there_too(postgres_uri: str) -> None:
    client = tracking.connect(postgres_uri)
    words = [sys.executable, "-c", DIES, postgres_uri, "3", "alias", "before"]
    assert subprocess.run(words, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert champion(client) == "1"
    found = measure(postgres_uri, moves=12, processes=3)
    assert {name: found[name] for name in WRONG} == {**dict.fromkeys(WRONG, 0), "unasked": 1}
    assert history.history(client, "unet")[1].version == "3"


@pytest.mark.slow
def test_many_processes_lose_no_move_and_readers_always_see_a_champion(client, uri: str) -> None:
    """`python -m benchmarks.promotions` does it with eight, a thousand times."""
    found = measure(uri, moves=24, processes=4)
    assert found["moves"] == 24
    assert found["reads"] > 0
    assert {name: found[name] for name in WRONG} == dict.fromkeys(WRONG, 0)
