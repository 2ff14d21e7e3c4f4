"""infra/retrain.sh: what schedulers call, with real git and DVC."""

import fcntl
import subprocess
from pathlib import Path

import pytest
import yaml

from benchmarks.workspace import commit, make_workspace, run, weights_of

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "infra" / "retrain.sh"
TINY = {
    "model.width": 4,
    "model.depth": 2,
    "train.epochs": 1,
    "train.lanes": 1,
    "train.samples_per_lane": 2,
    "train.validate_every_epochs": 1,
    "promote.min_score": 0.0,
    "promote.min_groups": 3,
}


def copy_script(tree: Path) -> None:
    (tree / "infra").mkdir(parents=True)
    (tree / "infra" / "retrain.sh").write_bytes(SCRIPT.read_bytes())
    (tree / "infra" / "retrain.sh").chmod(0o755)


def test_a_second_retraining_leaves_and_says_so(tmp_path: Path) -> None:
    copy_script(tmp_path)
    (tmp_path / ".unet").mkdir()
    with (tmp_path / ".unet" / "retrain.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([tmp_path / "infra" / "retrain.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout == f"another retraining runs in {tmp_path}: nothing done\n"


def test_the_workflows_call_what_is_there() -> None:
    folder = ROOT / ".github" / "workflows"
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.yaml")}
    steps = [step for text in texts.values() for job in yaml.safe_load(text)["jobs"].values() for step in job["steps"]]
    words = [word for step in steps for word in step.get("run", "").split()]
    targets = {words[i + 1] for i, word in enumerate(words) if word == "make"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == {"check", "test-fast", "install"}
    assert all(f"\n{target}:" in makefile for target in targets)
    scripts = {word for word in words if word.startswith((".ci/", "infra/"))}
    assert scripts == {".ci/run", "infra/retrain.sh"}
    assert all((ROOT / script).stat().st_mode & 0o100 for script in scripts)
    # A tag can be moved to other code; a commit can't.
    assert all(len(step["uses"].split("@")[1]) == 40 for step in steps if "uses" in step)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A clone with a git origin, a DVC remote and data that nobody recorded."""
    tree = make_workspace(tmp_path / "tree", "shapes", TINY)
    copy_script(tree)
    run(tree, "git", "init", "--quiet", "--bare", str(tmp_path / "origin"))
    for words in (
        ("git", "remote", "add", "origin", str(tmp_path / "origin")),
        ("git", "config", "user.name", "nobody"),
        ("git", "config", "user.email", "nobody@example.invalid"),
        ("dvc", "remote", "add", "--default", "store", str(tmp_path / "store")),
        ("unet", "shapes", "data/raw/shapes", "--count", "40"),
    ):
        run(tree, *words)
    commit(tree, "with a remote")
    return tree


@pytest.mark.slow
def test_it_records_trains_pushes_and_promotes_and_another_clone_has_it_all(tree: Path, tmp_path: Path) -> None:
    first = run(tree, "infra/retrain.sh", "retrain/1")
    assert "promoted: the first champion" in first
    files = run(tree, "git", "ls-tree", "-r", "--name-only", "origin/retrain/1").split()
    assert {"dvc.lock", "arrivals/shapes.jsonl.dvc", "models/receipt.json"} <= set(files)
    run(tmp_path, "git", "clone", "--quiet", "--branch", "retrain/1", str(tmp_path / "origin"), "elsewhere")
    run(tmp_path / "elsewhere", "dvc", "pull", "models/final")
    assert weights_of(tmp_path / "elsewhere") == weights_of(tree)
    # Nothing is new: no training, no promotion, no branch.
    assert "nothing to do" in run(tree, "infra/retrain.sh", "retrain/2")
    assert "retrain/2" not in run(tree, "git", "branch", "--all")
