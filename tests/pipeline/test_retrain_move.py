"""Real git and real kills: the tree moves to upstream's commits as a whole or not at all, and nobody loses anything."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.retrain_move import ASIDE_NAME, MARK_NAME
from pipeline.retrain_record import Record
from pipeline.retrain_update import update
from tests.pipeline.git_clones import NO_LEDGER, commit_and_push, git, write
from unet_core.errors import StorageError

#: git writes files in the order of their names; this one's filter holds it up, or fails.
LAST = "zone.py"


@pytest.fixture
def ahead(record: Record, people: Path) -> Record:
    """A clone whose upstream has changed, added and removed files, a result among them."""
    (people / "gone.py").touch()
    (people / "file").touch()
    (people / "folder").mkdir()
    (people / "folder" / "inside").touch()
    commit_and_push(people)
    assert update(record, *NO_LEDGER) == (True, [])
    write(people, code="2\n", lock="upstream's\n")
    (people / "gone.py").unlink()
    # A file becomes a folder, and a folder a file.
    (people / "file").unlink()
    (people / "file").mkdir()
    (people / "file" / "inside").write_text("added\n")
    (people / "folder" / "inside").unlink()
    (people / "folder").rmdir()
    (people / "folder").write_text("added\n")
    for name in ("added.py", "a name, *.py", LAST):
        (people / name).write_text("added\n")
    commit_and_push(people)
    (record.root / ".git" / "info" / "exclude").write_text(".unet/\n")
    return record


def check_moved(record: Record) -> None:
    assert git(record.root, "status", "--porcelain") == ""
    assert git(record.root, "rev-parse", "HEAD") == git(record.root, "rev-parse", "origin/main")
    assert (record.root / "folder").read_text() == "added\n"
    assert not (record.root / ".unet" / MARK_NAME).exists()
    assert update(record, *NO_LEDGER) == (False, [])


def update_and_kill(record: Record) -> None:
    """Kill an update, and its git, when all files but the last are written."""
    git(record.root, "config", "filter.slow.smudge", "touch .git/held; sleep 60; cat")
    attributes = record.root / ".git" / "info" / "attributes"
    attributes.write_text(f"{LAST} filter=slow\n")
    program = (
        "from pathlib import Path; from pipeline.retrain_record import Record; "
        "from pipeline.retrain_update import update; "
        f"update(Record(root=Path({str(record.root)!r}), results={record.results!r}, branch=None), Path('x'), Path('x'))"
    )
    call = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    deadline = time.monotonic() + 30
    while not (record.root / ".git" / "held").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(call.pid, signal.SIGKILL)
    call.wait()
    attributes.unlink()
    # As `unet retrain` clears it.
    (record.root / ".git" / "index.lock").unlink()
    assert "added.py" in git(record.root, "status", "--porcelain")


@pytest.fixture
def halfway(ahead: Record) -> Record:
    """A clone whose move was killed before the last of its files."""
    update_and_kill(ahead)
    return ahead


def test_a_killed_move_is_brought_to_its_end(halfway: Record) -> None:
    (halfway.root / "notes.txt").write_text("mine")
    # One that git had begun to write.
    (halfway.root / LAST).write_text("ad")
    assert update(halfway, *NO_LEDGER) == (True, [])
    assert git(halfway.root, "status", "--porcelain") == "?? notes.txt"
    (halfway.root / "notes.txt").unlink()
    check_moved(halfway)


@pytest.mark.parametrize("index", ["old", "new"])
def test_killed_when_all_files_are_written(halfway: Record, index: str) -> None:
    (halfway.root / LAST).write_text("added\n")
    if index == "new":
        git(halfway.root, "read-tree", "origin/main")
    assert update(halfway, *NO_LEDGER) == (True, [])
    check_moved(halfway)


def test_killed_before_the_first_file(ahead: Record) -> None:
    git(ahead.root, "fetch", "--quiet")
    mark = ahead.root / ".unet" / MARK_NAME
    mark.parent.mkdir(exist_ok=True)
    mark.write_text(git(ahead.root, "rev-parse", "origin/main"))
    assert update(ahead, *NO_LEDGER) == (True, [])
    check_moved(ahead)


def delete(path: Path) -> None:
    path.unlink()


def replace_by_a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "mine").write_text("mine\n")


@pytest.mark.parametrize(
    ("name", "change", "kept"),
    [
        ("pipeline.py", lambda path: path.write_text("mine\n"), "pipeline.py"),
        ("added.py", lambda path: path.write_text("mine\n"), "added.py"),
        ("dvc.lock", lambda path: path.write_text("mine\n"), "dvc.lock"),
        ("gone.py", lambda path: path.write_text("mine\n"), "gone.py"),
        (LAST, replace_by_a_folder, f"{LAST}/mine"),
        ("pipeline.py", lambda path: path.chmod(0o755), None),
        ("pipeline.py", delete, None),
        ("added.py", delete, None),
    ],
    ids=["changed", "added", "result", "removed", "folder", "mode", "deleted", "deleted anew"],
)
def test_what_people_did_since_is_put_aside_and_they_hear_of_it(
    halfway: Record, name: str, change: Callable[[Path], None], kept: str | None
) -> None:
    change(halfway.root / name)
    (halfway.root / "dvc.yaml").write_text("mine, of which the move knows nothing\n")
    assert update(halfway, *NO_LEDGER) == (True, [])
    assert git(halfway.root, "status", "--porcelain") == "?? dvc.yaml"
    (halfway.root / "dvc.yaml").unlink()
    aside = halfway.root / ".unet" / ASIDE_NAME
    if kept is None:
        assert not aside.exists()
    else:
        assert (aside / kept).read_text() == "mine\n"
        note = f"files that were in the way of an update lie in {aside}: take what is yours, and remove the folder"
        assert update(halfway, *NO_LEDGER) == (False, [note])
        (aside / kept).unlink()
        aside.rename(halfway.root.parent / "taken")
    check_moved(halfway)


def test_a_result_that_nobody_committed_outlives_kill_and_move(ahead: Record) -> None:
    git(ahead.root, "config", "merge.autoStash", "true")
    write(ahead.root, receipt="of a training\n")
    update_and_kill(ahead)
    assert update(ahead, *NO_LEDGER) == (True, [])
    assert (ahead.root / "models" / "receipt.json").read_text() == "of a training\n"
    assert git(ahead.root, "status", "--porcelain") == "?? models/"


def test_people_who_went_another_way_after_a_kill_are_left_alone(halfway: Record) -> None:
    git(halfway.root, "add", "--all")
    git(halfway.root, "commit", "--quiet", "--message", "mine")
    moved, (note,) = update(halfway, *NO_LEDGER)
    assert (moved, note.partition(":")[0]) == (False, "origin/main and this working tree went apart")
    assert not (halfway.root / ".unet" / MARK_NAME).exists()


def test_another_branch_does_not_move_with_the_mark_of_this_one(halfway: Record) -> None:
    git(halfway.root, "stash", "--quiet", "--include-untracked")
    git(halfway.root, "switch", "--quiet", "--create", "release", "--no-track", "HEAD")
    before = git(halfway.root, "rev-parse", "HEAD")
    assert update(halfway, *NO_LEDGER) == (False, [])
    assert git(halfway.root, "rev-parse", "HEAD") == before


def test_a_mark_that_outlived_its_move_takes_nothing_away(record: Record) -> None:
    mark = record.root / ".unet" / MARK_NAME
    mark.parent.mkdir()
    mark.write_text(git(record.root, "rev-parse", "HEAD"))
    write(record.root, code="mine\n")
    assert update(record, *NO_LEDGER) == (False, [])
    assert (record.root / "pipeline.py").read_text() == "mine\n"
    assert not mark.exists()


@pytest.mark.parametrize("ignored", ["", "added.py\n"], ids=["untracked", "ignored"])
def test_a_move_that_git_refuses_leaves_what_people_have(ahead: Record, ignored: str) -> None:
    (ahead.root / ".git" / "info" / "exclude").write_text(f".unet/\n{ignored}")
    (ahead.root / "added.py").write_text("mine\n")
    for _ in range(2):
        with pytest.raises(StorageError, match=r"^git refused: merge .* added\.py "):
            update(ahead, *NO_LEDGER)
        assert (ahead.root / "added.py").read_text() == "mine\n"
    assert not (ahead.root / ".unet" / MARK_NAME).exists()


def test_a_move_that_fails_halfway_is_brought_to_its_end_when_it_can(ahead: Record) -> None:
    """As on a full disk: git says that it failed, and leaves what it has written."""
    git(ahead.root, "config", "filter.full.smudge", "false")
    git(ahead.root, "config", "filter.full.required", "true")
    attributes = ahead.root / ".git" / "info" / "attributes"
    attributes.write_text(f"{LAST} filter=full\n")
    for _ in range(2):
        with pytest.raises(StorageError, match=r"^git refused: "):
            update(ahead, *NO_LEDGER)
    attributes.unlink()
    assert update(ahead, *NO_LEDGER) == (True, [])
    check_moved(ahead)
