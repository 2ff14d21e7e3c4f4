"""What git and DVC leave behind when they are killed, and would stumble over: cleared before a retraining begins.

Called by who has the retraining's lock; what a living process of this machine still uses stays.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from pipeline.git_process import run_git

log = logging.getLogger(__name__)

#: git holds its locks for moments; another host's git, which can't be seen here, has ended by then.
GIT_LOCK_SECONDS = 10.0
#: A git that works on longer will let our own fail, with a sentence.
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.2


def clear_leftovers(root: Path) -> None:
    """Remove locks of dead processes: git's files, and DVC's list of who reads and writes what."""
    _clear_git_locks(root)
    _clear_dvc_list(root / ".dvc" / "tmp" / "rwlock")


def mend_record(root: Path, name: str) -> None:
    """Put git's version of a file into the place of one that DVC was killed in writing; the damaged one is kept.

    What is lost is DVC's knowledge of stages that ended since: its run cache, or the stages themselves, tell it again.
    """
    kept = root / ".unet" / f"{Path(name).name}.damaged"
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root / name, kept)
    done = run_git(root, "show", f"HEAD:./{name}")
    if done.returncode:
        (root / name).unlink()
    else:
        (root / name).write_bytes(done.stdout)
    log.warning("%s was damaged, as a kill may leave it: git's is back, the damaged one lies in %s", name, kept)


def _clear_git_locks(root: Path) -> None:
    folders = ("--git-dir", "--git-common-dir", "--show-toplevel")
    done = run_git(root, "rev-parse", "--path-format=absolute", *folders)
    if done.returncode:
        return
    git, common, top = (Path(os.fsdecode(line)) for line in done.stdout.splitlines())
    # The common folder's index.lock is that of the main tree, whose git works there.
    homes = {common, top, *_worktrees(root)}
    for path in {*git.glob("*.lock"), *common.glob("*.lock"), *(common / "refs").rglob("*.lock")}:
        if _stays_unused(path, homes):
            path.unlink(missing_ok=True)
            log.warning("a lock of a git that was killed is removed: %s", path)


def _worktrees(root: Path) -> list[Path]:
    """The working trees of the repository, the main one among them."""
    listed = run_git(root, "worktree", "list", "--porcelain").stdout
    begin = b"worktree "
    return [
        Path(os.fsdecode(line.removeprefix(begin))).resolve() for line in listed.splitlines() if line.startswith(begin)
    ]


def _stays_unused(path: Path, homes: Iterable[Path]) -> bool:
    """Wait until the lock is gone, or old enough without a git at work."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while path.exists() and time.monotonic() < deadline:
        try:
            stat = path.stat()
        except FileNotFoundError:
            return False
        if time.time() - stat.st_mtime > GIT_LOCK_SECONDS and not _is_git_at_work(homes, stat.st_uid):
            return True
        time.sleep(POLL_SECONDS)
    return False


def _is_git_at_work(homes: Iterable[Path], owner: int) -> bool:
    """Whether a git works in or below one of the folders; one that can't be seen does if it is the lock's owner's."""
    for process in psutil.process_iter(["name", "cwd", "status", "uids"]):
        told = process.info
        if told["name"] != "git" or told["status"] == psutil.STATUS_ZOMBIE:
            continue
        if not told["cwd"]:
            if told["uids"] is None or told["uids"].effective == owner:
                return True
        elif any(Path(told["cwd"]).is_relative_to(home) for home in homes):
            return True
    return False


def _clear_dvc_list(path: Path) -> None:
    """Remove DVC's list where it is cut off or speaks of processes that are no DVC.

    DVC itself believes a process number that lives again: in a new container, the old one's numbers do.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        entries = [*body.get("write", {}).values(), *(one for found in body.get("read", {}).values() for one in found)]
        numbers = {int(entry["pid"]) for entry in entries}
    except FileNotFoundError:
        return
    except (ValueError, TypeError, KeyError, AttributeError):
        numbers = set()
    if not any(map(_is_dvc, numbers)):
        path.unlink(missing_ok=True)


def _is_dvc(number: int) -> bool:
    try:
        words: Iterable[str] = psutil.Process(number).cmdline()
    except psutil.Error:
        return False
    return any("dvc" in Path(word).name for word in words)
