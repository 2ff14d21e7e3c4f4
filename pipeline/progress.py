"""Progress of long work: a bar on a terminal, a sparse line elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

Item = TypeVar("Item")
#: Seconds between two lines where there is no terminal.
LINE_SECONDS = 15.0


class Progress:
    """Counts work that is done."""

    def __init__(self, *, total: int, label: str, unit: str) -> None:
        self._total, self._label, self._unit = total, label, unit
        self._done = 0
        self._note = ""
        self._shown, self._shown_done = time.monotonic(), 0
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=label, unit=f" {unit}", dynamic_ncols=True)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count finished items; a note stands behind the numbers."""
        self._done += count
        self._note = note or self._note
        if self._bar is not None:
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(count)
        elif (passed := time.monotonic() - self._shown) > LINE_SECONDS:
            told = [f"{self._done} of {self._total} {self._unit}", self._time_left(passed), self._note]
            log.info("%s: %s", self._label, ", ".join(filter(None, told)))
            self._shown, self._shown_done = time.monotonic(), self._done

    def _time_left(self, passed: float) -> str:
        """By what was done in the seconds since the last line: work that is taken up again begins with a leap."""
        count = self._done - self._shown_done
        if not count or self._done >= self._total:
            return ""
        return f"{tqdm.format_interval(passed * (self._total - self._done) / count)} left"

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()


def progress(items: Iterable[Item], *, total: int, label: str, unit: str) -> Iterator[Item]:
    """Pass items on and show how many have passed."""
    shown = Progress(total=total, label=label, unit=unit)
    try:
        for item in items:
            yield item
            shown.advance()
    finally:
        shown.close()
