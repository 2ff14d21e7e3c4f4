"""The whole road on a tiny recipe: the seconds of each stage, and of everything that is not training.

Compares with nothing: it is a budget. `python -m benchmarks.overhead [--quick]` prints one JSON line last.
"""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.workspace import make_workspace, print_result, run
from pipeline.summary import read_timings


def main() -> None:
    """Run what `make run` runs, in a new working tree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one epoch instead of the default recipe's twelve")
    arguments = parser.parse_args()
    # Not fewer images than in `make run`: the other stages' seconds are those of the default recipe.
    changes = {"train.epochs": 1} if arguments.quick else {"train.epochs": 2}
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_workspace(Path(scratch) / "road", "shapes", changes)
        seconds = {}
        started = time.monotonic()
        for name, command in {
            "shapes": ("unet", "shapes", "data/raw/shapes", "--count", "400"),
            "add": ("unet", "add"),
            "repro": ("dvc", "repro"),
            "promote": ("unet", "promote"),
            "summary": ("unet", "summary"),
        }.items():
            begun = time.monotonic()
            run(folder, *command)
            seconds[name] = time.monotonic() - begun
            print(f"{name}: {seconds[name]:.1f} s", flush=True)
        total = time.monotonic() - started
        begun = time.monotonic()
        run(folder, "dvc", "repro")
        again = time.monotonic() - begun
        stages = read_timings(folder / ".unet" / "timings.jsonl")
    print_result(
        {
            "stages": {name: round(value, 2) for name, value in {**seconds, **stages}.items()},
            "not_training_seconds": round(total - stages["training"], 1),
            "nothing_to_do_seconds": round(again, 2),
            "compared_with": "nothing: a budget",
        }
    )


if __name__ == "__main__":
    main()
