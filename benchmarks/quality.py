"""What a recipe reaches on a data set in so many minutes of training on this machine.

A short training measures how long a step and a validation take; from that comes the number of epochs, which is then
trained once and printed, so that `--set train.epochs=N` repeats it anywhere. The data take a user's way: `unet add`,
then `dvc repro`. `python -m benchmarks.quality --data NAME --source FOLDER --minutes M` prints one JSON line last; NAME
is shapes (drawn: no folder, `--floor` estimates their least possible loss), dsb2018, isbi2012 or cwfid.

`--set train.learning_rate=0.001`, again and again, changes the recipe: what is compared has had the same time. Choose
with `--split val`, which leaves the test unread; then read it once.
"""

import argparse
import contextlib
import itertools
import json
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.shapes_floor import floor
from benchmarks.tutorial import judge
from benchmarks.workspace import change_recipe, make_workspace, print_result, run
from pipeline.summary import read_timings
from pipeline.worker import read_recipe
from unet_core.index import read_index
from unet_core.plan import EpochPlan
from unet_core.reader import ShardReader

DATA = ("shapes", "dsb2018", "isbi2012", "cwfid")
NUM_FRESH = 500
#: Steps of the short training, at least.
PROBE_STEPS = 40
#: Share of the minutes that is planned with: the machine may be slower later.
PLANNED_SHARE = 0.95

Changes = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a training told at a moment."""

    time_ms: int
    last_step: int
    is_validated: bool
    """Whether validation lies between the report before and this one."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How long the parts of a training take."""

    steps_per_epoch: int
    seconds_per_step: float
    seconds_per_validation: float
    """Writing its checkpoint included."""

    def seconds(self, epochs: int, validate_every: int) -> float:
        """Of a training with so many epochs."""
        validations = -(-epochs // validate_every)
        return epochs * self.steps_per_epoch * self.seconds_per_step + validations * self.seconds_per_validation

    def epochs_within(self, seconds: float, validate_every: int) -> int:
        """The most epochs that take no longer; at least one."""
        epochs = 1
        while self.seconds(epochs + 1, validate_every) <= seconds:
            epochs += 1
        return epochs


def main() -> None:
    """Measure, train, score."""
    arguments = read_arguments()
    if arguments.floor:
        print_result(floor(50 if arguments.quick else NUM_FRESH))
        return
    changes: Changes = dict(arguments.set)
    with workspace(arguments.out) as folder:
        prepare(folder, arguments.data, arguments.source, changes)
        planned: dict[str, float] = {}
        if "train.epochs" not in changes:
            speed, every = measure_speed(folder), read_section(folder, "train")["validate_every_epochs"]
            epochs = 2 if arguments.quick else speed.epochs_within(arguments.minutes * 60 * PLANNED_SHARE, every)
            changes["train.epochs"] = epochs
            planned = {"planned_minutes": round(speed.seconds(epochs, every) / 60, 2)}
            print(f"{speed}: {epochs} epochs", flush=True)
        trained = train(folder, changes)
        scores = validation_scores(folder)
        if arguments.split == "test":
            scores |= test_scores(folder, arguments.data, 50 if arguments.quick else NUM_FRESH)
    print_result({"data": arguments.data, "recipe": changes, **planned, **trained, "scores": scores})


def read_arguments() -> argparse.Namespace:
    """The command line; what is missing or contradicts ends the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, required=True)
    parser.add_argument("--source", type=Path, help="the unpacked data set")
    parser.add_argument("--minutes", type=float, help="of training, validation included")
    parser.add_argument("--set", type=read_change, action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="val leaves the test unread")
    parser.add_argument("--out", type=Path, help="folder that will be the working tree, and stays")
    parser.add_argument("--floor", action="store_true", help="shapes: only estimate the least possible loss")
    parser.add_argument("--quick", action="store_true", help="two epochs: shows that it runs")
    arguments = parser.parse_args()
    if (arguments.source is None) != (arguments.data == "shapes"):
        parser.error("--source: the folder of the data set; shapes are drawn and have none")
    if arguments.floor and arguments.data != "shapes":
        parser.error("--floor: known for shapes only")
    if not (arguments.floor or arguments.quick or arguments.minutes or "train.epochs" in dict(arguments.set)):
        parser.error("--minutes M, or --set train.epochs=N")
    return arguments


def read_change(text: str) -> tuple[str, Any]:
    """`train.loss={dice: 1}` -> name and value; the value is JSON or YAML."""
    name, equals, value = text.partition("=")
    if not equals or name.count(".") != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not SECTION.KEY=VALUE")
    try:
        # First, since 1e-3 is a text to PyYAML.
        return name, json.loads(value)
    except ValueError:
        return name, yaml.safe_load(value)


@contextlib.contextmanager
def workspace(out: Path | None) -> Iterator[Path]:
    """The folder that is asked for, or one that goes."""
    if out is not None:
        yield out.resolve()
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch) / "road"


def prepare(folder: Path, data: str, source: Path | None, changes: Changes) -> None:
    """Bring the data up to their shards."""
    where = {"ingest.source": str(source.resolve())} if source else {}
    make_workspace(folder, data, {**where, **changes})
    if source is None:
        run(folder, "unet", "shapes", "data/raw/shapes", "--count", "400")
    run(folder, "unet", "add")
    run(folder, "dvc", "repro", "shard")


def measure_speed(folder: Path) -> Speed:
    """Train for a few epochs with one validation."""
    steps = first_plan(folder).num_steps
    own = read_section(folder, "train")
    epochs = -(-PROBE_STEPS // steps)
    train(folder, {"train.epochs": epochs, "train.validate_every_epochs": epochs})
    change_recipe(folder, None, {f"train.{name}": own[name] for name in ("epochs", "validate_every_epochs")})
    return speed_of(read_reports(folder), steps)


def speed_of(reports: Sequence[Report], steps: int) -> Speed:
    """From the times between reports: what comes before the first one, start-up, does not count."""
    gaps = [
        ((after.time_ms - before.time_ms) / 1000, after.last_step - before.last_step, after.is_validated)
        for before, after in itertools.pairwise(reports)
    ]
    plain = [(seconds, count) for seconds, count, is_validated in gaps if not is_validated]
    per_step = sum(seconds for seconds, _ in plain) / sum(count for _, count in plain)
    extra = [seconds - count * per_step for seconds, count, is_validated in gaps if is_validated]
    return Speed(
        steps_per_epoch=steps,
        seconds_per_step=per_step,
        seconds_per_validation=max(0.0, sum(extra) / len(extra)),
    )


def train(folder: Path, changes: Mapping[str, Any]) -> dict[str, float]:
    """Run the stage `train` with these changes; how long, how much, how fast, validation included."""
    change_recipe(folder, None, changes)
    # Reports of an earlier training would be read with this one's.
    (folder / "mlflow.db").unlink(missing_ok=True)
    # Force: a training of the same recipe would come from DVC's cache and take no time.
    run(folder, "dvc", "repro", "--force", "--single-item", "train")
    seconds = read_timings(folder / ".unet" / "timings.jsonl")["training"]
    steps = json.loads((folder / "metrics" / "train.json").read_text(encoding="utf-8"))["steps"]
    plan = first_plan(folder)
    # An epoch's last step may be a smaller one.
    images = steps / plan.num_steps * plan.num_lanes * plan.lane_size
    return {
        "minutes": round(seconds / 60, 2),
        "epochs": round(steps / plan.num_steps),
        "steps": steps,
        "images_per_second": round(images / seconds, 1),
    }


def read_reports(folder: Path) -> list[Report]:
    """What the training told, in order, from MLflow's store."""
    query = (
        "select timestamp, max(step), max(key = 'val_loss') from metrics "
        "where key in ('train_loss', 'val_loss') group by timestamp order by timestamp"
    )
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        return [
            Report(time_ms=time_ms, last_step=step, is_validated=bool(is_validated))
            for time_ms, step, is_validated in connection.execute(query)
        ]


def first_plan(folder: Path) -> EpochPlan:
    """The first epoch of the recipe; all have as many steps."""
    shards = folder / "data" / "shards"
    index = read_index(shards)
    spec, config, _ = read_recipe(index, folder / "params.yaml")
    return config.plan(ShardReader(shards, index.of_split("train")), spec.class_map, epoch=0)


def read_section(folder: Path, name: str) -> Any:
    """One section of the recipe, as it is written."""
    return yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))[name]


