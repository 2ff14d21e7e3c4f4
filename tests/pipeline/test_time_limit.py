"""Real timers, and a process that would never end."""

import contextlib
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pipeline import time_limit as module
from pipeline.time_limit import time_limit
from unet_core.errors import RecipeError, TrainingError

#: Long enough for a process to begin.
A_MOMENT_HOURS = 1 / 3600
NEVER_ENDS = [sys.executable, "-c", "import time; time.sleep(600)"]
SENTENCE = (
    "stopped, since its time is over: --time-limit 0.000277778 hours. What is done stays, and the next call goes on "
    "from there; see what took so long, or give it more."
)


def test_work_is_stopped_also_where_it_goes_on_after_any_error() -> None:
    with pytest.raises(TrainingError, match=re.escape(SENTENCE)), time_limit(A_MOMENT_HOURS):
        while True:
            with contextlib.suppress(Exception):
                time.sleep(60)


def test_a_process_that_is_waited_for_ends_too() -> None:
    with pytest.raises(TrainingError), time_limit(A_MOMENT_HOURS):
        subprocess.run(NEVER_ENDS, check=False)
    assert not [child for child in psutil.Process().children() if child.cmdline() == NEVER_ENDS]


def test_what_hangs_while_it_is_stopped_hears_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 1.0)
    stopped = []
    with pytest.raises(TrainingError), time_limit(A_MOMENT_HOURS):
        try:
            time.sleep(60)
        finally:
            stopped.append("once")
            time.sleep(60)
    assert stopped == ["once"]


def test_within_the_time_nothing_happens_and_no_timer_is_left() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(1):
        assert 3590 < signal.getitimer(signal.ITIMER_REAL)[0] <= 3600
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_who_becomes_another_program_takes_no_timer_along() -> None:
    code = (
        "import os, sys; from pipeline.time_limit import stop_clock, time_limit\n"
        "with time_limit(0.5 / 3600):\n"
        "    stop_clock()\n"
        "    os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(1)'])\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_a_limit_no_timer_is_set() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(None):
        assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("inf"), 1e12])
def test_a_limit_that_is_none_is_refused(hours: float) -> None:
    text = re.escape(f"--time-limit {hours:g}: not a number of hours above 0. Correct it.")
    with pytest.raises(RecipeError, match=text), time_limit(hours):
        pass
