"""A limit for work that a remote which never answers would keep for ever, and with it each call of a scheduler."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from unet_core.errors import RecipeError, TrainingError

#: Stopping may take minutes (a training writes its checkpoint). What then hangs in its turn hears it once more.
AGAIN_SECONDS = 600


class _TimeIsOver(BaseException):
    """No Exception: who goes on without a server that failed would go on without the limit, too."""


@contextmanager
def time_limit(hours: float | None) -> Iterator[None]:
    """Inside, the main thread's work is stopped wherever it is when the hours are over (None: never).

    So it must be such that it may be killed anywhere. TrainingError then; RecipeError for a limit that is none.
    """
    check_hours(hours)
    if hours is None:
        yield
        return

    def end(_signal: int, _frame: object) -> None:
        raise _TimeIsOver

    before = signal.signal(signal.SIGALRM, end)
    try:
        signal.setitimer(signal.ITIMER_REAL, hours * 3600, AGAIN_SECONDS)
        yield
    except _TimeIsOver as over:
        raise TrainingError(
            f"stopped, since its time is over: --time-limit {hours:g} hours. What is done stays, and the next call "
            "goes on from there; see what took so long, or give it more."
        ) from over
    finally:
        stop_clock()
        signal.signal(signal.SIGALRM, before)


def check_hours(hours: float | None) -> None:
    """RecipeError for a limit that is none."""
    # No timer takes longer than 292 years.
    if hours is not None and not 0 < hours * 3600 <= threading.TIMEOUT_MAX:
        raise RecipeError(f"--time-limit {hours:g}: not a number of hours above 0. Correct it.")


def stop_clock() -> None:
    """For who becomes another program: the timer would outlive what answers it, and kill that one."""
    signal.setitimer(signal.ITIMER_REAL, 0)
