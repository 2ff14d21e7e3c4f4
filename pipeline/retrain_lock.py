"""One at a time in a working tree, a retraining, and each stage: a lock on a file, which the system frees when all its
holders have ended.

What the file says is for people. A killed holder needs no taking over: its lock died with it.
"""

import fcntl
import logging
import os
import platform
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil

from unet_core.errors import StorageError

log = logging.getLogger(__name__)


@contextmanager
def alone(stage: str, folder: Path) -> Iterator[None]:
    """Run a stage when no other process runs it in this tree.

    A stage may outlive a killed `dvc repro`, whose successor would start a second training beside it. So the second
    one waits, and then goes on from what the first one left.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(held(folder / f"{stage}.lock", wait=True, what=f"process that runs stage {stage} here"))
        except StorageError as error:
            # By hand that is no reason to refuse a stage.
            log.warning("unet stage %s: nothing keeps a second one away: %s", stage, error)
        yield


@contextmanager
def held(path: Path, *, wait: bool, what: str = "retraining") -> Iterator[int | None]:
    """The lock's descriptor, or None where another process has it; with `wait`, as soon as that has ended.

    A process that inherits the descriptor (`pass_fds`) holds the lock too: a `dvc repro` that outlives its killed
    retraining keeps the next one away until it has ended. StorageError where no lock can be had.
    """
    lock = _open(path)
    try:
        if not _take(lock, path, wait=wait, what=what):
            yield None
            return
        since = datetime.now(UTC).isoformat(timespec="seconds")
        _write(lock, f"process {os.getpid()} on {platform.node()}, since {since}")
        try:
            yield lock
        finally:
            _write(lock, "")
    finally:
        os.close(lock)


def holder(path: Path) -> str:
    """Who has the lock, as a line for people."""
    text = path.read_text(encoding="utf-8").strip() or "a process that has not said who it is"
    found = re.match(r"process (\d+) on (\S+), ", text)
    if found and found[2] == platform.node() and not psutil.pid_exists(int(found[1])):
        text += " (it was killed; what it started, such as `dvc repro`, still works)"
    return text


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageError(
            f"a lock's file can't be opened: {path}: {error.strerror}. Make room on its disk, take away what is in the "
            "way, or let this user write there."
        ) from error


def _take(lock: int, path: Path, *, wait: bool, what: str) -> bool:
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                return False
            log.info("waiting for another %s: %s", what, holder(path))
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise StorageError(
            f"a lock is not possible here: {path}: {error.strerror}. Put the working tree on a file system with locks, "
            "such as a local disk, NFS 4 or CephFS."
        ) from error
    return True


def _write(lock: int, text: str) -> None:
    # For people: a full disk must not keep the lock from those who have it.
    with suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{text}\n".encode() if text else b"", 0)
