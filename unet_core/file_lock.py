"""A lock that threads and processes of one machine share, as a file."""

import fcntl
import os
from pathlib import Path
from typing import Self


class FileLock:
    """An advisory lock of a file, between threads and processes; freed with the object at the latest."""

    def __init__(self, path: Path, kind: int) -> None:
        """Wait for the lock, `fcntl.LOCK_EX` or `LOCK_SH`; with LOCK_NB BlockingIOError where others have it."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, kind)
        except OSError:
            self.free()
            raise

    @classmethod
    def if_free(cls, path: Path) -> Self | None:
        """The lock for oneself alone, or None if anybody has it."""
        try:
            return cls(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None

    def free(self) -> None:
        """Give it back."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()

    def __del__(self) -> None:
        # Of one whose file could not be opened, nothing is there to free.
        if hasattr(self, "_file"):
            self.free()
