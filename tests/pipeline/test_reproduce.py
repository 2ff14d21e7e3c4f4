"""Restoring a recorded source tree, refusals, and training again with real Ray and MLflow."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.workspace import change_recipe, make_workspace, run
from pipeline.identity import Identity
from pipeline.lineage import Source, source_state
from pipeline.reproduce import environment_differences, explain, input_differences, restored
from unet_core.errors import RegistryError

GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")


def git(root: Path, *words: str) -> str:
    return subprocess.run([*GIT, *words], cwd=root, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def dirty(tmp_path: Path) -> Path:
    """A repository with a modified, a deleted, a new and two binary files."""
    root = tmp_path / "tree"
    (root / "pipeline").mkdir(parents=True)
    for name in ("kept.py", "changed.py", "gone.py", "params.yaml"):
        (root / name).write_text("old\n")
    (root / "picture.bin").write_bytes(bytes(range(256)))
    (root / "latin.txt").write_bytes(b"gr\xfc\xdfe\n")
    (root / ".gitignore").write_text("/.unet/\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    (root / "changed.py").write_text("new\n")
    (root / "gone.py").unlink()
    (root / "pipeline" / "more.py").write_text("more\n")
    (root / "pipeline" / "table.bin").write_bytes(b"\x00\x01\xff")
    (root / "picture.bin").write_bytes(bytes(reversed(range(256))))
    (root / "latin.txt").write_bytes(b"\xe4nderung\n")
    return root


def record(source: Source) -> Identity:
    return Identity(
        weights_sha256="a" * 64, plans_sha256=[], inputs={"index": "i"}, processor="another", versions={"torch": "0"},
        source=source, recipe="recipe\n", lock=None, scores={"val_loss": 0.5, "val_dice": 0.7},
    )  # fmt: skip


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not {".git", ".unet"} & set(path.relative_to(root).parts)
    }


def test_a_dirty_tree_is_restored_and_the_users_own_is_untouched(dirty: Path) -> None:
    source, before, status = source_state(dirty), contents(dirty), git(dirty, "status", "--porcelain")
    again = json.loads(json.dumps(source.patch))
    (dirty / "kept.py").write_text("later\n")
    with restored(dirty, record(replace(source, patch=again))) as tree:
        assert contents(tree) == {**before, "params.yaml": b"recipe\n"}
    (dirty / "kept.py").write_text("old\n")
    assert contents(dirty) == before
    assert git(dirty, "status", "--porcelain") == status
    assert git(dirty, "worktree", "list").count("\n") == 1
    assert not list((dirty / ".unet" / "reproduce").iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_stays_behind_after_a_failure(dirty: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), restored(dirty, record(source_state(dirty))):
        raise error
    assert git(dirty, "worktree", "list").count("\n") == 1
    assert not list((dirty / ".unet" / "reproduce").iterdir())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"commit": ""}, "the run recorded no commit: it was trained outside git"),
        ({"commit": "--help"}, "record of identity is damaged: commit '--help'"),
        ({"prefix": "../"}, "record of identity is damaged: .*folder '../'"),
        ({"commit": "0" * 40}, "the recorded commit is not in this repository: 0+. Fetch it"),
    ],
)
def test_what_cannot_be_restored_is_refused(dirty: Path, changes: dict, text: str) -> None:
    with pytest.raises(RegistryError, match=text), restored(dirty, record(replace(source_state(dirty), **changes))):
        pass


def test_other_bits_are_explained() -> None:
    old = record(Source(commit="", prefix="", patch=""))
    causes = environment_differences(old) + input_differences({"index": "1", "code": "2"}, {"index": "1", "code": "3"})
    assert causes[0].startswith("processor: recorded another, here ")
    assert causes[1].startswith("version of torch: recorded 0, here ")
    assert causes[2:] == ["input code"]
    text = explain(old, "b" * 64, {"val_loss": 0.6, "val_dice": 0.6}, causes)
    assert text.startswith(f"other bits: recorded sha256 {'a' * 64}, now {'b' * 64}. What differs: processor")
    assert text.endswith("Validation, recorded and now: val_loss 0.5 and 0.6, val_dice 0.7 and 0.6.")


@pytest.mark.slow
def test_a_dirty_run_is_reproduced_by_other_workers_and_a_tampered_record_is_told(tmp_path: Path) -> None:
    tiny = {"model.width": 4, "model.depth": 2, "train.epochs": 1, "train.lanes": 2, "train.samples_per_lane": 1}
    tree = make_workspace(tmp_path / "tree", "shapes", {**tiny, "shard.target_mb": 2.0})
    env = {"UNET_WORKERS": "1", "PYTHONPATH": str(tree)}
    change_recipe(tree, None, {"train.learning_rate": 0.02})
    run(tree, "unet", "shapes", "data/raw/shapes", "--count", "40", env=env)
    run(tree, "unet", "add", env=env)
    run(tree, "dvc", "repro", "register", env=env)
    model = (tree / "models/final/model.safetensors").read_bytes()
    change_recipe(tree, None, {"train.learning_rate": 0.5})
    with (tree / "unet_core" / "model.py").open("a") as stream:
        stream.write("raise RuntimeError('not this one')\n")
    command = (sys.executable, "-m", "pipeline.cli", "reproduce", "models:/unet/1")
    # The command runs from the project's code, the training from the recorded one.
    here = {"UNET_WORKERS": "2", "PYTHONPATH": str(Path(__file__).parents[2])}
    start = "import sys; sys.path[:1] = []; from pipeline.cli import main; main()"
    command = (sys.executable, "-c", start, *command[3:])
    assert "the same bits: sha256 " in run(tree, *command, env=here)
    assert (tree / "models/final/model.safetensors").read_bytes() == model
    (path,) = (tree / "mlruns").rglob("identity.json")
    body = json.loads(path.read_text())
    body["recipe"] = body["recipe"].replace("train:\n  seed: 0", "train:\n  seed: 1")
    path.write_text(json.dumps(body))
    text = run(tree, *command, env=here, check=False)
    assert "other bits: recorded sha256 " in text
    assert "What differs: input recipe.train. Validation" in text
    assert not list((tree / ".unet" / "reproduce").iterdir())
