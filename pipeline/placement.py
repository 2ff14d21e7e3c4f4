"""Environment -> where things run and lie. Placement changes no result; the recipe (params.yaml) does.

The only module that reads environment variables; README.md shows them as a table.
"""

import math
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from unet_core.errors import RecipeError

#: In place of a URL of shards: where `dvc push` puts them.
DVC_REMOTE = "dvc"
#: What `unet submit` passes on to the cluster. Caches and commands belong to a machine, and credentials to the
#: cluster's own environment.
PASSED_ON = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "UNET_WORKERS",
    "UNET_PROCESSES",
    "UNET_LOADER_THREADS",
    "UNET_SHARDS",
    "UNET_CHECKPOINTS",
)


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many workers may train; between the two, as many as there is room for."""

    least: int
    most: int


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and how fast."""

    root: Path
    """The working tree; stages run here."""
    tracking_uri: str
    """MLFLOW_TRACKING_URI: MLflow's server or store; by default a SQLite file in the working tree."""
    experiment: str
    """MLFLOW_EXPERIMENT_NAME: MLflow's experiment for the runs; by default `unet`."""
    ray_address: str | None
    """RAY_ADDRESS: a running cluster; by default Ray starts on this machine for the length of the training."""
    workers: Workers | None
    """UNET_WORKERS: training workers, N or MIN-MAX; by default as many as cores or GPUs and the lanes allow."""
    loader_threads: int
    """UNET_LOADER_THREADS: threads that prepare batches in each worker; by default 1."""

    processes: int | None = None
    """UNET_PROCESSES: processes that check files; by default one per core, of this machine or of the cluster."""

    shards: str | None = None
    """UNET_SHARDS: URL of a copy of data/shards, from which the training workers fetch, or `dvc`: where they don't see
    the driver's data/shards, they fetch from DVC's remote; by default they read data/shards itself."""
    cache_dir: str = "~/.cache/unet"
    """UNET_CACHE: folder for fetched shards, on each node's own disk; by default ~/.cache/unet."""
    cache_gb: float = 20.0
    """UNET_CACHE_GB: the most that they may take of it, in 10^9 bytes; by default 20."""
    checkpoints: str | None = None
    """UNET_CHECKPOINTS: URL below which working checkpoints lie, in a folder for each training; by default .unet/ of
    the working tree, which all hosts must then see."""

    jobs_address: str = "http://127.0.0.1:8265"
    """RAY_API_SERVER_ADDRESS: Ray's Jobs API, to which `unet submit` sends; by default that of this machine."""

    on_promotion: tuple[str, ...] = ()
    """UNET_ON_PROMOTION: a command, as words of a shell but run without one, that is told of each new champion."""
    prediction_log: Path = Path(".unet/predictions")
    """UNET_PREDICTION_LOG: folder of the log of predictions; by default .unet/predictions of the working tree."""
    prediction_log_gb: float = 1.0
    """UNET_PREDICTION_LOG_GB: the most that copies of images may take of it, in 10^9 bytes; by default 1."""

    webhook: str | None = None
    """UNET_WEBHOOK: an address that `unet retrain` tells what came of it. Who knows it may write there: a secret."""

    @property
    def state_dir(self) -> Path:
        """Working files that are nobody's result: checkpoints of unfinished trainings, timings."""
        return self.root / ".unet"

    @property
    def timings(self) -> Path:
        """Seconds of the last stages, for people."""
        return self.state_dir / "timings.jsonl"


def read_placement() -> Placement:
    """Read the environment; RecipeError for a number that is none."""
    root = Path.cwd()
    store = _main_tree(root) / "mlflow.db"
    return Placement(
        root=root,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store}",
        experiment=os.environ.get("MLFLOW_EXPERIMENT_NAME") or "unet",
        ray_address=os.environ.get("RAY_ADDRESS") or None,
        workers=_read_workers("UNET_WORKERS"),
        loader_threads=_read_count("UNET_LOADER_THREADS") or 1,
        processes=_read_count("UNET_PROCESSES"),
        shards=_read_url("UNET_SHARDS", or_else=DVC_REMOTE),
        cache_dir=os.environ.get("UNET_CACHE") or Placement.cache_dir,
        cache_gb=_read_gigabytes("UNET_CACHE_GB") or Placement.cache_gb,
        checkpoints=_read_url("UNET_CHECKPOINTS"),
        jobs_address=os.environ.get("RAY_API_SERVER_ADDRESS") or Placement.jobs_address,
        on_promotion=_read_words("UNET_ON_PROMOTION"),
        webhook=_read_webhook("UNET_WEBHOOK"),
        prediction_log=_read_folder("UNET_PREDICTION_LOG") or Placement.prediction_log,
        prediction_log_gb=_read_gigabytes("UNET_PREDICTION_LOG_GB") or Placement.prediction_log_gb,
    )


