"""What a retraining asks of DVC: what is stale, pull, reproduce (here or on a cluster), push."""

import codecs
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipeline.command import INTERRUPTED, tell
from pipeline.dvc_process import DVC, STAGE_ENDED, dvcs_reason, run_dvc, run_dvc_with_remote
from pipeline.placement import environment_for_tools
from pipeline.public_text import public
from unet_core.errors import StorageError, TrainingError, UnetError

log = logging.getLogger(__name__)

#: All stages on a cluster, without the gate, which decides where the retraining runs.
SUBMIT = (sys.executable, "-m", "pipeline.cli", "submit", "--resume", "report")
#: Seconds in which an interrupted training may write its checkpoint.
GRACE_SECONDS = 60
POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Status:
    """What `dvc status` says."""

    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Stage -> what it depends on and has changed; parts of the recipe as `params.yaml: train.epochs`."""
    absent: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Stage (or .dvc file) -> results that are not in DVC's cache, or not here."""
    altered: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Stage (or .dvc file) -> results that are others than recorded."""


def start_status() -> "subprocess.Popen[str]":
    """`dvc status`, which takes a second in which others can work."""
    words = [*DVC, "status", "--json"]
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=environment_for_tools(),
    )


def read_status(process: "subprocess.Popen[str]") -> Status:
    """What it found; StorageError where DVC can't tell."""
    told, errors = process.communicate()
    if process.returncode:
        raise StorageError(
            f"DVC can't tell what is stale: {dvcs_reason(errors, process.returncode)}. Mend what it names, or put "
            "git's version back (`git checkout -- FILE`)."
        )
    # DVC may say something else before, such as that it makes its folders.
    return parse_status(json.loads(told[told.index("{") :]))


def parse_status(body: Mapping[str, Any]) -> Status:
    """The answer of `dvc status --json`, sorted by what it means."""
    found: dict[str, dict[str, tuple[str, ...]]] = {"inputs": {}, "absent": {}, "altered": {}}
    for stage, entries in body.items():
        names: dict[str, list[str]] = {"inputs": [], "absent": [], "altered": []}
        for entry in entries:
            if isinstance(entry, str):
                # Its command is another one, or it was never run.
                names["inputs"].append("dvc.yaml")
                continue
            for name, how in entry.get("changed deps", {}).items():
                names["inputs"] += [f"{name}: {part}" for part in how] if isinstance(how, dict) else [name]
            for name, how in entry.get("changed outs", {}).items():
                names["absent" if how in ("deleted", "not in cache") else "altered"].append(name)
        for kind, kept in found.items():
            if names[kind]:
                kept[stage] = tuple(names[kind])
    return Status(**found)


def has_remote(lock: int | None) -> bool:
    """Whether DVC has a default remote."""
    return bool(run_dvc("config", "core.remote", lock=lock).stdout.strip())


def pull(status: Status, lock: int | None, *, may_replace: bool = False) -> None:
    """Get results that are recorded and not here; StorageError where the remote can't be reached.

    What lies here and differs is replaced where DVC has it in its cache: a killed stage may have left half of it, and
    the stage that makes it again goes on from there. With `may_replace`, all that is a stage's; what people track by
    DVC themselves never is replaced by what they had before.
    """
    names = [name for found in (status.absent, status.altered) for part in found.values() for name in part]
    of_stages = {name for stage, part in status.altered.items() if not stage.endswith(".dvc") for name in part}
    done = run_dvc_with_remote("fetch", *names, lock=lock)
    if done.returncode:
        why = dvcs_reason(done.stderr, done.returncode)
        raise StorageError(
            f"DVC can't fetch what is recorded: {why}. `dvc push` it where it is, or make it again here (`dvc repro`)."
        )
    gone = [name for name in names if not Path(name).exists()]
    replaced = [name for name in names if may_replace and name in of_stages and name not in gone]
    others = [name for name in names if name not in {*gone, *replaced}]
    for found, options in ((gone, []), (replaced, ["--force"]), (others, [])):
        if not found:
            continue
        done = run_dvc("checkout", "--allow-missing", *options, *found, lock=lock)
        if done.returncode:
            why = dvcs_reason(done.stderr, done.returncode)
            log.info("left for the pipeline: %s, since DVC can't put them here: %s", ", ".join(found), why)


