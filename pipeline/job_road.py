"""What runs on the cluster for `unet submit`, in the packed tree: data from the DVC remote, the stages, results back.

`python -m pipeline.job_road` is the job's command; what it is to do stands in .unet/submitted.json. Its output is the
job's log, which `unet submit` shows; results for git are lines of it (job_results.py).
"""

import importlib.metadata
import json
import logging
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import IO, cast

from pipeline.command import INTERRUPTED, first_names, run_command, say
from pipeline.dvc_process import DVC, STAGE_ENDED, dvcs_reason
from pipeline.job_results import END, find_lost, find_results, snapshot, to_lines
from pipeline.lineage import SUBMITTED
from pipeline.placement import DVC_REMOTE, environment_for_tools, read_placement
from unet_core.errors import StorageError, TrainingError

log = logging.getLogger(__name__)

#: Packages that must be the same where a job is submitted and where it runs.
PACKAGES = ("unet-pipeline", "ray", "torch", "numpy", "dvc", "mlflow")
#: Stages whose results all hosts read; they are pushed before the rest begins.
DATA_STAGES = ("ingest", "validate", "split", "shard")
#: Commands whose work is runs, or a change of the registry.
REGISTRY_COMMANDS = ("promote", "rollback", "search")
#: Seconds for a stage to end by itself when the job is stopped.
GRACE_SECONDS = 20.0
#: Then for what it said to be read.
LAST_WORDS_SECONDS = 5.0
#: And then for a push of what it had finished; submit.py has Ray wait longer than all three.
PUSH_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a job is to do."""

    job: str
    words: tuple[str, ...]
    """Of a `unet` command; empty for `dvc repro`, which ends with `unet promote` where it takes all stages."""
    stage: str | None
    """The last stage of `dvc repro`; None: all."""
    has_remote: bool
    """Whether DVC has a place for data."""
    is_source_in_tree: bool
    """Whether the source is a folder of the tree: then only this host has its files."""
    versions: Mapping[str, str]
    """Of Python and packages, where it was submitted."""

    @property
    def shown(self) -> str:
        """The command, for people."""
        if self.words:
            return shlex.join(("unet", *self.words))
        return f"dvc repro {self.stage}" if self.stage else "dvc repro, unet promote"


def versions() -> dict[str, str]:
    """Versions that both sides must share: Python's to the second number, packages' without the kind of build."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def check_versions(submitted: Mapping[str, str], here: Mapping[str, str]) -> None:
    """TrainingError where the cluster has other versions than the machine that submitted."""
    differ = [
        f"{name} {here.get(name, 'unknown')} instead of {version}"
        for name, version in submitted.items()
        if here.get(name) != version
    ]
    if differ:
        raise TrainingError(
            f"the cluster has other versions than the machine that submitted: {', '.join(differ)}. Install the same "
            "on both (constraints.txt), or build the cluster's image anew."
        )


