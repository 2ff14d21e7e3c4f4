"""What all commands and stages share: one sentence for a foreseen mistake, quiet libraries, seconds written down."""

import contextlib
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import psutil

from unet_core.errors import StorageError, UnetError

#: What a shell says of an interrupted command; the exit code for a job that was stopped, too.
INTERRUPTED = 130


def run_command(name: str, function: Callable[[], None], *, timings: Path | None = None) -> int:
    """Run a command to its exit code; with `timings`, append its seconds (from the process's start) there."""
    _quieten()
    # Counts imports and the interpreter's start too, since the user waits for them.
    started = psutil.Process().create_time()
    try:
        function()
    except UnetError as error:
        tell(f"unet {name}: {error}\n", sys.stderr)
        return error.exit_code
    except FileNotFoundError as error:
        tell(f"unet {name}: {_missing(error)}\n", sys.stderr)
        return StorageError.exit_code
    except OSError as error:
        # A place that can't be read or written is the user's to mend; what it was doing tells the path.
        where = f": {error.filename}" if error.filename else ""
        tell(f"unet {name}: {error.strerror or error}{where}. Make room, or choose another place.\n", sys.stderr)
        return StorageError.exit_code
    except KeyboardInterrupt:
        tell(f"unet {name}: interrupted\n", sys.stderr)
        return INTERRUPTED
    if timings is not None:
        note_seconds(timings, name, time.time() - started)
    return 0


def first_names(names: Sequence[str], most: int) -> str:
    """As many names as people read, and how many there are besides."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _missing(error: FileNotFoundError) -> str:
    """What is missing, and the remedy: DVC makes what lies in the working tree, and only that."""
    name = error.filename
    if isinstance(name, str) and not Path(os.path.abspath(name)).is_relative_to(Path.cwd()):  # noqa: PTH100
        return f"no such file or folder: {name}. Make it, or choose another place."
    return f"a file is missing: {name}. Run `dvc repro`, or restore it."


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Inside, a scheduler's SIGTERM ends the work as Ctrl-C does: a training writes a checkpoint.

    SIGINT does, too, where it came ignored, as a shell has it for what it starts in the background: the stages inherit
    that, and could be ended by a kill alone.
    """
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def note_seconds(timings: Path, stage: str, seconds: float) -> None:
    """Append what a stage, or a part of one, took. No result depends on this file."""
    timings.parent.mkdir(parents=True, exist_ok=True)
    with timings.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"stage": stage, "seconds": round(seconds, 2)}) + "\n")


def _quieten() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for library in ("mlflow", "alembic", "ray", "matplotlib", "aiobotocore", "botocore", "urllib3", "PIL", "git"):
        logging.getLogger(library).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


def say(text: str = "") -> None:
    """A line of a command's result."""
    tell(text + "\n", sys.stdout)


def tell(text: str, stream: TextIO) -> None:
    """Write where people read. Where they have read enough (`| head`), the work goes on without a word."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        # Not only this: Python itself writes what is left at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