def read_ray_token() -> str | None:
    """The cluster's token, from where Ray itself looks for it; None where there is none. Never to be shown."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return (path.read_text(encoding="utf-8").strip() or None) if path.is_file() else None


def read_s3_endpoint() -> str | None:
    """Where S3 is to be found by whoever reads addresses alone; None: at Amazon."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


@contextmanager
def with_variable(name: str, value: str) -> Iterator[None]:
    """Inside, what this process starts has the variable; afterwards the environment is as it was."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def passed_on() -> dict[str, str]:
    """The variables of this process that a job on a cluster is to have too."""
    return {name: value for name in PASSED_ON if (value := os.environ.get(name))}


def environment_of(root: Path, *, tracking_uri: str) -> dict[str, str]:
    """The environment for a process that runs the code of another working tree, with stores of its own."""
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Checkpoints of the user's training would spare what is to be done again, and the copy of shards is of theirs.
    own = ("UNET_CHECKPOINTS", "UNET_SHARDS")
    outside = {name: value for name, value in os.environ.items() if name not in own}
    return {**outside, "PYTHONPATH": os.pathsep.join(paths), "MLFLOW_TRACKING_URI": tracking_uri}


def environment_for_tools(*, use_cluster: bool = True) -> dict[str, str]:
    """The environment for git, DVC and our own commands: this interpreter's come first, since a scheduler's PATH may
    lack them. `use_cluster`: on the cluster's hosts too, if there is one.
    """
    paths = [str(Path(sys.executable).parent), *filter(None, [os.environ.get("PATH")])]
    left_out = {"UNET_WEBHOOK", *(() if use_cluster else ("RAY_ADDRESS",))}
    outside = {name: value for name, value in os.environ.items() if name not in left_out}
    # DVC runs stages by $SHELL, which for a service's account may be one that refuses. Nobody is there to answer git.
    return {**outside, "PATH": os.pathsep.join(paths), "SHELL": "/bin/sh", "GIT_TERMINAL_PROMPT": "0"}


def _main_tree(root: Path) -> Path:
    """The user's working tree. DVC runs queued experiments in copies below its .dvc/tmp, which it deletes later."""
    parts = root.parts
    return Path(*parts[: parts.index(".dvc")]) if ".dvc" in parts else root


def _read_workers(name: str) -> Workers | None:
    text = os.environ.get(name)
    if not text:
        return None
    least, dash, most = text.partition("-")
    numbers = [int(part) if part.isascii() and part.isdigit() else 0 for part in (least, most if dash else least)]
    if min(numbers) < 1:
        raise RecipeError(
            f"environment variable {name}: {text!r} is neither a number from 1 nor a range such as 1-4. "
            "Correct or unset it."
        )
    if numbers[0] > numbers[1]:
        raise RecipeError(
            f"environment variable {name}: {text!r}: the least number of workers comes first. "
            f"Did you mean {numbers[1]}-{numbers[0]}?"
        )
    return Workers(least=numbers[0], most=numbers[1])


def _read_words(name: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(os.environ.get(name) or ""))
    except ValueError as error:
        raise RecipeError(
            f"environment variable {name}: {error}: not a command's words. Correct or unset it."
        ) from error


def _read_url(name: str, *, or_else: str | None = None) -> str | None:
    text = os.environ.get(name)
    if text and "://" not in text and text != or_else:
        word = f", and not {or_else}" if or_else else ""
        raise RecipeError(
            f"environment variable {name}: {text!r} is not a URL such as s3://bucket/folder{word}. Correct or unset it."
        )
    return text or None


def _read_folder(name: str) -> Path | None:
    text = os.environ.get(name)
    if text and "://" in text:
        raise RecipeError(
            f"environment variable {name}: {text!r} is a URL: lines are added to its files, which needs a folder. "
            "Correct or unset it."
        )
    return Path(text).expanduser() if text else None


def _read_webhook(name: str) -> str | None:
    text = os.environ.get(name)
    if text and not re.fullmatch(r"https?://[^/\s@?#]+([/?#]\S*)?", text):
        raise RecipeError(
            f"environment variable {name}: not an address that begins with https:// or http:// (it is not shown, since "
            "it may be a secret; a name and password before the host are not possible). Correct or unset it."
        )
    return text or None


def _read_gigabytes(name: str) -> float | None:
    text = os.environ.get(name)
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise RecipeError(f"environment variable {name}: {text!r} is not a number above 0. Correct or unset it.")
    return number


def _read_count(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise RecipeError(f"environment variable {name}: {text!r} is not a number from 1. Correct or unset it.")
    return int(text)