def run(root: Path) -> None:
    """Do the task; the process ends with the command's exit code."""
    told = json.loads((root / SUBMITTED).read_text(encoding="ascii"))
    task = Task(**{**told["task"], "words": tuple(told["task"]["words"])})
    say(f"job {task.job}: {task.shown}; {_describe(told['git'])}; Python {platform.python_version()}")
    check_versions(task.versions, versions())
    _check_places(task)
    kept = {path for path in root.rglob("*") if path.is_file()}
    # Its .git stayed where it was packed.
    (root / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    before = snapshot(root)

    def keep(limit_seconds: float | None = None) -> None:
        _keep(task, lambda: _send(root, before), limit_seconds=limit_seconds)

    try:
        code = _carry_out(task, keep)
        if task.words:
            _tell_of_lost(find_lost(root, kept))
    except KeyboardInterrupt:
        # Also what a stopped job has finished is of use.
        _end_with(INTERRUPTED, lambda: keep(PUSH_SECONDS))
        raise
    finally:
        _remove_remains(root, kept)
    sys.exit(code)


def _describe(git: Mapping[str, str]) -> str:
    if not git:
        return "outside git"
    return f"commit {git['git.commit'][:12]}{' with changes' if git['git.dirty'] == 'true' else ''}"


def _check_places(task: Task) -> None:
    """The tree goes away with the job, and a store of runs in it would too."""
    writes = task.words[0] in REGISTRY_COMMANDS if task.words else task.stage not in DATA_STAGES
    if writes and read_placement().tracking_uri.startswith("sqlite:"):
        raise StorageError(
            "the cluster has no MLFLOW_TRACKING_URI: runs and models would be lost with the job. Set it in the "
            "environment of the cluster's Ray processes, or where you submit."
        )


def _carry_out(task: Task, keep: Callable[[], None]) -> int:
    """All steps up to the first that fails; its exit code, or 0. What was finished is kept in any case."""
    if task.has_remote:
        # What was never built is not there either.
        _move_data("pull", "--allow-missing")
    if not task.words:
        return _reproduce(task, keep)
    return _end_with(_call(_unet(*task.words)), keep)


def _reproduce(task: Task, keep: Callable[[], None]) -> int:
    """In parts: after each what it made is in the remote and told home, where a lost host can't take it away."""
    # A source that is not here is none that has changed.
    repro = [*DVC, "repro", "--allow-missing"]
    for part in parts_of(task.stage):
        is_data = part in DATA_STAGES
        code = _call([*repro, *([part] if part else [])], alone=is_data and task.is_source_in_tree)
        # Of a stage that failed, those before it.
        if _end_with(code, keep):
            return code
    if task.stage:
        return 0
    return _end_with(_call(_unet("promote")), keep)


def _end_with(code: int, keep: Callable[[], None]) -> int:
    """Keep what there is after a step; the step's exit code, which counts more than an error of the keeping."""
    try:
        keep()
    except StorageError as error:
        if code == 0:
            raise
        log.warning("job: %s", error)
    return code


def parts_of(stage: str | None) -> list[str | None]:
    """Last stages of the parts in which `dvc repro` runs; None is the end of the road."""
    if stage in DATA_STAGES:
        return [stage]
    return ["shard", stage] if stage == "train" else ["shard", "train", stage]


def _keep(task: Task, send: Callable[[], None], *, limit_seconds: float | None) -> None:
    """Push what there is, and then tell it home; StorageError where it can't be pushed.

    Never the other way round: a dvc.lock that speaks of data which nobody has would make the next `dvc repro` fail.
    """
    if task.has_remote:
        _move_data("push", limit_seconds=limit_seconds)
    send()


def _move_data(*words: str, limit_seconds: float | None = None) -> None:
    """`dvc pull` or `dvc push`; StorageError with DVC's reason, which it keeps to itself if it is to be quiet."""
    say(f"job: dvc {words[0]}")
    with tempfile.TemporaryFile() as told:
        # A file, not a pipe: what a killed DVC left behind may hold that open.
        process = _start([*DVC, *words], alone=False, stdout=subprocess.DEVNULL, stderr=told)
        code = _wait(process, limit_seconds=limit_seconds)
        told.seek(0)
        text = told.read().decode(errors="replace")
    if code:
        raise StorageError(
            f"dvc {words[0]} failed on the cluster: {dvcs_reason(text, code)}. Let DVC's remote be reached from there "
            "(docs/submit.md), then submit again."
        )


def _unet(*words: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", *words]


def _call(command: Sequence[str], *, alone: bool = False) -> int:
    """Run a command to its exit code; what it says goes into the log.

    The code of `dvc repro` does not tell how a stage ended: what it says does.
    """
    codes: list[int] = []
    process = _start(command, alone=alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    reader = threading.Thread(target=_pass_on, args=(process.stdout, codes), daemon=True)
    reader.start()
    try:
        code = _wait(process)
    finally:
        # Not for ever: what a killed command left behind may hold the pipe open.
        reader.join(LAST_WORDS_SECONDS)
    return code and (codes[-1] if codes and command[: len(DVC)] == [*DVC] else code)


def _pass_on(stream: IO[bytes], codes: list[int]) -> None:
    """Let people read what a command says, and collect the exit codes of stages that failed.

    In UTF-8, whatever it is in: Ray's head gives none of a log that holds one other byte, and calls that its end.
    """
    for line in stream:
        text = line.decode(errors="backslashreplace")
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
        codes += map(int, STAGE_ENDED.findall(text))


def _start(command: Sequence[str], *, alone: bool, stdout: int, stderr: int | IO[bytes]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, env=_environment(alone=alone), stdout=stdout, stderr=stderr)


def _wait(process: "subprocess.Popen[bytes]", *, limit_seconds: float | None = None) -> int:
    """Its exit code; where it takes longer than its limit, it is killed."""
    try:
        return process.wait(limit_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
    except KeyboardInterrupt:
        # Ray tells all processes of the job to stop; stages leave a checkpoint's time for it.
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


def _environment(*, alone: bool) -> dict[str, str]:
    # The other hosts have nothing of this tree's data; where the shards lie elsewhere too, the user says so.
    elsewhere = {"UNET_SHARDS": DVC_REMOTE}
    return {**elsewhere, **environment_for_tools(use_cluster=not alone), "DVC_NO_ANALYTICS": "1"}


def _send(root: Path, before: Mapping[str, str]) -> None:
    results, left = find_results(root, before)
    if not results and not left:
        return
    for name in left:
        log.warning("too large to be sent home, and lost with the job unless DVC has it: %s", name)
    for line in to_lines(results):
        say(line)


def _tell_of_lost(names: Sequence[str]) -> None:
    if names:
        log.warning(
            "left in the job's tree, and gone with it: %s. Let a command write into reports/, or to an address.",
            first_names(names, 1),
        )


def _remove_remains(root: Path, kept: set[Path]) -> None:
    """Ray keeps the tree for a while and counts only what it was sent: data would fill the head's disk."""
    for path in sorted(root.rglob("*"), reverse=True):
        if path in kept:
            continue
        try:
            path.unlink() if path.is_symlink() or not path.is_dir() else path.rmdir()
        except OSError:
            continue


def main() -> None:
    """The job's command."""
    for stream in (sys.stdout, sys.stderr):
        # As _pass_on does with what others say; a file's name may be in any encoding.
        cast(TextIOWrapper, stream).reconfigure(encoding="utf-8", errors="backslashreplace")
    # Ray's ways to stop a job; as with Ctrl-C, whatever runs ends by itself. A head that a script started in the
    # background ignores SIGINT, and so would all below it: a stopped job would go on to the gate.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(run_command("job", lambda: run(Path.cwd())))
    finally:
        say(END)


if __name__ == "__main__":
    main()
