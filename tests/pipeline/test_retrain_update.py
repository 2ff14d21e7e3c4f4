"""Real git: what people push comes into the clone that retrains, or people hear why it does not."""

import subprocess
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
from pipeline.retrain_update import foresee, update
from tests.pipeline.git_clones import NO_LEDGER, commit_and_push, git, write


def test_what_people_push_comes_by_fast_forward(record: Record, people: Path) -> None:
    assert update(record, *NO_LEDGER) == (False, [])
    write(people, code="2\n")
    commit_and_push(people)
    assert update(record, *NO_LEDGER) == (True, [])
    assert (record.root / "pipeline.py").read_text() == "2\n"
    assert update(record, *NO_LEDGER) == (False, [])


def test_who_only_looks_hears_that_upstream_has_more_and_takes_nothing(record: Record, people: Path) -> None:
    assert foresee(record.root) == ""
    write(people, code="2\n")
    commit_and_push(people)
    before = git(record.root, "for-each-ref")
    text = (
        "origin/main has commits that are not here: a call takes them first where it can, and may then find more to do"
    )
    assert foresee(record.root) == text
    assert git(record.root, "for-each-ref") == before
    assert update(record, *NO_LEDGER) == (True, [])
    assert foresee(record.root) == ""
    (people.parent / "origin.git").rename(people.parent / "away")
    assert foresee(record.root).startswith("origin/main can't be asked: what lies here would be used (fatal: ")
    git(record.root, "branch", "--unset-upstream")
    assert foresee(record.root) == ""


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
