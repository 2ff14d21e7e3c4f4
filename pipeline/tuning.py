"""Trials beside each other, poor ones ended early: the door to Ray Tune.

ASHA (Li et al. 2020) ends a trial that is not among the best of those that came as far. Which ones these are depends on
who came first, so it may spare another trial on another machine; what a trial itself gives does not.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# Nothing that Tune prints is for our users; none of it changes a result.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
# Ctrl-C ends the search as it ends everything else.
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler


class Listener(Protocol):
    """Follows the trials on the driver."""

    def on_report(self, trial: int, told: dict[str, Any]) -> None:
        """What a trial told by `report`."""

    def on_end(self, trial: int) -> None:
        """A trial has ended, of itself or not."""


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """When a trial may be ended."""

    epochs: int
    """Of a trial that is not."""
    grace_epochs: int
    reduction: int


class _Tell(tune.Callback):  # type: ignore[misc]
    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:  # noqa: ARG002
        self._listener.on_report(trial.config["number"], result["told"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        self._listener.on_end(trial.config["number"])


def run_trials(
    trial: Callable[[Mapping[str, Any]], None],
    options: Mapping[int, Mapping[str, Any]],
    listener: Listener,
    *,
    rungs: Rungs,
    threads: int,
    work_dir: Path,
) -> list[str]:
    """Run `trial(options[number])` for each number, as many at a time as the running cluster has room for.

    Gives what was raised in trials that broke.
    """

    def run(config: Mapping[str, Any], options: Mapping[int, Mapping[str, Any]]) -> None:
        trial(options[config["number"]])

    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric="score",
        mode="max",
        max_t=rungs.epochs,
        grace_period=rungs.grace_epochs,
        reduction_factor=rungs.reduction,
    )
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    tuner = tune.Tuner(
        # By Ray's object store: an index of shards may be too large to be part of a function.
        tune.with_resources(tune.with_parameters(run, options=dict(options)), {"cpu": threads, "gpu": gpus}),
        param_space={"number": tune.grid_search(sorted(options))},
        tune_config=tune.TuneConfig(scheduler=scheduler, trial_name_creator=_name, trial_dirname_creator=_name),
        run_config=tune.RunConfig(name="trials", storage_path=str(work_dir), callbacks=[_Tell(listener)], verbose=0),
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    return [str(error) for error in tuner.fit().errors]


def report(told: Mapping[str, Any], *, epoch: int, score: float) -> None:
    """Tell from a trial how good it is (larger is better); here it may be ended."""
    tune.report({"told": dict(told), "epoch": epoch, "score": score})


def _name(trial: Any) -> str:
    return f"trial_{trial.config['number']}"
