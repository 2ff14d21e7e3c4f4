"""What people see of a job as it runs."""

import re
from typing import TextIO

from pipeline.job_results import ResultReader

#: As progress.py writes it where there is no terminal.
PROGRESS = re.compile(r"\w[\w ]*: \d+ of \d+ ")


class Screen:
    """Shows a job's log without its results; on a terminal, lines of progress take each other's place."""

    def __init__(self, stream: TextIO) -> None:
        self.reader = ResultReader()
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._is_open = False
        """Whether a line of progress stands there without an end."""

    def show(self, text: str) -> None:
        """A piece of the log."""
        for line in self.reader.read(text).splitlines():
            self._write(line)

    def close(self) -> None:
        """End the last line."""
        for line in self.reader.finish().splitlines():
            self._write(line)
        if self._is_open:
            self._stream.write("\n")
            self._is_open = False
        self._stream.flush()

    def _write(self, line: str) -> None:
        is_progress = self._is_terminal and PROGRESS.match(line) is not None
        again = "\r\x1b[K" if self._is_open and is_progress else "\n" if self._is_open else ""
        self._stream.write(again + line + ("" if is_progress else "\n"))
        self._is_open = is_progress
        self._stream.flush()
