"""Seconds of the stage `validate` on a folder of images and masks: decoding, checks, search for duplicates, the page.

`python -m benchmarks.validation --source FOLDER [--recipe NAME] [--quick]` runs the stage as `dvc repro` does, in a
process of its own and a working tree of its own, several times, and prints one JSON line last. `seconds` is the best
run's, start of the interpreter included; `cpu_seconds` is what all its processes computed in that run.
"""

import argparse
import json
import os
import shlex
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.workspace import make_workspace, print_result, run

RUNS = 5


def main() -> None:
    """Record the folder, make the catalog, then time the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder with images and masks")
    parser.add_argument("--recipe", default="dsb2018", help="recipe that reads them (default dsb2018)")
    parser.add_argument("--quick", action="store_true", help="one run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        changes = {"ingest.source": str(arguments.source.resolve())}
        folder = make_workspace(Path(scratch) / "road", arguments.recipe, changes)
        run(folder, "unet", "add")
        stages = yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
        run(folder, *shlex.split(stages["ingest"]["cmd"]))
        measured = [time_once(folder, stages["validate"]["cmd"]) for _ in range(1 if arguments.quick else RUNS)]
        found = json.loads((folder / "metrics" / "validate.json").read_text(encoding="utf-8"))
    seconds, cpu_seconds = min(measured)
    print_result(
        {
            "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu_seconds, 2),
            "all_seconds": [round(wall, 2) for wall, _ in measured],
            "pairs": found["accepted"] + found["rejected"],
            "near_duplicates": found["near_duplicates"],
            "cores": len(os.sched_getaffinity(0)),
            "compared_with": "nothing: a budget",
        }
    )


def time_once(folder: Path, command: str) -> tuple[float, float]:
    """Seconds on the clock, and of all processes together."""
    before, started = os.times(), time.perf_counter()
    run(folder, *shlex.split(command))
    seconds, after = time.perf_counter() - started, os.times()
    return seconds, sum(after[2:4]) - sum(before[2:4])


if __name__ == "__main__":
    main()
