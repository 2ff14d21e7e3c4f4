"""Images a second of the training stage, beside plain DDP, one worker with two threads, and bare loops.

The default recipe on shapes, in rounds side by side, medians. The stage has Ray, loader, exact sums, reports and
checkpoints; it is timed from its first report to the one before its last, so that neither its start nor the validation
at its end counts. The bare loops have the same network, precision, memory format and lanes, one batch in memory and
nothing else: one process with all threads lane by lane (`bare`), the same in one pass (`bare_one_pass`), and a process
with one thread for each half of the lanes that never meet (`bare_two_processes`).
`python -m benchmarks.training [--quick]` prints one JSON line last.
"""

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.workspace import ROOT, change_recipe, make_workspace, print_result, run
from pipeline.memory import keep_freed_memory
from pipeline.worker import read_recipe
from unet_core.backward import merge
from unet_core.index import read_index
from unet_core.inference import autocast
from unet_core.loader import LaneLoader
from unet_core.reader import ShardReader
from unet_core.reduction import LaneTree
from unet_core.trainer import Trainer

SHARDS = Path("data/shards")
BARE_SECONDS = 10.0
#: The stage's runs: what they change in the recipe, and the workers.
STAGES: dict[str, tuple[dict[str, Any], int]] = {
    "images_per_second": ({"train.exact": True, "train.threads_per_worker": 1}, 2),
    "plain_ddp_images_per_second": ({"train.exact": False, "train.threads_per_worker": 1}, 2),
    "one_worker_two_threads_images_per_second": ({"train.exact": True, "train.threads_per_worker": 2}, 1),
}


def main() -> None:
    """Measure in rounds, each way once a round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round instead of three")
    parser.add_argument("--bare", nargs=3, metavar=("THREADS", "PARTS", "PASSES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        threads, parts, passes = arguments.bare
        print_result({"images_per_second": bare_loop(int(threads), int(parts), passes)})
        return
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_workspace(Path(scratch) / "road", "shapes", {})
        run(folder, "unet", "shapes", "data/raw/shapes", "--count", "400")
        run(folder, "unet", "add")
        run(folder, "dvc", "repro", "shard")
        for _ in range(1 if arguments.quick else 3):
            measured = {
                "bare_images_per_second": bare(folder, (2, 1, "lanes")),
                "bare_one_pass_images_per_second": bare(folder, (2, 1, "one")),
                "bare_two_processes_images_per_second": bare(folder, (1, 2, "lanes"), (1, 2, "lanes")),
            }
            measured |= {name: stage(folder, changes, workers) for name, (changes, workers) in STAGES.items()}
            for name, value in measured.items():
                print(f"{name}: {value:.1f}", flush=True)
                found.setdefault(name, []).append(value)
    medians = {name: round(statistics.median(values), 1) for name, values in found.items()}
    exact = medians["images_per_second"]
    print_result(
        {
            **medians,
            "exact_over_plain_ddp": round(exact / medians["plain_ddp_images_per_second"], 3),
            "stage_over_bare": round(exact / medians["bare_images_per_second"], 3),
            "two_workers_over_two_threads": round(exact / medians["one_worker_two_threads_images_per_second"], 3),
            "rounds": found,
        }
    )


def stage(folder: Path, changes: Mapping[str, Any], workers: int) -> float:
    """Train for some epochs in the workspace; images a second between the reports."""
    # One validation, at the end; a checkpoint every fifty steps, as a long training would have.
    epochs = {"train.epochs": 4, "train.validate_every_epochs": 4, "train.checkpoint_every_steps": 50}
    change_recipe(folder, "shapes", {**epochs, **changes})
    store = folder / "mlflow.db"
    store.unlink(missing_ok=True)
    run(folder, "dvc", "repro", "--force", "--single-item", "train", env={"UNET_WORKERS": str(workers)})
    with sqlite3.connect(store) as connection:
        rows = connection.execute(
            "select timestamp, max(step) from metrics where key = 'train_loss' group by timestamp"
        )
        reports = sorted(rows)
    (began, first), (ended, last) = reports[0], reports[-2]
    return float((last - first) * samples_per_step(folder) / (ended - began) * 1000)


def samples_per_step(folder: Path) -> int:
    """How many images a step has."""
    import yaml

    train = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))["train"]
    return int(train["lanes"] * train["samples_per_lane"])


def bare(folder: Path, *loops: tuple[int, int, str]) -> float:
    """Bare loops at the same time, each in a process of its own; images a second of all together."""
    commands = [[sys.executable, "-m", "benchmarks.training", "--bare", *map(str, loop)] for loop in loops]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    found = [json.loads(process.communicate()[0].splitlines()[-1])["images_per_second"] for process in processes]
    return float(sum(found))


def bare_loop(threads: int, parts: int, passes: str) -> float:
    """Images a second of a loop over one batch, of one of `parts` workers that never exchange anything."""
    index = read_index(SHARDS)
    spec, config, augment = read_recipe(index)
    torch.set_num_threads(threads)
    keep_freed_memory()
    trainer = Trainer(spec, config, LaneTree(lanes=config.lanes))
    train = ShardReader(SHARDS, index.of_split("train"))
    plan = config.plan(train, spec.class_map, epoch=0)
    loader = LaneLoader(train, spec.class_map, augment, seed=config.seed)
    batches = next(loader.steps(plan, epoch=0, lanes=range(config.lanes // parts)))

    trainer.model.train()

    def step() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        taken = [merge(batches)] if passes == "one" else batches
        for batch in taken:
            with autocast(trainer.device, spec.precision):
                logits = trainer.model(batch.images)
            masks = batch.masks
            trainer.loss(logits, masks.long() if masks.dim() == 3 else masks).backward()  # type: ignore[no-untyped-call]
        trainer.optimizer.step()

    for _ in range(5):
        step()
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < BARE_SECONDS:
        step()
        steps += 1
    return steps * sum(len(batch.keys) for batch in batches) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
