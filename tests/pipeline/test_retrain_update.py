"""Real git: what people push comes into the clone that retrains, and a kill on the way loses nothing."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.retrain_record import (
    Record,
    check_branch,
    is_recorded,
    push_branch,
    unpushed_branch,
    write_record,
)
from pipeline.retrain_update import MOVING_NAME, update
from tests.pipeline.git_clones import NO_LEDGER, commit_and_push, git, write
from unet_core.errors import StorageError


def test_what_people_push_comes_by_fast_forward(record: Record, people: Path) -> None:
    assert update(record, *NO_LEDGER) == (False, [])
    write(people, code="2\n")
    commit_and_push(people)
    assert update(record, *NO_LEDGER) == (True, [])
    assert (record.root / "pipeline.py").read_text() == "2\n"
    assert update(record, *NO_LEDGER) == (False, [])


def test_a_merged_branch_follows_main_and_goes_on(record: Record, people: Path) -> None:
    write(record.root, lock="new\n")
    write_record(record, "Retrain")
    push_branch(record)
    write(people, code="2\n")
    git(people, "commit", "--quiet", "--all", "--message", "work")
    git(people, "pull", "--quiet", "--no-rebase", "--no-edit", "origin", "retrain")
    git(people, "push", "--quiet", "origin", "HEAD:main")
    assert update(record, *NO_LEDGER) == (True, [])
    assert (record.root / "pipeline.py").read_text() == "2\n"
    assert (record.root / "dvc.lock").read_text() == "new\n"
    assert unpushed_branch(record) is None
    write(record.root, lock="newer\n")
    check_branch(record)
    write_record(record, "Retrain")
    push_branch(record)


def test_trees_that_went_apart_are_told_and_left(record: Record, people: Path) -> None:
    write(record.root, lock="new\n")
    write_record(record, "Retrain")
    write(people, code="2\n")
    commit_and_push(people)
    moved, notes = update(record, *NO_LEDGER)
    assert not moved
    assert notes == ["origin/main and this working tree went apart: merge them by hand; what lies here is used"]


@pytest.mark.parametrize("branch", [None, "retrain"])
def test_results_that_people_applied_upstream_are_no_hindrance(
    record: Record, people: Path, branch: str | None
) -> None:
    """Those of a first training, which git does not know yet, and changed ones."""
    record = replace(record, branch=branch)
    for number in (1, 2):
        new = {"lock": f"{number}\n", "receipt": f"{number}\n"}
        write(record.root, **new)
        write(people, code=f"{number}\n", **new)
        commit_and_push(people)
        assert update(record, *NO_LEDGER) == (True, [])
        assert (record.root / "pipeline.py").read_text() == f"{number}\n"
        assert is_recorded(record)
        assert git(record.root, "status", "--porcelain") == ""


def test_results_that_upstream_left_alone_stay_as_they_are(record: Record, people: Path) -> None:
    write(record.root, lock="new\n", receipt="new\n")
    write(people, code="2\n")
    commit_and_push(people)
    assert update(record, *NO_LEDGER) == (True, [])
    assert (record.root / "pipeline.py").read_text() == "2\n"
    assert (record.root / "dvc.lock").read_text() == "new\n"
    assert not is_recorded(record)


def test_other_results_upstream_are_for_people_to_choose_from(record: Record, people: Path) -> None:
    write(record.root, lock="mine\n", receipt="mine\n", metrics="the same\n")
    write(people, lock="theirs\n", receipt="theirs\n", metrics="the same\n")
    commit_and_push(people)
    moved, (note,) = update(record, *NO_LEDGER)
    assert not moved
    head, _, remedy = note.partition("here: ")
    assert head == (
        "origin/main has other results than this working tree (dvc.lock models/receipt.json): what lies here is used. "
        "Commit it there, or give it up "
    )
    assert (record.root / "dvc.lock").read_text() == "mine\n"
    subprocess.run(["bash", "-e", "-c", remedy.partition(" && ")[0]], cwd=record.root, check=True)
    assert update(record, *NO_LEDGER) == (True, [])
    assert (record.root / "models" / "receipt.json").read_text() == "theirs\n"


def test_a_result_that_both_sides_removed_is_no_hindrance(record: Record, people: Path) -> None:
    for folder in (record.root, people):
        (folder / "metrics" / "ingest.json").unlink()
    commit_and_push(people)
    assert update(record, *NO_LEDGER) == (True, [])
    assert git(record.root, "status", "--porcelain") == ""


def test_changes_beside_a_tree_in_a_folder_of_its_repository_are_told(record: Record, people: Path) -> None:
    write(people, lock="old\n", code="2\n")
    (people / "inside").mkdir()
    (people / "inside" / "dvc.lock").write_text("old\n")
    commit_and_push(people)
    assert update(record, *NO_LEDGER) == (True, [])
    write(people, code="3\n")
    commit_and_push(people)
    write(record.root, code="mine\n")
    inside = replace(record, root=record.root / "inside")
    expected = ["origin/main has new commits, but this working tree has changes: what lies here is used"]
    assert update(inside, *NO_LEDGER) == (False, expected)


def test_a_tree_with_changes_or_an_untracked_batch_is_not_updated(record: Record, people: Path) -> None:
    write(people, code="2\n")
    commit_and_push(people)
    ledger, tracked = record.root / "raw.jsonl", record.root / "raw.jsonl.dvc"
    ledger.write_text("a batch\n")
    tracked.write_text("outs:\n- md5: 00000000000000000000000000000000\n")
    expected = ["origin/main has new commits, but this working tree has changes: what lies here is used"]
    assert update(record, ledger, tracked) == (False, expected)
    write(record.root, code="mine\n")
    assert update(record, *NO_LEDGER) == (False, expected)


@pytest.fixture
def halfway(record: Record, people: Path) -> Record:
    """A clone whose update was killed between the first and the last of its files."""
    (people / "gone.py").touch()
    commit_and_push(people)
    assert update(record, *NO_LEDGER) == (True, [])
    write(people, code="2\n", lock="upstream's\n")
    (people / "gone.py").unlink()
    (people / "added.py").write_text("added\n")
    (people / "zone.py").write_text("added\n")
    commit_and_push(people)
    # git writes them in the order of their names, and asks this filter for each.
    git(record.root, "config", "filter.slow.smudge", "test ! -e hold || sleep 60; cat")
    attributes = record.root / ".git" / "info" / "attributes"
    attributes.write_text("zone.py filter=slow\n")
    (record.root / "hold").touch()
    program = (
        "from pathlib import Path; from pipeline.retrain_record import Record; "
        "from pipeline.retrain_update import update; "
        f"update(Record(root=Path({str(record.root)!r}), results={record.results!r}, branch=None), Path('x'), Path('x'))"
    )
    call = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    deadline = time.monotonic() + 30
    while (record.root / "pipeline.py").read_text() != "2\n":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(call.pid, signal.SIGKILL)
    call.wait()
    (record.root / "hold").unlink()
    # As `unet retrain` clears it.
    (record.root / ".git" / "index.lock").unlink()
    assert git(record.root, "status", "--porcelain", "--untracked-files=no").splitlines() != []
    return record


def test_an_update_that_was_killed_is_made_anew(halfway: Record) -> None:
    (halfway.root / "notes.txt").write_text("mine")
    assert update(halfway, *NO_LEDGER) == (True, [])
    assert git(halfway.root, "status", "--porcelain") == "?? notes.txt"
    assert [(halfway.root / name).read_text() for name in ("pipeline.py", "dvc.lock", "added.py", "zone.py")] == [
        "2\n",
        "upstream's\n",
        "added\n",
        "added\n",
    ]
    assert update(halfway, *NO_LEDGER) == (False, [])


@pytest.mark.parametrize("index", ["old", "new"])
def test_files_that_are_whole_need_no_stash(halfway: Record, index: str) -> None:
    """Killed when git had written its files: the newest commit is still the old one, and perhaps the index."""
    (halfway.root / "zone.py").write_text("added\n")
    if index == "new":
        git(halfway.root, "read-tree", "origin/main")
    assert update(halfway, *NO_LEDGER) == (True, [])
    assert git(halfway.root, "status", "--porcelain") == ""
    assert git(halfway.root, "stash", "list") == ""


def test_what_people_did_after_a_killed_update_is_kept(halfway: Record) -> None:
    (halfway.root / "pipeline.py").write_text("mine\n")
    (halfway.root / "added.py").write_text("mine, too\n")
    assert update(halfway, *NO_LEDGER)[0]
    assert git(halfway.root, "show", "stash@{0}:pipeline.py") == "mine"
    # Files that git did not know yet are in the stash's third commit.
    assert git(halfway.root, "show", "stash@{0}^3:added.py") == "mine, too"


def test_people_who_went_another_way_after_a_killed_update_are_left_alone(halfway: Record) -> None:
    git(halfway.root, "add", "--all", ":!zone.py")
    git(halfway.root, "commit", "--quiet", "--message", "mine")
    moved, (note,) = update(halfway, *NO_LEDGER)
    assert (moved, note.partition(":")[0]) == (False, "origin/main and this working tree went apart")
    assert git(halfway.root, "stash", "list") == ""
    assert not (halfway.root / ".unet" / MOVING_NAME).exists()


def test_a_mark_that_outlived_its_update_takes_nothing_away(record: Record) -> None:
    mark = record.root / ".unet" / MOVING_NAME
    mark.parent.mkdir()
    mark.write_text(git(record.root, "rev-parse", "HEAD"))
    write(record.root, code="mine\n")
    assert update(record, *NO_LEDGER) == (False, [])
    assert (record.root / "pipeline.py").read_text() == "mine\n"
    assert not mark.exists()


def test_an_update_that_git_refuses_leaves_what_people_have(record: Record, people: Path) -> None:
    (people / "added.py").write_text("theirs\n")
    commit_and_push(people)
    (record.root / "added.py").write_text("mine\n")
    for _ in range(2):
        with pytest.raises(StorageError, match=r"^git refused: merge .* added\.py "):
            update(record, *NO_LEDGER)
        assert (record.root / "added.py").read_text() == "mine\n"
    assert not (record.root / ".unet" / MOVING_NAME).exists()
    assert git(record.root, "stash", "list") == ""
