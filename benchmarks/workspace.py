"""A working tree of its own for a benchmark or a test: the project's files, a recipe, git and DVC."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[1]
#: What a road needs of the project; data and results are made anew.
FILES = ("dvc.yaml", "constraints.txt", ".gitignore", ".dvcignore", "pipeline", "unet_core", "recipes")

#: The training stage, apart from DVC.
TRAIN = (
    *("unet", "stage", "train", "--shards", "data/shards", "--model", "models/final"),
    *("--metrics", "metrics/train.json", "--curves", "plots/curves.csv", "--validation", "plots/validation.csv"),
    *("--examples", "plots/predictions.png"),
)

#: Starts a command as a shell script starts one in the background (GNU env): with SIGINT ignored, by its children, too.
IN_BACKGROUND = ("env", "--ignore-signal=INT")


def make_workspace(folder: Path, recipe: str, changes: Mapping[str, Any]) -> Path:
    """Copy the project to `folder` with recipes/RECIPE.yaml as its recipe, `changes` ("train.epochs": 1) applied."""
    folder.mkdir(parents=True)
    for name in FILES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    change_recipe(folder, recipe, changes)
    run(folder, "git", "init", "--quiet")
    run(folder, sys.executable, "-m", "dvc", "init", "--quiet")
    run(folder, sys.executable, "-m", "dvc", "config", "core.analytics", "false")
    commit(folder, "start")
    return folder


def commit(folder: Path, message: str) -> None:
    """Commit all that git does not ignore."""
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.invalid")
    run(folder, "git", "add", ".")
    run(folder, "git", *identity, "commit", "--quiet", "--message", message)


def change_recipe(folder: Path, recipe: str | None, changes: Mapping[str, Any]) -> None:
    """Rewrite params.yaml: a recipe by name (or the one that is there) with some values changed."""
    path = ROOT / "recipes" / f"{recipe}.yaml" if recipe else folder / "params.yaml"
    body = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        section, _, name = key.partition(".")
        body[section][name] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(body, sort_keys=False), encoding="utf-8")


def run(folder: Path, *command: str, env: Mapping[str, str] | None = None, check: bool = True) -> str:
    """Run a command in the workspace with its own MLflow store; its output is in the error if it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=_environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def start(folder: Path, *command: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a command in the workspace, in a session of its own; what it says goes to `start.log`."""
    with (folder / "start.log").open("w") as log:
        return subprocess.Popen(
            command, cwd=folder, env=_environment(env), stdout=log, stderr=log, text=True, start_new_session=True
        )


def wait_for_step(folder: Path, training: subprocess.Popen[str], step: int) -> None:
    """Wait until the training tells of `step`; RuntimeError when it ended before, or after two minutes."""
    wait_for(folder, training, lambda told: any(record["step"] == step for record in told.get("steps", ())))


def wait_for(folder: Path, training: subprocess.Popen[str], wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait for a line of the training's journal; RuntimeError when it ended before, or after two minutes."""
    deadline = time.monotonic() + 120
    while training.poll() is None and time.monotonic() < deadline:
        for told in read_journal(folder):
            if wanted(told):
                return told
        time.sleep(0.1)
    why = "still waiting after two minutes" if training.poll() is None else "the training ended before"
    raise RuntimeError(f"{why}\n{(folder / 'start.log').read_text()}")


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """What the training's workers told so far, in order."""
    lines = []
    for journal in folder.glob(".unet/training/*/journal.jsonl"):
        with contextlib.suppress(FileNotFoundError):
            # The last line may be half written; others may be damaged by a power cut.
            for line in journal.read_text(errors="replace").split("\n")[:-1]:
                with contextlib.suppress(json.JSONDecodeError):
                    lines.append(json.loads(line))
    return lines


def training_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of Ray's training workers below a driver."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "RayTrainWorker" in words_of(child)]


def words_of(process: psutil.Process) -> str:
    """Its command line; none where it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill_driver(process: subprocess.Popen[str]) -> None:
    """Kill a driver as a power cut of its host would, and wait until the training below it has ended.

    Workers and controller notice it a little later and record checkpoints until then.
    """
    below = psutil.Process(process.pid).children(recursive=True)
    training = [child for child in below if "Train" in words_of(child)]
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(training, timeout=60)
    if left:
        raise RuntimeError(f"these processes outlive their driver: {left}")
    for child in below:
        # What is idle, such as Ray's agents, would take a minute to notice.
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def weights_of(folder: Path) -> str:
    """sha256 of the trained weights' file."""
    return hashlib.sha256((folder / "models" / "final" / "model.safetensors").read_bytes()).hexdigest()


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """The environment without what places the user's own runs, and with this interpreter's commands."""
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "UNET_", "RAY_"))}
    scripts = str(Path(sys.executable).parent)
    return {**outside, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", **(extra or {})}


def peak_mb() -> float:
    """Largest resident memory of the process. Not getrusage: a child begins with its parent's peak there."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def print_result(result: Mapping[str, Any]) -> None:
    """The one JSON line that a benchmark prints last."""
    print(json.dumps(result), flush=True)
