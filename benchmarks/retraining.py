"""How long `unet retrain` takes where there is nothing to do: a whole command, on a tree that was trained once.

    python -m benchmarks.retraining

The last line is JSON: seconds of the first call, which trains a tiny model, and the median of five idle ones.
"""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.workspace import commit, make_workspace, print_result, run, start
from pipeline import tracking
from pipeline.history import history
from pipeline.retrain_standing import UNDER_WAY_TAG

#: Small and quick; whatever is not much worse is promoted.
TINY = {
    "model.width": 4,
    "model.depth": 2,
    "train.epochs": 3,
    "train.lanes": 4,
    "train.samples_per_lane": 1,
    "train.validate_every_epochs": 1,
    "train.checkpoint_every_steps": 5,
    "promote.min_score": 0.01,
    "promote.min_groups": 3,
    "promote.margin": 1.0,
    "promote.max_class_drop": None,
    "shard.target_mb": 2.0,
}
CALL = ("unet", "retrain", "--branch", "retrain", "--exit-code")
IDLE_CALLS = 5


class Place:
    """A clone that retrains, with git's `origin` and DVC's remote beside it, in one folder that may be copied."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree = folder / "tree"

    def copy_to(self, folder: Path) -> "Place":
        """The same, elsewhere; what MLflow stored so far stays where it is."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Place(folder)

    def call(self, *words: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Exit code of a retraining (or another command), and what is said."""
        process = start(self.tree, *(words or CALL), env=env)
        code = process.wait(timeout=400)
        return code, (self.tree / "start.log").read_text()

    def run(self, *words: str) -> str:
        """What a command says that must not fail."""
        return run(self.tree, *words)

    def git(self, *words: str) -> str:
        """What git says in the tree."""
        return self.run("git", *words).strip()

    def add_shapes(self, count: int) -> None:
        """Let so many pictures lie in the source."""
        self.run("unet", "shapes", "data/raw/shapes", "--count", str(count))

    def summary(self) -> dict[str, Any]:
        """What the last call told machines."""
        found: dict[str, Any] = json.loads((self.tree / "reports" / "retrain.json").read_text())
        return found

    def client(self) -> tracking.Client:
        """Of the tree's own registry."""
        return tracking.connect(f"sqlite:///{self.tree / 'mlflow.db'}")

    def champion(self) -> tracking.Version:
        """The version that is champion."""
        version = tracking.version_by_alias(self.client(), "unet", tracking.CHAMPION)
        assert version is not None
        return version

    def check_all_done(self) -> None:
        """Everything is where it belongs, and another call finds nothing to do."""
        assert self.git("status", "--porcelain") == ""
        assert self.git("branch", "--show-current") == "retrain"
        assert self.git("rev-parse", "HEAD") == self.git("rev-parse", "origin/retrain")
        assert json.loads(self.run("dvc", "status", "--json")) == {}
        assert json.loads(self.run("dvc", "status", "--cloud", "--json")) == {}
        receipt = json.loads((self.tree / "models" / "receipt.json").read_text())
        version = tracking.find_version(self.client(), "unet", receipt["model_sha256"])
        assert version is not None
        assert version.tags[UNDER_WAY_TAG] == "told"
        assert all(entry.is_done for entry in history(self.client(), "unet"))
        code, said = self.call()
        assert (code, said.startswith("nothing to do: ")) == (0, True), said


def make_place(folder: Path, *, count: int = 60) -> Place:
    """A tree with pictures of shapes in its source, in which nothing was trained yet."""
    place = open_place(folder, "shapes", TINY)
    place.add_shapes(count)
    return place


def open_place(folder: Path, recipe: str, changes: Mapping[str, Any]) -> Place:
    """A tree on `main`, with git's `origin` and DVC's remote, whose source is still empty."""
    place = Place(folder)
    make_workspace(place.tree, recipe, changes)
    run(folder, "git", "init", "--quiet", "--bare", "--initial-branch=main", "origin.git")
    # What this module itself writes into the tree.
    (place.tree / ".git" / "info" / "exclude").write_text("start.log\n")
    place.run("dvc", "remote", "add", "--quiet", "--default", "store", "../remote")
    commit(place.tree, "remote")
    place.git("branch", "--move", "main")
    place.git("remote", "add", "origin", "../origin.git")
    place.git("push", "--quiet", "--set-upstream", "origin", "main")
    return place


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as scratch:
        place = make_place(Path(scratch))
        seconds = []
        for expected in (10, *[0] * IDLE_CALLS):
            started = time.monotonic()
            code, said = place.call()
            seconds.append(time.monotonic() - started)
            assert code == expected, said
    first, idle = seconds[0], seconds[1:]
    print_result({"first_call_seconds": round(first, 1), "idle_seconds": round(statistics.median(idle), 2)})


if __name__ == "__main__":
    main()
