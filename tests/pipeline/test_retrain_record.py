"""Real git: a repository at `origin`, a clone that retrains, and one in which people work."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.retrain_record import (
    NOBODY,
    Record,
    check_branch,
    check_name,
    committed_text,
    drop_patch,
    is_recorded,
    push_branch,
    unpushed_branch,
    write_record,
)
from pipeline.retrain_update import update
from tests.pipeline.git_clones import NO_LEDGER, RESULTS, git, write
from unet_core.errors import StorageError


def test_results_are_committed_on_a_branch_and_nothing_else_is(record: Record) -> None:
    write(record.root, lock="new\n", receipt="{}\n")
    (record.root / "notes.txt").write_text("mine")
    check_branch(record)
    assert not is_recorded(record)
    said = write_record(record, "Retrain: 3 new samples")
    assert is_recorded(record)
    assert said == f"commit {git(record.root, 'rev-parse', '--short', 'HEAD')} on branch retrain"
    assert git(record.root, "log", "-1", "--format=%s, %an, %ae") == (
        f"Retrain: 3 new samples, {NOBODY['name']}, {NOBODY['email']}"
    )
    assert git(record.root, "show", "--name-only", "--format=").split() == ["dvc.lock", "models/receipt.json"]
    assert git(record.root, "status", "--porcelain") == "?? notes.txt"
    assert committed_text(record.root, "dvc.lock") == "new\n"
    assert committed_text(record.root, "none") is None


def test_what_people_staged_stays_staged_and_their_hooks_do_not_run(record: Record) -> None:
    hook = record.root / ".git" / "hooks" / "pre-commit"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    write(record.root, lock="new\n")
    (record.root / "notes.txt").write_text("mine")
    git(record.root, "add", "notes.txt")
    write_record(record, "Retrain")
    assert git(record.root, "status", "--porcelain") == "A  notes.txt"


def test_the_next_results_go_on_top_and_reach_origin(record: Record, people: Path) -> None:
    for text in ("new\n", "newer\n"):
        write(record.root, lock=text)
        check_branch(record)
        write_record(record, f"Retrain {text}")
        assert unpushed_branch(record) == "retrain"
        push_branch(record)
        assert unpushed_branch(record) is None
    git(people, "fetch", "--quiet")
    assert git(people, "show", "origin/retrain:dvc.lock") == "newer"
    assert git(people, "rev-list", "--count", "origin/main..origin/retrain") == "2"


def test_without_an_origin_nothing_is_to_be_pushed(record: Record) -> None:
    git(record.root, "remote", "remove", "origin")
    write(record.root, lock="new\n")
    write_record(record, "Retrain")
    assert unpushed_branch(record) is None


@pytest.mark.parametrize("there", ["retrain", "retrain/x/y"])
@pytest.mark.parametrize("where", ["refs/heads/", "refs/remotes/origin/"])
def test_a_branch_that_git_has_no_room_for_is_refused_before_the_training(
    record: Record, there: str, where: str
) -> None:
    git(record.root, "update-ref", f"{where}{there}", "HEAD")
    with pytest.raises(StorageError) as caught:
        check_name(replace(record, branch="retrain/x"))
    assert str(caught.value) == (
        f"no room for branch retrain/x: there is {where}{there}. Choose another name, or remove that "
        "(`git fetch --prune` where the server has it no more)."
    )
    check_name(replace(record, branch="retrainings"))


def test_a_branch_that_is_checked_out_elsewhere_is_refused_before_the_training(record: Record, people: Path) -> None:
    place = people.parent / "a place"
    git(record.root, "worktree", "add", "--quiet", "-b", "retrain", str(place))
    with pytest.raises(StorageError) as caught:
        check_branch(record)
    assert str(caught.value) == f"branch retrain is checked out elsewhere: {place}. Choose another name."
    check_branch(replace(record, root=place))


@pytest.mark.parametrize("branch", [None, "retrain"])
def test_without_a_commit_nothing_can_be_recorded(tmp_path: Path, branch: str | None) -> None:
    git(tmp_path, "init", "--quiet")
    with pytest.raises(StorageError) as caught:
        is_recorded(Record(root=tmp_path, results=RESULTS, branch=branch))
    assert str(caught.value) == (
        f"no commit yet: {tmp_path}: git has nothing that results could be compared with. Commit params.yaml, "
        "dvc.yaml and the .dvc files, and call again."
    )


def test_an_origin_that_is_away_is_told_and_what_lies_here_is_used(record: Record, people: Path) -> None:
    (people.parent / "origin.git").rename(people.parent / "away.git")
    moved, (note,) = update(record, *NO_LEDGER)
    assert not moved
    assert note.startswith("origin/main can't be fetched: what lies here is used (fatal: '")
    write(record.root, lock="new\n")
    write_record(record, "Retrain")
    with pytest.raises(StorageError, match=r"^git refused: push origin refs/heads/retrain:refs/heads/retrain: "):
        push_branch(record)


@pytest.mark.slow
def test_an_origin_that_falls_silent_holds_nobody_up_for_ever(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.retrain_record.NETWORK_SECONDS", 1.0)
    monkeypatch.setattr("pipeline.retrain_update.NETWORK_SECONDS", 1.0)
    write(record.root, lock="new\n")
    write_record(record, "Retrain")
    # Takes the connection, and never answers.
    with socket.create_server(("127.0.0.1", 0)) as server:
        git(record.root, "remote", "set-url", "origin", f"git://127.0.0.1:{server.getsockname()[1]}/x")
        note = "origin/main can't be fetched: what lies here is used (no answer within 1 s)"
        assert update(record, *NO_LEDGER) == (False, [note])
        with pytest.raises(StorageError, match=r"^git refused: push origin .*: no answer within 1 s$"):
            push_branch(record)


def test_without_a_branch_a_patch_tells_all_and_touches_nothing(record: Record, people: Path) -> None:
    patchy = replace(record, branch=None)
    assert is_recorded(patchy)
    check_branch(patchy)
    write(record.root, lock="new\n", receipt="{}\n", code="mine\n")
    before = git(record.root, "status", "--porcelain")
    assert not is_recorded(patchy)
    assert write_record(patchy, "Retrain") == "patch .unet/retrain.patch"
    assert is_recorded(patchy)
    assert git(record.root, "status", "--porcelain").replace("?? .unet/\n", "").replace("?? .unet/", "") in before
    assert unpushed_branch(patchy) is None
    git(people, "apply", str(patchy.patch))
    assert (people / "dvc.lock").read_text() == "new\n"
    assert (people / "models" / "receipt.json").read_text() == "{}\n"
    assert (people / "pipeline.py").read_text() == "1\n"
    write(record.root, lock="newer\n")
    assert not is_recorded(patchy)


def test_a_patch_that_git_has_since_is_removed(record: Record) -> None:
    patchy = replace(record, branch=None)
    write(record.root, lock="new\n")
    write_record(patchy, "Retrain")
    drop_patch(patchy)
    assert patchy.patch.exists()
    git(record.root, "commit", "--quiet", "--all", "--message", "results")
    drop_patch(patchy)
    drop_patch(patchy)
    assert not patchy.patch.exists()


def test_a_patch_of_a_tree_below_the_repositorys_root_applies_there(record: Record) -> None:
    below = record.root / "project"
    write_all = {"lock": "a\n", "code": "1\n", "metrics": "{}\n"}
    below.mkdir()
    write(below, **write_all)
    git(record.root, "add", ".")
    git(record.root, "commit", "--quiet", "--message", "below")
    patchy = Record(root=below, results=RESULTS, branch=None)
    write(below, lock="new\n")
    write_record(patchy, "Retrain")
    write(below, lock="a\n")
    git(below, "apply", str(patchy.patch))
    assert (below / "dvc.lock").read_text() == "new\n"


def test_changes_that_made_the_results_must_be_committed_first(record: Record) -> None:
    write(record.root, lock="new\n", code="mine\n")
    with pytest.raises(StorageError) as caught:
        check_branch(record)
    assert str(caught.value) == (
        "changes that are not committed: pipeline.py: branch retrain would hold results without what made them. "
        "Commit them, or leave out --branch."
    )


def test_a_branch_with_other_commits_is_not_moved(record: Record) -> None:
    git(record.root, "switch", "--quiet", "--create", "retrain")
    write(record.root, lock="of last week\n")
    git(record.root, "commit", "--quiet", "--all", "--message", "of last week")
    git(record.root, "switch", "--quiet", "main")
    with pytest.raises(StorageError) as caught:
        check_branch(record)
    assert str(caught.value) == (
        "branch retrain has commits that are not in this working tree: refs/heads/retrain. Merge them here, or choose "
        "another name."
    )
    # Nor where they came while the pipeline ran.
    write(record.root, lock="of today\n")
    with pytest.raises(StorageError, match=r"^branch retrain has commits that are not in this working tree"):
        write_record(record, "Retrain")
    assert git(record.root, "log", "-1", "--format=%s", "retrain") == "of last week"
    git(record.root, "checkout", "--quiet", "dvc.lock")
    git(record.root, "merge", "--quiet", "retrain")
    check_branch(record)


def test_a_name_that_git_refuses_is_named(record: Record) -> None:
    with pytest.raises(StorageError) as caught:
        check_name(replace(record, branch="a..b"))
    assert str(caught.value) == "not a name for a branch: a..b. Choose another one."


def test_a_secret_in_an_address_is_not_shown(record: Record) -> None:
    git(record.root, "remote", "set-url", "origin", "http://me:secret@127.0.0.1:9/x.git")
    write(record.root, lock="new\n")
    write_record(record, "Retrain")
    with pytest.raises(StorageError) as caught:
        push_branch(record)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("depth", [[], ["--depth=1"]], ids=["one branch", "shallow"])
def test_a_clone_of_one_branch_knows_what_it_pushed_and_what_others_did(
    record: Record, people: Path, depth: list[str]
) -> None:
    origin = f"file://{people.parent / 'origin.git'}"
    git(people.parent, "clone", "--quiet", "--single-branch", *depth, origin, "narrow")
    narrow = replace(record, root=people.parent / "narrow")
    write(narrow.root, lock="new\n")
    write_record(narrow, "Retrain")
    push_branch(narrow)
    assert unpushed_branch(narrow) is None
    git(people, "fetch", "--quiet")
    git(people, "switch", "--quiet", "retrain")
    write(people, code="3\n")
    git(people, "commit", "--quiet", "--all", "--message", "work")
    git(people, "push", "--quiet", "origin", "retrain")
    assert update(narrow, *NO_LEDGER) == (False, [])
    with pytest.raises(StorageError, match=r"^branch retrain has commits that are not in this working tree"):
        check_branch(narrow)


def test_whatever_the_users_git_is_set_to_the_results_are_committed(record: Record) -> None:
    settings = {
        "status.showUntrackedFiles": "no",
        "commit.gpgsign": "true",
        "gpg.program": "false",
        "user.email": "a@b",
    }
    for name, value in settings.items():
        git(record.root, "config", name, value)
    write(record.root, receipt="{}\n")
    assert not is_recorded(record)
    write_record(record, "Retrain")
    assert is_recorded(record)
    assert git(record.root, "log", "-1", "--format=%an, %ae") == f"{NOBODY['name']}, a@b"
    push_branch(record)


@pytest.mark.parametrize("branch", [None, "retrain"])
def test_a_result_that_was_removed_is_recorded_as_such(record: Record, branch: str | None) -> None:
    record = replace(record, branch=branch)
    (record.root / "metrics" / "ingest.json").unlink()
    (record.root / "dvc.lock").unlink()
    assert not is_recorded(record)
    write_record(record, "Retrain")
    assert is_recorded(record)
    if branch is None:
        git(record.root, "stash", "--quiet")
        git(record.root, "apply", str(record.patch))
    assert not (record.root / "dvc.lock").exists()


def test_a_patch_is_of_the_files_and_not_of_what_a_textconv_shows(record: Record) -> None:
    (record.root / ".git" / "info" / "attributes").write_text("*.json diff=json\n")
    git(record.root, "config", "diff.json.textconv", "tr a-z A-Z <")
    write(record.root, metrics='{"new": 1}\n')
    patchy = replace(record, branch=None)
    write_record(patchy, "Retrain")
    git(record.root, "checkout", "--quiet", ".")
    git(record.root, "apply", str(patchy.patch))
    assert (record.root / "metrics" / "ingest.json").read_text() == '{"new": 1}\n'


def test_a_folder_outside_git_is_named(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    with pytest.raises(StorageError, match=r"^git can't read the working tree: .*/plain: fatal: not a git repository"):
        is_recorded(replace(record, root=plain))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StorageError, match=r"^git is not installed: "):
        is_recorded(record)
