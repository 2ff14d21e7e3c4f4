"""A year of DSB2018 under `unet retrain`: three deliveries, of which the last has broken labels, and a rollback.

60 % of the training images are there at first; 20 % come later; then 20 % whose masks an annotation tool wrote the
wrong way round, nuclei black. Validation and test images are there from the first day. In the end somebody overrides
the gate, and takes it back.

`python -m benchmarks.story --source FOLDER [--quick]`, with the unpacked data set, prints what each command said and
one JSON line last. docs/story.md tells it.
"""

import argparse
import csv
import itertools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.retraining import CALL, Place, open_place
from benchmarks.workspace import print_result
from pipeline.history import history

SHARES = (0.6, 0.2, 0.2)
#: Enough to see it run: some images, a tiny network, and a gate that few images satisfy.
QUICK_SHARE = 6
QUICK = {
    "model.width": 8,
    "model.depth": 3,
    "train.epochs": 12,
    "train.learning_rate": 0.01,
    "train.warmup_steps": 5,
    "promote.min_score": 0.1,
    "promote.min_groups": 5,
}
Row = dict[str, str]


def main() -> None:
    """Tell the story of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="the unpacked data set")
    parser.add_argument("--quick", action="store_true", help="a sixth of the images and a tiny network")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print_result({"steps": tell(Path(scratch), arguments.source, quick=arguments.quick)})


def tell(folder: Path, source: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Go through the story in `folder`; what came of each step: words, exit code, sentence, champion."""
    place = open_place(folder, "dsb2018", QUICK if quick else {})
    deliveries = read_deliveries(source, every=QUICK_SHARE if quick else 1)
    story = Story(place)
    there: list[Row] = []
    for number, rows in enumerate(deliveries):
        there += rows
        deliver(rows, source, place.tree / "data" / "raw" / "dsb2018", is_broken=number == len(deliveries) - 1)
        write_table(there, place.tree / "data" / "raw" / "dsb2018" / "index.csv")
        story.step(*CALL)
    story.step("unet", "promote", "--force", "--reason", "the release can't wait")
    story.step("unet", "rollback", "--reason", "nuclei are missing in every other image")
    return story.steps


class Story:
    """The steps of a tree, told as they come."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.steps: list[dict[str, Any]] = []

    def step(self, *words: str) -> None:
        """Run a command; what it says last is what people read."""
        print(f"\n$ {' '.join(words)}", flush=True)
        code, said = self.place.call(*words)
        sentence = said.strip().splitlines()[-1]
        print(f"{sentence}\n(exit code {code})", flush=True)
        moves = [entry.action for entry in history(self.place.client(), "unet")]
        told = {"words": words, "exit_code": code, "sentence": sentence, "champion": self.place.champion().number}
        self.steps.append({**told, "moves": moves})


def read_deliveries(source: Path, *, every: int) -> list[list[Row]]:
    """Rows of index.csv in the order in which they come; every so many-th image of each split."""
    with (source / "index.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    splits = {name: [row for row in rows if row["split"] == name][::every] for name in ("train", "val", "test")}
    train = splits["train"]
    ends = np.rint(np.cumsum((0, *SHARES)) * len(train)).astype(int)
    first, *later = (train[begin:end] for begin, end in itertools.pairwise(ends))
    return [first + splits["val"] + splits["test"], *later]


def deliver(rows: Sequence[Row], source: Path, target: Path, *, is_broken: bool) -> None:
    """Copy images and masks; broken masks are black where they should be white."""
    for name in ("images", "masks"):
        (target / name).mkdir(parents=True, exist_ok=True)
    for row in rows:
        name = f"{row['id']}.png"
        shutil.copy(source / "images" / name, target / "images" / name)
        if is_broken:
            mask = np.asarray(Image.open(source / "masks" / name))
            Image.fromarray(255 - mask).save(target / "masks" / name)
        else:
            shutil.copy(source / "masks" / name, target / "masks" / name)


def write_table(rows: Sequence[Row], path: Path) -> None:
    """What has come so far."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
