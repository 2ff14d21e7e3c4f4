"""What workers report -> a progress line, MLflow, metrics and curves: the part of `train` that follows a training."""

import csv
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.json_file import write_json
from pipeline.progress import Progress
from pipeline.training_run import TrainingRun
from unet_core.checkpoint import Scores
from unet_core.errors import TrainingError
from unet_core.plan import EpochPlan
from unet_core.train_config import TrainConfig

log = logging.getLogger(__name__)


class Watch:
    """Follows a training on the driver: a progress line, MLflow, and the curves. Each step counts once."""

    def __init__(self, run_: TrainingRun, config: TrainConfig, plan: EpochPlan) -> None:
        self._run = run_
        self._config = config
        self._num_steps = config.epochs * plan.num_steps
        self._resting = plan.num_resting
        #: The mean: an epoch's last step may take fewer.
        self._samples_per_step = plan.lane_size * plan.num_lanes / plan.num_steps
        self._steps: dict[int, Mapping[str, Any]] = {}
        self._validations: dict[int, Mapping[str, Any]] = {}
        self._bar: Progress | None = None
        self._done = 0
        self._workers: int | None = None
        self.worker_history: list[str] = []
        self._loss: float | None = None
        self._val_loss: float | None = None
        self._samples_per_second: float | None = None
        self.failure: str | None = None
        self.seconds = 0.0
        """Of training, by all groups of workers one after another."""
        self._group_seconds = 0.0

    def on_report(self, told: dict[str, Any]) -> None:
        """Take one report."""
        if "failure" in told:
            self.failure = told["failure"]
            return
        if "lost" in told:
            log.warning("train: %s Going on from the last checkpoint.", told["lost"])
            self._group_seconds = 0.0
            return
        # A failure of an earlier try, which this one got past.
        self.failure = None
        for warning in told.get("warnings", ()):
            log.warning("train: %s", warning)
        if told["workers"] != self._workers:
            self._take_workers(told["workers"])
        self._take_seconds(told["seconds"], num_steps=len(told["steps"]))
        for step in told["steps"]:
            self._take_step(step, told["time_ms"])
        if told["validation"]:
            self._take_validation(told["validation"], told["time_ms"])
        # On another machine the first one is not step 0.
        self._show(max((step["step"] + 1 for step in told["steps"]), default=0))
        self._run.flush()

    def _take_workers(self, count: int) -> None:
        before = "" if self._workers is None else f", before {self._workers}"
        self._workers = count
        self._group_seconds = 0.0
        log.info("train: %s now%s", _count_workers(count), before)
        self.worker_history.append(f"{_count_workers(count)} from step {max(self._steps, default=0)}")

    def _take_seconds(self, seconds: float, *, num_steps: int) -> None:
        """Take the time since the start of a group of workers, each of which begins at zero."""
        passed = seconds - self._group_seconds if seconds >= self._group_seconds else seconds
        self._group_seconds = seconds
        self.seconds += passed
        if num_steps and passed:
            self._samples_per_second = num_steps * self._samples_per_step / passed

    def _show(self, done: int) -> None:
        """Bring the progress line to so many steps; after a failure some come again."""
        if self._bar is None:
            self._bar = Progress(total=self._num_steps, label="train", unit="steps")
        self._bar.advance(max(0, done - self._done), self._note())
        self._done = max(self._done, done)

    def _take_step(self, step: Mapping[str, Any], time_ms: int) -> None:
        self._steps[step["step"]] = step
        self._loss = step["loss"]
        self._run.log_step(step["step"], {"train_loss": step["loss"], "learning_rate": step["learning_rate"]}, time_ms)

    def _take_validation(self, seen: Mapping[str, Any], time_ms: int) -> None:
        self._validations[seen["step"]] = seen
        scores = {"val_loss": seen["loss"], "val_dice": seen["dice"], "epoch": seen["epoch"]}
        scores |= {f"val_dice_{name}": value for name, value in seen["class_dice"].items()}
        self._run.log_step(seen["step"], {name: value for name, value in scores.items() if value is not None}, time_ms)
        self._val_loss = seen["loss"]

    def complete(self, scores: Scores) -> None:
        """Take from the last checkpoint what was told to nobody here: to a driver on another machine that is lost."""
        time_ms = int(time.time() * 1000)
        for number, (loss, rate) in enumerate(zip(scores.losses, scores.learning_rates, strict=True)):
            if number not in self._steps:
                self._take_step({"step": number, "loss": loss, "learning_rate": rate}, time_ms)
        for record in scores.validations:
            if record.step not in self._validations:
                self._take_validation(asdict(record), time_ms)

    def _note(self) -> str:
        """What stands behind the progress line's numbers."""
        numbers = (
            ("loss {:.4f}", self._loss),
            ("val_loss {:.4f}", self._val_loss),
            ("{:.1f} samples/s", self._samples_per_second),
        )
        known = [text.format(number) for text, number in numbers if number is not None]
        return ", ".join([*known, _count_workers(self._workers or 0)])

    def close(self) -> None:
        """End the progress line."""
        if self._bar is not None:
            self._bar.close()

    def best(self) -> Mapping[str, Any]:
        """The validation whose weights were kept."""
        seen = [v for v in self._validations.values() if self._config.select_by == "loss" or v["dice"] is not None]
        if not seen:
            raise TrainingError(
                "validation gave no score: no scored class occurs in the validation split or its predictions. "
                "Add such images, or set train.select_by: loss."
            )
        key = (lambda v: v["loss"]) if self._config.select_by == "loss" else (lambda v: -v["dice"])
        return min(seen, key=key)

    def write(self, metrics: Path, curves: Path, validation: Path) -> None:
        """Write metrics and curves: what the recipe, data and code decide, and nothing of when or where."""
        best = self.best()
        body = {
            "val_loss": best["loss"],
            "val_dice": best["dice"],
            "val_class_dice": best["class_dice"],
            "best_epoch": best["epoch"],
            "steps": len(self._steps),
            "samples_resting_per_epoch": self._resting,
        }
        write_json(metrics, body)
        steps = [(number, step["loss"], step["learning_rate"]) for number, step in sorted(self._steps.items())]
        _write_table(curves, ("step", "train_loss", "learning_rate"), steps)
        seen = [(number, found["loss"], found["dice"]) for number, found in sorted(self._validations.items())]
        _write_table(validation, ("step", "val_loss", "val_dice"), seen)

    def summary(self) -> str:
        """One line for people."""
        best = self.best()
        skipped = sum(bool(step.get("is_skipped")) for step in self._steps.values())
        float16 = f", {skipped} steps skipped, whose gradient overflowed float16" if skipped else ""
        early = "" if len(self._steps) >= self._num_steps else f", ended early, after step {max(self._steps)}"
        what = f"best val_loss {best['loss']:.4f} after epoch {best['epoch']} ({self.seconds:.0f} s of training)"
        return f"{what}{early}{float16}"


def _count_workers(count: int) -> str:
    return f"{count} worker" if count == 1 else f"{count} workers"


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
