"""What follows a training, by reports as workers tell them."""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import progress
from pipeline.params import load_section
from unet_core.checkpoint import Scores, ValidationRecord
from unet_core.errors import TrainingError
from unet_core.plan import plan_epoch
from unet_core.train_config import TrainConfig

# MLflow's import alone takes seconds.
pytestmark = pytest.mark.slow


class Record:
    """Keeps what would be sent to MLflow."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, Mapping[str, float]]] = []

    def log_step(self, step: int, metrics: Mapping[str, float], time_ms: int) -> None:
        self.steps.append((step, metrics))

    def flush(self) -> None:
        pass


def report(steps: range, epoch: int, *, loss: float | None = None, dice: float | None = None) -> dict[str, Any]:
    """What a worker tells after some steps; with a validation where a loss is given."""
    return {
        "epoch": epoch,
        "seconds": 2.0 * epoch,
        "workers": 2,
        "time_ms": 1000 * epoch,
        "steps": [{"step": step, "loss": 1 / step, "learning_rate": 0.1} for step in steps],
        "validation": {"step": steps[-1], "epoch": epoch, "loss": loss, "dice": dice, "class_dice": {"cell": dice}}
        if loss is not None
        else None,
    }


@pytest.fixture
def watch(tree):
    from pipeline.watch import Watch

    def make(**changes: object):
        tree.write_recipe(train=changes)
        config = load_section("train", TrainConfig)
        # Two steps, of 8 and 4 samples, and one that rests.
        plan = plan_epoch([13], seed=0, epoch=0, lanes=4, samples_per_lane=2, block_shards=1)
        return Watch(Record(), replace(config, epochs=3), plan)

    return make


HISTORY = [
    report(range(1, 3), 1, loss=0.9, dice=None),
    report(range(3, 5), 2, loss=0.3, dice=0.7),
    report(range(5, 7), 3, loss=0.4, dice=0.8),
]


def test_the_best_validation_is_chosen_as_the_recipe_says(watch) -> None:
    for select_by, epoch in (("loss", 2), ("dice", 3)):
        seen = watch(select_by=select_by)
        for told in HISTORY:
            seen.on_report(told)
        assert seen.best()["epoch"] == epoch


def test_validations_without_a_score_cannot_choose_by_it(watch) -> None:
    seen = watch(select_by="dice")
    seen.on_report(HISTORY[0])
    with pytest.raises(TrainingError) as caught:
        seen.best()
    assert str(caught.value) == (
        "validation gave no score: no scored class occurs in the validation split or its predictions. "
        "Add such images, or set train.select_by: loss."
    )


def test_metrics_and_curves_hold_every_step_once_and_nothing_of_when(watch) -> None:
    seen = watch(select_by="dice")
    for told in (*HISTORY, HISTORY[1], HISTORY[2]):
        seen.on_report(told)
    seen.write(Path("metrics/train.json"), Path("plots/curves.csv"), Path("plots/validation.csv"))
    assert json.loads(Path("metrics/train.json").read_text(encoding="utf-8")) == {
        "val_loss": 0.4,
        "val_dice": 0.8,
        "val_class_dice": {"cell": 0.8},
        "best_epoch": 3,
        "steps": 6,
        "samples_resting_per_epoch": 1,
    }

    def read(path: str) -> list[dict[str, str]]:
        with Path(path).open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    assert [row["step"] for row in read("plots/curves.csv")] == [str(step) for step in range(1, 7)]
    assert read("plots/curves.csv")[1] == {"step": "2", "train_loss": "0.5", "learning_rate": "0.1"}
    assert read("plots/validation.csv")[:2] == [
        {"step": "2", "val_loss": "0.9", "val_dice": ""},
        {"step": "4", "val_loss": "0.3", "val_dice": "0.7"},
    ]


def test_what_was_told_on_a_lost_machine_comes_from_the_last_checkpoint(watch) -> None:
    """Files are the same as where every report was seen."""
    scores = Scores(
        losses=(1.5, *(1 / step for step in range(1, 7))),
        learning_rates=(0.1,) * 7,
        validations=tuple(
            ValidationRecord(**validation) for told in HISTORY if (validation := told["validation"]) is not None
        ),
    )
    written = []
    for told in ([], HISTORY[2:], HISTORY):
        seen = watch(select_by="dice")
        for line in told:
            seen.on_report(line)
        seen.complete(scores)
        paths = [Path("train.json"), Path("curves.csv"), Path("validation.csv")]
        seen.write(*paths)
        written.append([path.read_bytes() for path in paths])
        # MLflow too gets everything once.
        assert sorted(step for step, metrics in seen._run.steps if "train_loss" in metrics) == list(range(7))
        assert sorted(step for step, metrics in seen._run.steps if "val_loss" in metrics) == [2, 4, 6]
    assert written[0] == written[1] == written[2]
    assert written[0][1].splitlines()[:3] == [b"step,train_loss,learning_rate", b"0,1.5,0.1", b"1,1.0,0.1"]


def test_a_report_with_a_failure_is_kept(watch) -> None:
    seen = watch()
    seen.on_report({"failure": "a shard is damaged", "time_ms": 0})
    assert seen.failure == "a shard is damaged"


def test_a_failure_of_an_earlier_attempt_is_over_once_training_goes_on(watch) -> None:
    """The journal is told from its start: a mended mistake must not fail every later attempt."""
    seen = watch()
    seen.on_report(HISTORY[0])
    seen.on_report({"failure": "a shard is damaged", "time_ms": 0})
    seen.on_report(HISTORY[1])
    assert seen.failure is None


def test_a_lost_worker_and_another_number_of_workers_are_told(watch, caplog: pytest.LogCaptureFixture) -> None:
    seen = watch()
    with caplog.at_level("INFO"):
        seen.on_report(HISTORY[0])
        seen.on_report({"lost": "a worker was lost, or its host.", "time_ms": 0})
        seen.on_report({**HISTORY[1], "workers": 1})
    assert [record.getMessage() for record in caplog.records] == [
        "train: 2 workers now",
        "train: a worker was lost, or its host. Going on from the last checkpoint.",
        "train: 1 worker now, before 2",
    ]


def test_the_progress_line_tells_loss_speed_and_workers(
    watch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    seen = watch()
    with caplog.at_level("INFO"):
        seen.on_report({**HISTORY[0], "validation": None})
        seen.on_report({**HISTORY[1], "seconds": 2.5})
    first, second = [re.sub(r"\d\d:\d\d", "MM:SS", told) for told in caplog.messages if " of " in told]
    # Each report is of two steps with 12 samples together.
    assert first == "train: 3 of 6 steps, MM:SS left, loss 0.5000, 6.0 samples/s, 2 workers"
    assert second == "train: 5 of 6 steps, MM:SS left, loss 0.2500, val_loss 0.3000, 24.0 samples/s, 2 workers"


def test_seconds_of_training_are_those_of_all_groups_of_workers(watch) -> None:
    seen = watch(select_by="loss")
    lost = {"lost": "a worker was lost, or its host.", "time_ms": 0}
    for told, seconds, workers in (
        (HISTORY[0], 2.0, 2),
        (HISTORY[1], 5.0, 2),
        # A host came: a new group, that was slower to tell something than the one before.
        (HISTORY[1], 6.0, 3),
        (lost, 0.0, 0),
        (HISTORY[1], 7.0, 3),
        # The journal of an earlier driver, whose own losses are no longer in it.
        (HISTORY[2], 1.0, 3),
    ):
        seen.on_report({**told, "seconds": seconds, "workers": workers})
    assert seen.seconds == 5 + 6 + 7 + 1
    assert seen.summary().endswith("(19 s of training)")


def test_skipped_steps_of_float16_are_told(watch) -> None:
    seen = watch(select_by="loss")
    for told in HISTORY:
        seen.on_report(told)
    assert "float16" not in seen.summary()
    again = watch(select_by="loss")
    for told in HISTORY:
        again.on_report({**told, "steps": [{**step, "is_skipped": step["step"] < 3} for step in told["steps"]]})
    assert again.summary().endswith(", 2 steps skipped, whose gradient overflowed float16")
