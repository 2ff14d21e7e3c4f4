"""What killed tools leave behind, made by hand, in real repositories."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline import retrain_leftovers
from pipeline.retrain_leftovers import clear_leftovers, mend_record

#: Clears what lies in argv[1], with little patience.
CLEAR = """
import sys
from pathlib import Path
from pipeline import retrain_leftovers
retrain_leftovers.PATIENCE_SECONDS = 0.5
retrain_leftovers.clear_leftovers(Path(sys.argv[1]))
"""


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=ada", "-c", "user.email=ada@example.invalid")
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "start")
    return tmp_path


def make_old(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.mark.parametrize("name", ["index.lock", "HEAD.lock", "config.lock", "refs/heads/retrain.lock"])
def test_locks_of_a_killed_git_are_removed_and_told(repo: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    path = repo / ".git" / name
    make_old(path, 60)
    clear_leftovers(repo)
    assert not path.exists()
    assert f"a lock of a git that was killed is removed: {path}" in caplog.text


def test_a_fresh_lock_is_waited_for(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrain_leftovers, "GIT_LOCK_SECONDS", 1.0)
    path = repo / ".git" / "index.lock"
    make_old(path, 0)
    started = time.monotonic()
    clear_leftovers(repo)
    assert not path.exists()
    assert time.monotonic() - started > 0.7


def test_the_lock_of_a_git_that_is_at_work_stays(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrain_leftovers, "PATIENCE_SECONDS", 0.5)
    path = repo / ".git" / "index.lock"
    make_old(path, 60)
    # It waits for what it is asked on standard input.
    working = subprocess.Popen(["git", "cat-file", "--batch"], cwd=repo, stdin=subprocess.PIPE)
    try:
        clear_leftovers(repo)
        assert path.exists()
    finally:
        working.communicate()


def test_the_lock_of_a_git_in_the_main_tree_stays_for_a_linked_one(
    repo: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrain_leftovers, "PATIENCE_SECONDS", 0.5)
    linked = tmp_path_factory.mktemp("linked") / "tree"
    git(repo, "worktree", "add", "--quiet", str(linked))
    path = repo / ".git" / "index.lock"
    make_old(path, 60)
    working = subprocess.Popen(["git", "cat-file", "--batch"], cwd=repo, stdin=subprocess.PIPE)
    try:
        clear_leftovers(linked)
        assert path.exists()
    finally:
        working.communicate()
    clear_leftovers(linked)
    assert not path.exists()


def test_the_lock_stays_while_a_git_works_that_can_not_be_looked_into(
    repo: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As another user's: here, a program that can't be read. Root could, so it goes without that right."""
    program = tmp_path_factory.mktemp("hidden") / "git"
    shutil.copyfile(shutil.which("sleep") or "", program)
    program.chmod(0o111)
    blind = ["setpriv", "--bounding-set=-sys_ptrace"] if os.geteuid() == 0 else []
    path = repo / ".git" / "index.lock"
    make_old(path, 60)
    command = [*blind, sys.executable, "-c", CLEAR, str(repo)]
    with subprocess.Popen(["sleep", "60"], executable=program) as working:
        try:
            subprocess.run(command, check=True)
            assert path.exists()
            if os.geteuid() == 0:
                # Of somebody whose git this is not, such as a server's that works all day.
                os.chown(path, 12345, -1)
                subprocess.run(command, check=True)
                assert not path.exists()
                make_old(path, 60)
        finally:
            working.kill()
    subprocess.run(command, check=True)
    assert not path.exists()


def test_a_git_that_has_ended_and_was_not_waited_for_keeps_no_lock(repo: Path) -> None:
    path = repo / ".git" / "index.lock"
    make_old(path, 60)
    with subprocess.Popen(["git", "version"], stdout=subprocess.DEVNULL) as ended:
        while psutil.Process(ended.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        clear_leftovers(repo)
        assert not path.exists()


@pytest.mark.parametrize(
    "text",
    [
        '{"write": {"/a": {"pid": 1, "cmd": "/usr/bin/dvc repro"}}, "read": {}}',
        '{"write": {}, "read": {"/a": [{"pid": 4194400, "cmd": "dvc repro"}]}}',
        '{"write": {"/a"',
        '{"write": {}, "read": {}}',
        "[]",
    ],
    ids=["a number that lives again", "a dead process", "cut off", "nobody", "not a list of DVC's"],
)
def test_dvcs_list_of_dead_processes_is_removed(repo: Path, text: str) -> None:
    path = repo / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    clear_leftovers(repo)
    assert not path.exists()


def test_dvcs_list_of_a_living_dvc_stays(repo: Path) -> None:
    path = repo / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True)
    script = repo / "dvc"
    script.write_text("import time; time.sleep(60)")
    with subprocess.Popen([sys.executable, str(script), "repro"]) as living:
        try:
            path.write_text(json.dumps({"write": {"/a": {"pid": living.pid, "cmd": "dvc repro"}}, "read": {}}))
            clear_leftovers(repo)
            assert path.exists()
        finally:
            living.kill()


def test_outside_git_and_dvc_there_is_nothing_to_clear(tmp_path: Path) -> None:
    clear_leftovers(tmp_path)


def test_gits_version_takes_the_place_of_a_damaged_file_which_is_kept(
    repo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (repo / "dvc.lock").write_text("schema: '2.0'\nstages:\n  inge")
    mend_record(repo, "dvc.lock")
    assert (repo / "dvc.lock").read_text() == "schema: '2.0'\n"
    kept = repo / ".unet" / "dvc.lock.damaged"
    assert kept.read_text().endswith("inge")
    assert "dvc.lock was damaged, as a kill may leave it: git's is back" in caplog.text


def test_a_damaged_file_that_git_does_not_know_is_removed(repo: Path) -> None:
    (repo / "raw.jsonl.dvc").write_text("outs:\n- md5")
    mend_record(repo, "raw.jsonl.dvc")
    assert not (repo / "raw.jsonl.dvc").exists()
    assert (repo / ".unet" / "raw.jsonl.dvc.damaged").exists()
