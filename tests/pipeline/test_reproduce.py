"""Restoring a recorded source tree, refusals, and training again with real Ray and MLflow."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks.workspace import change_recipe, make_workspace, run, start, training_workers
from pipeline.identity import Identity, read_identity
from pipeline.lineage import Source, data_state, source_state
from pipeline.reproduce import (
    bring_weights,
    environment_differences,
    explain,
    find_shards,
    input_differences,
    plan_differences,
    restored,
)
from unet_core.errors import DataError, RegistryError

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


def test_weights_that_git_has_not_come_from_the_users_tree(tmp_path: Path) -> None:
    root, tree = tmp_path / "root", tmp_path / "tree"
    for folder in (root, tree):
        folder.mkdir()
    (tree / "params.yaml").write_text(
        "train: {initial_weights: null}\nmodel: {encoder_weights: {path: weights/a.pth, sha256: 12ab}}\n"
    )
    with pytest.raises(DataError) as caught:
        bring_weights(root, tree)
    assert str(caught.value) == (
        "weights that the recorded training began with are missing: weights/a.pth, sha256 12ab (model.encoder_weights). "
        "Bring that file there, then try again."
    )
    (root / "weights").mkdir()
    (root / "weights/a.pth").write_bytes(b"weights")
    bring_weights(root, tree)
    assert (tree / "weights/a.pth").read_bytes() == b"weights"
    # What the recorded tree has, it keeps; a path that leads elsewhere is left to the training.
    (root / "weights/a.pth").write_bytes(b"later")
    bring_weights(root, tree)
    assert (tree / "weights/a.pth").read_bytes() == b"weights"
    for path in ("../outside.pth", str(tmp_path / "absolute.pth")):
        (tree / "params.yaml").write_text(f"train: {{initial_weights: {{path: {path}, sha256: 12ab}}}}\n")
        bring_weights(root, tree)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "tree"]


def test_other_bits_are_explained() -> None:
    old = record(Source(commit="", prefix="", patch=""))
    causes = environment_differences(old) + input_differences({"index": "1", "code": "2"}, {"index": "1", "code": "3"})
    assert causes[0].startswith("processor: recorded another, here ")
    assert causes[1].startswith("version of torch: recorded 0, here ")
    assert causes[2:] == ["input code"]
    text = explain(old, "b" * 64, {"val_loss": 0.6, "val_dice": 0.6}, causes)
    assert text.startswith(f"other bits: recorded sha256 {'a' * 64}, now {'b' * 64}. What differs: processor")
    assert text.endswith("Validation, recorded and now: val_loss 0.5 and 0.6, val_dice 0.7 and 0.6.")


def test_the_first_epoch_of_other_samples_is_named() -> None:
    assert plan_differences(["a", "b", "c"], ["a", "x", "y"]) == ["plan of epoch 1: recorded b, now x"]
    assert plan_differences(["a", "b"], ["a"]) == ["epochs: recorded 2, now 1"]
    assert plan_differences(["a"], ["a"]) == []


# Real trainings


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree whose recipe was changed before it was trained, and whose recipe and code were changed since."""
    tiny = {"model.width": 4, "model.depth": 2, "train.epochs": 1, "train.lanes": 2, "train.samples_per_lane": 1}
    tree = make_workspace(tmp_path_factory.mktemp("trained") / "tree", "shapes", {**tiny, "shard.target_mb": 2.0})
    env = {"UNET_WORKERS": "1", "PYTHONPATH": str(tree)}
    change_recipe(tree, None, {"train.learning_rate": 0.02})
    run(tree, "unet", "shapes", "data/raw/shapes", "--count", "40", env=env)
    run(tree, "unet", "add", env=env)
    run(tree, "dvc", "repro", "register", env=env)
    change_recipe(tree, None, {"train.learning_rate": 0.5})
    with (tree / "unet_core" / "model.py").open("a") as stream:
        stream.write("raise RuntimeError('not this one')\n")
    return tree


# The command runs from the project's code, the training from the recorded one.
REPRODUCE = (
    *(sys.executable, "-c", "import sys; sys.path[:1] = []; from pipeline.cli import main; main()"),
    *("reproduce", "models:/unet/1"),
)
HERE = {"UNET_WORKERS": "2", "PYTHONPATH": str(Path(__file__).parents[2])}


def assert_nothing_left(tree: Path) -> None:
    assert git(tree, "worktree", "list").count("\n") == 1
    assert not list((tree / ".unet" / "reproduce").iterdir())


@pytest.mark.slow
def test_a_dirty_run_is_reproduced_by_other_workers(trained: Path) -> None:
    model = (trained / "models/final/model.safetensors").read_bytes()
    assert "the same bits: sha256 " in run(trained, *REPRODUCE, env=HERE)
    assert (trained / "models/final/model.safetensors").read_bytes() == model
    assert_nothing_left(trained)


@pytest.mark.slow
@pytest.mark.chaos
def test_a_tampered_record_is_told(trained: Path) -> None:
    (path,) = (trained / "mlruns").rglob("identity.json")
    text = path.read_text()
    body = json.loads(text)
    body["recipe"] = body["recipe"].replace("train:\n  seed: 0", "train:\n  seed: 1")
    path.write_text(json.dumps(body))
    told = run(trained, *REPRODUCE, env=HERE, check=False)
    path.write_text(text)
    assert "other bits: recorded sha256 " in told
    assert "What differs: input recipe.train; plan of epoch 0: recorded " in told
    assert_nothing_left(trained)


@pytest.mark.slow
@pytest.mark.chaos
def test_an_interrupted_reproduction_leaves_nothing_behind(trained: Path) -> None:
    process = start(trained, *REPRODUCE, env=HERE)
    deadline = time.monotonic() + 120
    while not training_workers(process) and time.monotonic() < deadline:
        assert process.poll() is None, (trained / "start.log").read_text()
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130
    assert "interrupted" in (trained / "start.log").read_text()
    assert_nothing_left(trained)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []


@pytest.mark.slow
def test_shards_that_are_gone_here_come_from_dvcs_remote(trained: Path, tmp_path: Path) -> None:
    tree = shutil.copytree(trained, tmp_path / "tree")
    run(tree, "dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    run(tree, "dvc", "push", "data/shards")
    shards = tree / "data" / "shards"
    index = data_state(shards)["data.index_sha256"]
    for folder in (shards, tree / ".dvc" / "cache"):
        shutil.rmtree(folder)
    (path,) = (tree / "mlruns").rglob("identity.json")
    recorded = read_identity(path)
    with restored(tree, recorded) as worktree:
        found = find_shards(tree, worktree, Path("data/shards"), recorded)
        assert found == worktree / "data" / "shards"
        assert data_state(found)["data.index_sha256"] == index
    shutil.rmtree(tmp_path / "store")
    shutil.rmtree(tree / ".dvc" / "cache")
    with (
        restored(tree, recorded) as worktree,
        pytest.raises(DataError, match="^the recorded shards are missing: data/shards with index "),
    ):
        find_shards(tree, worktree, Path("data/shards"), recorded)
