"""A small recipe trained with 1, 2 and 4 workers, and with a worker killed on the way: the hash of the weights.

Compares with itself: all hashes are to be the same, and another seed must give another, or the comparison means
nothing. `python -m benchmarks.bits [--quick]` prints one JSON line last.
"""

import argparse
import signal
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.workspace import (
    make_workspace,
    print_result,
    run,
    start,
    training_workers,
    wait_for_step,
    weights_of,
)

SMALL = {"train.epochs": 4, "train.lanes": 4, "train.samples_per_lane": 2, "train.checkpoint_every_steps": 5}
QUICK = {"model.width": 4, "model.depth": 2, "train.epochs": 2}
#: By then there is a checkpoint, and steps after it that must be repeated.
KILL_AFTER_STEP = 12


def main() -> None:
    """Train in working trees of their own, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a network a few channels wide, two epochs")
    arguments = parser.parse_args()
    changes = {**SMALL, **(QUICK if arguments.quick else {})}
    hashes = {}
    with tempfile.TemporaryDirectory() as scratch:
        for workers in (1, 2, 4):
            folder = prepare(Path(scratch) / f"workers_{workers}", changes)
            run(folder, "dvc", "repro", "train", env={"UNET_WORKERS": str(workers)})
            hashes[f"workers_{workers}"] = weights_of(folder)
            print(f"{workers} workers: {hashes[f'workers_{workers}']}", flush=True)
        hashes["killed_worker"] = train_with_a_kill(prepare(Path(scratch) / "killed", changes))
        print(f"killed worker: {hashes['killed_worker']}", flush=True)
        folder = prepare(Path(scratch) / "other_seed", {**changes, "train.seed": 1})
        run(folder, "dvc", "repro", "train")
        other_seed = weights_of(folder)
    print_result(
        {
            "hashes": hashes,
            "identical": len(set(hashes.values())) == 1,
            "compared_with": {"another_seed": other_seed},
        }
    )


def prepare(folder: Path, changes: dict[str, Any]) -> Path:
    """A working tree with shards."""
    make_workspace(folder, "shapes", changes)
    run(folder, "unet", "shapes", "data/raw/shapes", "--count", "100")
    run(folder, "unet", "add")
    run(folder, "dvc", "repro", "shard")
    return folder


def train_with_a_kill(folder: Path) -> str:
    """Kill one of two workers between two checkpoints, and let Ray Train go on."""
    process = start(folder, "dvc", "repro", "train", env={"UNET_WORKERS": "2"})
    wait_for_step(folder, process, KILL_AFTER_STEP)
    training_workers(process)[0].send_signal(signal.SIGKILL)
    if process.wait():
        raise RuntimeError((folder / "start.log").read_text())
    return weights_of(folder)


if __name__ == "__main__":
    main()
