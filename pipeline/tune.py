"""`unet tune`: try learning rates and numbers of samples a lane for a minute, and say what to put into params.yaml."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from pipeline.command import say
from pipeline.memory import give_back_memory
from pipeline.progress import progress
from pipeline.worker import read_recipe, settle_process
from unet_core.errors import RecipeError
from unet_core.index import read_index
from unet_core.loader import Batch, LaneLoader
from unet_core.model import ModelSpec
from unet_core.reader import ShardReader
from unet_core.reduction import LaneTree
from unet_core.sweep import Load, Sweep, endless_batches, suggested_load, sweep_rates
from unet_core.train_config import TrainConfig
from unet_core.trainer import Trainer
from unet_core.transforms import AugmentConfig

#: Steps of the sweep, and timed steps of each number of samples: thorough and quick.
THOROUGH, QUICK = (300, 8), (80, 3)
MAX_SAMPLES = 64
#: Of the memory that is free now, what a step may take.
MEMORY_FRACTION = 0.7


def tune(*, shards: Path, out: Path, quick: bool) -> None:
    """Print lines for params.yaml and draw the curves; nothing else changes."""
    sweep_steps, timed_steps = QUICK if quick else THOROUGH
    index = read_index(shards)
    spec, config, augment = read_recipe(index)
    # Each number of samples would be compiled for itself; what is found is the same to rounding.
    config = replace(config, compile=False)
    train = ShardReader(shards, index.of_split("train"))
    # Too few samples are told as they are when training.
    config.plan(train, spec.class_map, epoch=0)
    settle_process(config, _device())
    border = config.read_border_weight(spec.class_map)
    loader = LaneLoader(train, spec.class_map, augment, seed=config.seed, border=border)
    loads = measure_loads(spec, config, augment, loader, timed_steps)
    best = suggested_load(loads)
    accumulate, config = config.accumulate, with_samples(config, best.samples_per_lane)
    batches = progress(endless_batches(loader, config, spec.class_map), total=sweep_steps, label="tune", unit="steps")
    trainer = Trainer(spec, config, LaneTree(lanes=config.lanes), _device())
    sweep = sweep_rates(trainer, batches, num_steps=sweep_steps)
    draw(out, sweep, loads)
    for load in loads:
        memory = "" if load.peak_mb is None else f", {load.peak_mb:.0f} MB a step"
        say(f"samples_per_lane {load.samples_per_lane}: {load.images_per_second:.3g} images/s{memory}")
    say(f"the loss falls fastest at a rate of {sweep.steepest:.2g}; the sweep ended at {sweep.rates[-1]:.2g}. {out}")
    say("for the section train of params.yaml:")
    say(f"  samples_per_lane: {best.samples_per_lane}")
    if accumulate != config.accumulate:
        say(f"  accumulate: {config.accumulate}  # as measured; the recipe has {accumulate}")
    say(f"  learning_rate: {sweep.suggested}")


def with_samples(config: TrainConfig, samples_per_lane: int) -> TrainConfig:
    """The same recipe with other batches, each lane in one pass."""
    return replace(config, samples_per_lane=samples_per_lane, accumulate=1)


def measure_loads(
    spec: ModelSpec, config: TrainConfig, augment: AugmentConfig, loader: LaneLoader, timed_steps: int
) -> list[Load]:
    """Speed and memory of one lane with 1, 2, 4 ... samples, as long as data and memory last.

    Numbers with which batch norm would see a single value are left out; RecipeError where that is so of all.
    """
    loads: list[Load] = []
    refused: RecipeError | None = None
    samples = 1
    while samples <= min(MAX_SAMPLES, len(loader.reader) // config.lanes):
        try:
            check_load(spec, with_samples(config, samples), augment, loader.reader)
        except RecipeError as error:
            refused = error
            say(f"samples_per_lane {samples}: left out: batch norm would see a single value")
        else:
            loads.append(measure_lane(spec, with_samples(config, samples), loader, timed_steps))
            peak = loads[-1].peak_mb
            if peak is not None and 2 * peak > MEMORY_FRACTION * _free_mb():
                break
        samples *= 2
    if not loads and refused is not None:
        raise refused
    return loads


def check_load(spec: ModelSpec, config: TrainConfig, augment: AugmentConfig, train: ShardReader) -> None:
    """RecipeError where batch norm would see a single value, in training or while one lane is measured."""
    # Of several samples, a measured lane has all in one pass; in training an epoch's last step has what is left.
    checked = replace(config, lanes=1) if config.samples_per_lane == 1 else config
    checked.check_norm(spec, augment, train, checked.plan(train, spec.class_map, epoch=0))


def measure_lane(spec: ModelSpec, config: TrainConfig, loader: LaneLoader, timed_steps: int) -> Load:
    """Time one lane's first step of an epoch."""
    one = replace(config, lanes=1)
    plan = one.plan(loader.reader, spec.class_map, epoch=0)
    (batch,) = next(loader.steps(plan, epoch=0, lanes=range(1)))
    return measure(spec, one, batch, timed_steps)


def measure(spec: ModelSpec, config: TrainConfig, batch: Batch, timed_steps: int) -> Load:
    """Time steps on one batch; the first one warms up, and its memory counts."""
    trainer = Trainer(spec, config, LaneTree(lanes=1), _device())
    before = _begin_peak()
    trainer.step_at([batch], 0.0)
    after = _peak_mb()
    began = time.perf_counter()
    for _ in range(timed_steps):
        trainer.step_at([batch], 0.0)
    seconds = time.perf_counter() - began
    return Load(
        samples_per_lane=config.samples_per_lane,
        images_per_second=timed_steps * len(batch.keys) / seconds,
        peak_mb=None if before is None or after is None else after - before,
    )


def draw(out: Path, sweep: Sweep, loads: Sequence[Load]) -> None:
    """The curve of the sweep, and speed by samples a lane."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogx(sweep.rates, sweep.losses)
    if sweep.falls:
        left.axvline(sweep.suggested, color="tab:orange", label=f"suggested: {sweep.suggested}")
        left.legend()
    left.set(xlabel="learning rate", ylabel="loss, smoothed", title="Rising learning rate")
    right.semilogx([load.samples_per_lane for load in loads], [load.images_per_second for load in loads], "o-", base=2)
    right.set(xlabel="samples per lane", ylabel="images/s, one worker", ylim=(0, None), title="Speed")
    out.parent.mkdir(parents=True, exist_ok=True)
    is_known = out.suffix[1:].lower() in figure.canvas.get_supported_filetypes()
    figure.savefig(out, format=None if is_known else "png")


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _free_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] / 2**20
    return psutil.virtual_memory().available / 2**20


def _begin_peak() -> float | None:
    """Forget earlier peaks of memory; what is in use now, in MB, or None where that is not known."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    # What an earlier step has freed would take this one's place unseen.
    give_back_memory()
    try:
        # Linux: the largest resident size begins anew.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _peak_mb()


def _peak_mb() -> float | None:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)
