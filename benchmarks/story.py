"""A data set that grows, told as a story: a first model, a good delivery, one with wrong labels, and the way back.

    python -m benchmarks.story --source FOLDER                    FOLDER: DSB2018, with images/, masks/ and index.csv
    python -m benchmarks.story --source FOLDER --images 120 --set train.epochs=4

Each command is printed with what it says; docs/story.md tells what to expect. The last line is JSON. `--out FOLDER`
keeps the working tree, whose runs and models `make ui` would show.
"""

import argparse
import csv
import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.quality import read_change
from benchmarks.workspace import commit, make_workspace, print_result, run
from pipeline.submit import PROGRESS

Row = Mapping[str, str]

RAW = Path("data/raw/dsb2018")
#: As many as the recipe's promote.min_groups: with fewer the gate says that they are too few to tell.
LEAST_TEST = 20
#: Of five training images, which delivery brings them: 60 %, 20 %, 20 %.
SHARES = (0, 0, 0, 1, 2)
STAGES = ("validate:", "evaluate:")


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """What came of one delivery."""

    images: int
    nucleus_fraction: float
    """Of all accepted pixels; what validation could notice."""
    decision: str
    """The gate's."""
    challenger: float | None
    champion_before: float | None
    """Scores on the same test images."""
    champion: str | None
    """Version number afterwards."""