def push(lock: int | None) -> None:
    """Send results to the remote; StorageError where it can't be reached."""
    done = run_dvc_with_remote("push", lock=lock)
    if done.returncode:
        why = dvcs_reason(done.stderr, done.returncode)
        raise StorageError(f"DVC can't push the results: {why}. They stay here; the next call tries again.")


def reproduce(lock: int | None, told: Path, *, stage: str | None = None) -> None:
    """Run all stale stages, or those up to `stage`; people see what they say, and it stands in the file `told`.

    A stage's own error keeps its exit code. Interrupted, it lets the training write a checkpoint.
    """
    _run_to_end([*DVC, "repro", *([stage] if stage else [])], lock, told)


def reproduce_there(lock: int | None, told: Path) -> None:
    """The same as a job on a Ray cluster, which goes on where this process is stopped or killed; then get its results.

    Called again for the same tree, it follows that job.
    """
    _run_to_end(SUBMIT, lock, told)
    # What a stage that was killed here has left is older than what the job made.
    pull(read_status(start_status()), lock, may_replace=True)
    status = read_status(start_status())
    altered = [stage for stage in status.altered if not stage.endswith(".dvc")]
    if left := sorted({*status.inputs, *status.absent, *altered}):
        raise StorageError(
            f"the job ended, and not all of its results are here: {', '.join(left)}. {told.name} has its log; the next "
            "call submits what is left."
        )


def _run_to_end(command: Sequence[str], lock: int | None, told: Path) -> None:
    told.parent.mkdir(parents=True, exist_ok=True)
    # A file, not a pipe: if this process is killed, the pipeline ends its stage undisturbed.
    with told.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment_for_tools(),
            # Ctrl-C reaches it once, through us.
            start_new_session=True,
            pass_fds=[lock] if lock is not None else [],
        )
    try:
        code = _show_until_end(process, told)
    except BaseException:
        _end(process)
        raise
    if code < 0:
        # Killed; the stage that it ran may not have noticed.
        _end(process)
    if code:
        raise _failure(code, told.read_text(encoding="utf-8", errors="replace"))


def _show_until_end(process: "subprocess.Popen[bytes]", told: Path) -> int:
    # A character may have come by half.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with told.open("rb") as stream:
        while True:
            code = process.poll()
            tell(decoder.decode(stream.read(), final=code is not None), sys.stderr)
            if code is not None:
                return code
            try:
                process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt the process and all below it, also where it has ended itself; kill what does not end."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            process.poll()
            if not _is_at_work(process.pid):
                return
            time.sleep(POLL_SECONDS)


def _is_at_work(group: int) -> bool:
    """Whether a process of the group has not ended; in a container, who has may stay as a zombie for ever."""
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _failure(code: int, text: str) -> UnetError:
    """The error that a stage (or the submission) ended with, as its exit code tells, with its own sentence."""
    if code == INTERRUPTED:
        return TrainingError("the pipeline was stopped, and not from here. The next call goes on, or submits it anew.")
    kinds = {kind.exit_code: kind for kind in UnetError.__subclasses__()}
    codes = [code, *map(int, reversed(STAGE_ENDED.findall(text)))]
    # Where it speaks of an error and of no stage, DVC failed by itself: no room, say.
    by_itself = "ERROR: " in text and not re.search("failed to run: |interrupted by the user", text)
    kind = next((kinds[each] for each in codes if each in kinds), StorageError if by_itself else TrainingError)
    sentences = re.findall(r"^unet \w+: (.+)$", text, re.MULTILINE)
    why = sentences[-1] if sentences else f"the pipeline ended with {code}: {dvcs_reason(text, code)}."
    return kind(public(why))