def validation_scores(folder: Path) -> dict[str, Any]:
    """Of the weights that were kept, the best on validation."""
    body = json.loads((folder / "metrics" / "train.json").read_text(encoding="utf-8"))
    return {name: body[name] for name in ("val_loss", "val_dice", "val_class_dice", "best_epoch")}


def test_scores(folder: Path, data: str, num_fresh: int) -> dict[str, Any]:
    """By the measure of the data set, on images that chose nothing."""
    if data == "shapes":
        bce, dice = judge(folder / "models" / "final", num_fresh).mean(axis=0)
        return {"loss": round((bce + dice) / 2, 5), "bce": round(bce, 5), "dice_loss": round(dice, 5)}
    run(folder, "dvc", "repro", "evaluate")
    body = json.loads((folder / "metrics" / "evaluate.json").read_text(encoding="utf-8"))
    return measures_of(data, body)


def measures_of(data: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """What metrics/evaluate.json says of the data set's measure."""
    # The interval is that of the mean over images.
    about = {name: body[name] for name in ("interval_95", "images", "groups")}
    if data == "dsb2018":
        return {"dice": body["dice"], **about}
    if data == "isbi2012":
        return {"pixel_error": body["pixel_error"], "dice": body["dice"], **about}
    # All pixels of a class together, as segmentation challenges count, and the mean over images beside it.
    classes = body["pooled_iou"]
    return {
        "mean_iou": sum(classes.values()) / len(classes),
        "class_iou": classes,
        "mean_iou_of_images": body["iou"],
        "class_iou_of_images": body["class_iou"],
        **about,
    }


if __name__ == "__main__":
    main()
