"""The door to DVC, which runs as a process of its own: what it is called by, and why it failed."""

import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping

from pipeline.placement import environment_for_tools
from pipeline.public_text import public

DVC = (sys.executable, "-m", "dvc")
#: What `dvc repro` says of a stage that failed: its own exit code tells nothing.
STAGE_ENDED = re.compile(r"failed to run: .*exited with (\d+)")
#: Characters of what it says of its end.
MAX_REASON = 400


def run_dvc(
    *words: str, lock: int | None = None, more: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a DVC command to its end in silence; it inherits the descriptor `lock`, and the environment with `more`."""
    return subprocess.run(
        [*DVC, *words],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        env={**environment_for_tools(), **(more or {})},
        pass_fds=[lock] if lock is not None else [],
    )


def run_dvc_with_remote(*words: str, lock: int | None) -> "subprocess.CompletedProcess[str]":
    """Run DVC with an empty memory: killed while it notes what there is to send, it takes half of it for all later."""
    with tempfile.TemporaryDirectory() as memory:
        return run_dvc(*words, lock=lock, more={"DVC_SITE_CACHE_DIR": memory})


def dvcs_reason(text: str, code: int) -> str:
    """Why DVC ended with `code`, from its standard error: a line without secrets and without its own advertisement."""
    # The first error is the cause of those that follow, one for each file; before it there may be as many warnings.
    # Where it speaks of none, its last words tell.
    begin = text.find("ERROR: ")
    lines = text[max(0, begin) :].splitlines()
    errors = [line.removeprefix("ERROR: ") for line in lines if line.strip() and "dvc.org/support" not in line]
    said = " ".join(public("; ".join(errors)).rstrip(".").split())
    short = textwrap.shorten(said, MAX_REASON, placeholder=" ...") if begin >= 0 else said[-MAX_REASON:]
    return short or f"DVC ended with {code}, without a word"
