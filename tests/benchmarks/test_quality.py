import argparse
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality import Report, Speed, measures_of, read_change, read_reports, speed_of


def report(seconds: float, last_step: int, *, is_validated: bool = False) -> Report:
    return Report(time_ms=int(seconds * 1000), last_step=last_step, is_validated=is_validated)


def test_a_step_and_a_validation_are_timed_apart_and_start_up_is_left_out() -> None:
    # 10 steps in 5 s, then 4 steps and a validation in 9 s.
    reports = [report(100, 9), report(105, 19), report(114, 23, is_validated=True)]
    assert speed_of(reports, 24) == Speed(steps_per_epoch=24, seconds_per_step=0.5, seconds_per_validation=7.0)


def test_a_validation_quicker_than_the_clock_takes_no_time_rather_than_less() -> None:
    reports = [report(0, 9), report(10, 19), report(19, 29, is_validated=True)]
    assert speed_of(reports, 30).seconds_per_validation == 0.0


def test_the_last_epoch_is_validated_whatever_the_interval() -> None:
    speed = Speed(steps_per_epoch=10, seconds_per_step=0.5, seconds_per_validation=3.0)
    assert [speed.seconds(epochs, 4) for epochs in (1, 4, 5)] == [8.0, 23.0, 31.0]


@given(
    steps=st.integers(1, 100),
    per_step=st.floats(0.01, 2),
    per_validation=st.floats(0, 30),
    seconds=st.floats(0, 500),
    every=st.integers(1, 20),
)
def test_one_epoch_more_would_not_fit(
    steps: int, per_step: float, per_validation: float, seconds: float, every: int
) -> None:
    speed = Speed(steps_per_epoch=steps, seconds_per_step=per_step, seconds_per_validation=per_validation)
    epochs = speed.epochs_within(seconds, every)
    assert epochs == 1 or speed.seconds(epochs, every) <= seconds
    assert speed.seconds(epochs + 1, every) > seconds


def test_reports_are_read_from_the_store_of_runs(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("create table metrics (key text, value real, timestamp bigint, step bigint)")
        rows = [
            *(("train_loss", 0.5, 2000, step) for step in (10, 11)),
            ("val_loss", 0.4, 2000, 11),
            *(("train_loss", 0.6, 1000, step) for step in range(10)),
            ("system/cpu_utilization_percentage", 99.0, 1500, 0),
        ]
        connection.executemany("insert into metrics values (?, ?, ?, ?)", rows)
    assert read_reports(tmp_path) == [report(1, 9), report(2, 11, is_validated=True)]


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("train.learning_rate=1e-3", ("train.learning_rate", 0.001)),
        ("train.loss={dice: 0.5, focal: {weight: 1}}", ("train.loss", {"dice": 0.5, "focal": {"weight": 1}})),
        ("model.norm=group", ("model.norm", "group")),
        ("augment.crop_px=null", ("augment.crop_px", None)),
    ],
)
def test_a_change_is_read_as_the_recipe_would_have_it(text: str, change: object) -> None:
    assert read_change(text) == change


@pytest.mark.parametrize("text", ["train.epochs", "epochs=3", "train.loss.dice=1"])
def test_a_change_without_section_key_and_value_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not SECTION.KEY=VALUE"):
        read_change(text)


def test_mean_iou_counts_all_pixels_of_a_class_together() -> None:
    body = {
        "iou": 0.5,
        "class_iou": {"crop": 0.3, "weed": 0.7},
        "pooled_iou": {"crop": 0.5, "weed": 0.8},
        "interval_95": [0.4, 0.6],
        "images": 6,
        "groups": 6,
    }
    found = measures_of("cwfid", body)
    assert (found["mean_iou"], found["mean_iou_of_images"]) == (0.65, 0.5)