class Story:
    """A working tree in which things happen one after the other, each of them printed."""

    def __init__(self, tree: Path, source: Path) -> None:
        self.tree = tree
        self._source = source

    def tell(self, text: str) -> None:
        """A line between the commands."""
        print(f"\n# {text}", flush=True)

    def do(self, *command: str, shown: Sequence[str] = ("",)) -> str:
        """Run a command and print it with those of its lines that begin with one of `shown`; what it said."""
        words = [f"'{word}'" if " " in word else word for word in command]
        print(f"$ {' '.join(words)}", flush=True)
        said = run(self.tree, *command)
        for line in said.splitlines():
            if line.startswith(tuple(shown)) and not PROGRESS.match(line):
                print(f"  {line}", flush=True)
        return said

    def deliver(self, rows: Sequence[Row], *, spoilt: bool = False) -> None:
        """Let images, masks and lines of the table arrive in the source; spoilt: labels the wrong way round."""
        for row in rows:
            for folder in ("images", "masks"):
                target = self.tree / RAW / folder / f"{row['id']}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._source / folder / target.name, target)
                if spoilt and folder == "masks":
                    invert(target)
        self._write_table([*self._read_table(), *rows])
        splits = Counter(row["split"] for row in rows)
        counts = ", ".join(f"{count} for {split}" for split, count in sorted(splits.items()))
        print(f"  {len(rows)} images in {RAW}: {counts}", flush=True)

    def take_back(self, rows: Sequence[Row]) -> None:
        """Remove a delivery from the source."""
        gone = {row["id"] for row in rows}
        for key in gone:
            for folder in ("images", "masks"):
                (self.tree / RAW / folder / f"{key}.png").unlink()
        self._write_table([row for row in self._read_table() if row["id"] not in gone])

    def chapter(self) -> Chapter:
        """How things stand after the gate has judged."""
        verdict, found = self._read("reports/verdict.json"), self._read("metrics/validate.json")
        fraction = found["class_fraction"]["nucleus"]
        print(f"  labelled nucleus: {fraction:.1%} of all pixels; rejected: {found['rejected']}", flush=True)
        return Chapter(
            images=found["accepted"],
            nucleus_fraction=round(fraction, 4),
            decision=verdict["decision"],
            challenger=verdict["challenger"],
            champion_before=verdict["champion"],
            champion=self.champion(),
        )

    def champion(self) -> str | None:
        """The version that people use now."""
        with sqlite3.connect(self.tree / "mlflow.db") as store:
            found = store.execute("SELECT version FROM registered_model_aliases WHERE alias = 'champion'").fetchone()
        return str(found[0]) if found else None

    def _read(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.tree / name).read_text(encoding="utf-8"))
        return found

    def _read_table(self) -> list[Row]:
        path = self.tree / RAW / "index.csv"
        return read_rows(path) if path.exists() else []

    def _write_table(self, rows: Sequence[Row]) -> None:
        with (self.tree / RAW / "index.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def main() -> None:
    """Tell the story."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with images/, masks/ and index.csv")
    parser.add_argument("--images", type=int, help="only so many of them, evenly taken")
    parser.add_argument("--set", type=read_change, action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--out", type=Path, help="keep the working tree here")
    arguments = parser.parse_args()
    rows = choose(read_rows(arguments.source / "index.csv"), arguments.images)
    with tempfile.TemporaryDirectory() as scratch:
        tree = arguments.out or Path(scratch) / "tree"
        print_result(tell(tree.resolve(), arguments.source.resolve(), rows, dict(arguments.set)))


def tell(tree: Path, source: Path, rows: Sequence[Row], changes: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, in a new working tree at `tree`; what came of each delivery, and the champion at the end."""
    first, second, spoilt = cut(rows)
    story = Story(make_workspace(tree, "dsb2018", changes), source)

    story.tell("60 % of the images, and all test images: a first model.")
    story.deliver(first)
    story.do("unet", "add")
    story.do("dvc", "repro", shown=STAGES)
    story.do("unet", "promote")
    commit(tree, "The first model")
    chapters = [story.chapter()]

    story.tell("20 % more. The gate compares the new model with the champion, on the same test images.")
    story.deliver(second)
    story.do("unet", "retrain")
    commit(tree, "A second delivery")
    chapters.append(story.chapter())

    story.tell("20 % more, exported the wrong way round: nuclei are background, and background is nuclei.")
    story.deliver(spoilt, spoilt=True)
    story.do("unet", "retrain")
    chapters.append(story.chapter())

    story.tell("Somebody promotes it all the same, passing the gate by; one command brings the champion back.")
    story.do("unet", "promote", "--force", "--reason", "it has seen the most images")
    forced = story.champion()
    story.do("unet", "rollback", "--reason", "its labels were the wrong way round")
    story.do("unet", "history")

    story.tell("The delivery goes back, and the tree to where the champion's data were. Nothing trains anew.")
    story.take_back(spoilt)
    story.do("git", "restore", ".")
    story.do("dvc", "checkout", "--quiet")
    end = story.do("unet", "retrain")
    return {
        "deliveries": [asdict(chapter) for chapter in chapters],
        "forced": forced,
        "champion": story.champion(),
        "end": end.splitlines()[-1],
    }


def read_rows(path: Path) -> list[Row]:
    """The lines of a table of samples."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def choose(rows: Sequence[Row], count: int | None) -> list[Row]:
    """`count` of the rows, evenly from the whole list: test images in proportion, but enough for the gate."""
    if count is None:
        return list(rows)
    test = [row for row in rows if row["split"] == "test"]
    others = [row for row in rows if row["split"] != "test"]
    num_test = min(len(test), max(LEAST_TEST, round(count * len(test) / len(rows))))
    return [*_spread(test, num_test), *_spread(others, count - num_test)]


def cut(rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """Three deliveries. The first has all test images: who judges must not learn from whom is judged."""
    deliveries: tuple[list[Row], list[Row], list[Row]] = ([], [], [])
    for split in ("train", "val"):
        for number, row in enumerate(row for row in rows if row["split"] == split):
            deliveries[SHARES[number % len(SHARES)]].append(row)
    deliveries[0].extend(row for row in rows if row["split"] == "test")
    return deliveries


def invert(path: Path) -> None:
    """Turn a mask's 0 into 255 and back, as an export with the colours exchanged does."""
    with Image.open(path) as picture:
        mask = np.asarray(picture)
    Image.fromarray(255 - mask).save(path, format="PNG")


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    count = min(count, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]


if __name__ == "__main__":
    main()
