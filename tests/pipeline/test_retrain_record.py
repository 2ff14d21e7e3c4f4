"""Real git: a repository at `origin`, a clone that retrains, and one in which people work."""

import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.retrain_record import (
    NOBODY,
    Record,
    check_branch,
    check_name,
    committed_text,
    is_recorded,
    push_branch,
    unpushed_branch,
    update,
    write_record,
)
from unet_core.errors import StorageError

RESULTS = ("dvc.lock", "arrivals/raw.jsonl.dvc", "arrivals/.gitignore", "metrics", "models/receipt.json")
NO_LEDGER = (Path("none.jsonl"), Path("none.jsonl.dvc"))


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=ada", "-c", "user.email=ada@example.invalid")
    done = subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def write(folder: Path, **texts: str) -> None:
    names = {
        "lock": "dvc.lock",
        "code": "pipeline.py",
        "metrics": "metrics/ingest.json",
        "receipt": "models/receipt.json",
    }
    for name, text in texts.items():
        path = folder / names[name]
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", "origin.git")
    git(tmp_path, "clone", "--quiet", "origin.git", "people")
    folder = tmp_path / "people"
    write(folder, lock="old\n", code="1\n", metrics="{}\n")
    commit_and_push(folder)
    return folder


def commit_and_push(folder: Path) -> None:
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "work")
    git(folder, "push", "--quiet", "origin", "HEAD:main")


@pytest.fixture
def record(people: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """A clone on main, as a scheduler's machine has it: nobody told its git who works there."""
    for name in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL", "GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    git(people.parent, "clone", "--quiet", "origin.git", "tree")
    return Record(root=people.parent / "tree", results=RESULTS, branch="retrain")


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


def test_an_origin_that_is_away_is_told_and_what_lies_here_is_used(record: Record, people: Path) -> None:
    (people.parent / "origin.git").rename(people.parent / "away.git")
    assert update(record, *NO_LEDGER) == (False, ["origin/main can't be fetched: what lies here is used"])
    write(record.root, lock="new\n")
    write_record(record, "Retrain")
    with pytest.raises(StorageError, match=r"^git refused: push origin refs/heads/retrain:refs/heads/retrain: "):
        push_branch(record)


def test_an_origin_that_falls_silent_holds_nobody_up_for_ever(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.retrain_record.NETWORK_SECONDS", 1.0)
    write(record.root, lock="new\n")
    write_record(record, "Retrain")
    # Takes the connection, and never answers.
    with socket.create_server(("127.0.0.1", 0)) as server:
        git(record.root, "remote", "set-url", "origin", f"git://127.0.0.1:{server.getsockname()[1]}/x")
        assert update(record, *NO_LEDGER) == (False, ["origin/main can't be fetched: what lies here is used"])
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
