"""Small real data sets, recipes, models and registries, each in a working tree of its own."""

import hashlib
import importlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.ledger import append, compare, read_ledger
from pipeline.listing import find_pairs
from pipeline.params import load_section
from pipeline.retrain_record import Record
from pipeline.source import IngestConfig
from tests.pipeline.git_clones import RESULTS, commit_and_push, git, write
from unet_core.samples import ClassMap, ImageConfig

REPOSITORY = Path(__file__).resolve().parents[2]
PLACEMENT = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "UNET_WORKERS",
    "UNET_LOADER_THREADS",
    "UNET_PROCESSES",
    "UNET_SHARDS",
    "UNET_CACHE",
    "UNET_CACHE_GB",
    "UNET_CHECKPOINTS",
    "UNET_ON_PROMOTION",
    "UNET_WEBHOOK",
    "UNET_PREDICTION_LOG",
    "UNET_PREDICTION_LOG_GB",
)


def stage_arguments(stage: str) -> dict[str, Path]:
    """The paths that dvc.yaml gives to a stage."""
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    options = shlex.split(stages[stage]["cmd"])[3:]
    return {word.removeprefix("--"): Path(path) for word, path in zip(options[::2], options[1::2], strict=True)}


@dataclass(frozen=True)
class Tree:
    """A working tree; its root is the current directory."""

    root: Path

    @property
    def source(self) -> Path:
        return self.root / "raw"

    def add_pair(self, key: str, *, size: tuple[int, int] = (16, 12), draw: str = "", value: int = 255) -> None:
        """A gray image (bright where the mask is) and its mask, 0 and `value`; another `draw` is another picture."""
        image, inside = draw_picture(f"{key}{draw}", size)
        write_png(self.source / "images" / f"{key}.png", image)
        write_png(self.source / "masks" / f"{key}.png", inside.astype(np.uint8) * value)

    def add_pairs(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.add_pair(key)

    def turn_file(self, folder: str, key: str) -> None:
        """Put another image, or another mask, in the place of the old one; its partner stays."""
        path = self.source / folder / f"{key}.png"
        with Image.open(path) as picture:
            array = np.asarray(picture)[::-1, ::-1].copy()
        write_png(path, array)

    def remove_pair(self, key: str) -> None:
        for folder in ("images", "masks"):
            (self.source / folder / f"{key}.png").unlink()

    def write_recipe(self, **changes: Mapping[str, Any]) -> None:
        """A complete recipe for `add_pair`'s pictures; `changes` are merged into its sections."""
        recipe = yaml.safe_load((REPOSITORY / "recipes" / "shapes.yaml").read_text(encoding="utf-8"))
        recipe["ingest"] = {"source": "raw", "ledger": "arrivals/raw.jsonl"}
        recipe["masks"] = {
            "kind": "multiclass",
            "classes": {"background": 0, "cell": 255},
            "background": "background",
        }
        recipe["split"] = {"seed": 0, "val_fraction": 0.25, "test_fraction": 0.25}
        # Two pictures of 16 x 12 a shard, on average.
        recipe["shard"] = {"target_mb": 0.0008, "tile_px": None, "codec": "raw"}
        recipe["train"]["loss"] = {"cross_entropy": 0.5, "dice": 0.5}
        recipe["evaluate"]["bootstrap_draws"] = 200
        recipe["promote"] |= {"min_groups": 2, "bootstrap_draws": 500}
        for section, values in changes.items():
            recipe[section] = {**recipe[section], **values}
        (self.root / "params.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")

    def record(self) -> None:
        """What `unet add` records, without DVC, which would cost a second each time."""
        config = load_section("ingest", IngestConfig)
        ledger = Path(config.ledger)
        pairs = find_pairs(config.source, config, load_section("masks", ClassMap))
        changes = compare(read_ledger(ledger) if ledger.exists() else [], pairs, config.source)
        append(ledger, [*changes.new, *changes.changed, *changes.missing])

    def run(self, *stages: str) -> None:
        """Run stages in this process, with the paths of dvc.yaml."""
        for name in stages:
            module = importlib.import_module(f"pipeline.stages.{name}")
            module.run(**stage_arguments(name))

    def words(self, stage: str) -> list[str]:
        """The command line of a stage."""
        options = [part for word, path in stage_arguments(stage).items() for part in (f"--{word}", str(path))]
        return ["stage", stage, *options]


def draw_picture(name: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W) uint8 and where its object is (H, W) bool, as a function of the name; `size` is (width, height)."""
    rng = np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:12], 16))
    width, height = size
    inside = np.zeros((height, width), dtype=bool)
    top, left = (int(rng.integers(0, side // 2)) for side in (height, width))
    inside[top : top + height // 2, left : left + width // 2] = True
    noise = rng.integers(0, 40, size=(height, width))
    return np.where(inside, 215 + noise, noise).astype(np.uint8), inside


def write_png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """An empty working tree as current directory, and an environment that names no servers."""
    for name in PLACEMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / ".dvc-site"))
    monkeypatch.chdir(tmp_path)
    return Tree(tmp_path)


@pytest.fixture
def small_data(tree: Tree) -> Tree:
    """Twelve recorded pairs and their recipe."""
    tree.add_pairs([f"s{number:02d}" for number in range(12)])
    tree.write_recipe()
    tree.record()
    return tree


@pytest.fixture(scope="session")
def sharded_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree in which the stages up to `shard` ran; to be copied, which costs a tenth of running them."""
    root = tmp_path_factory.mktemp("sharded")
    tree = Tree(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        tree.add_pairs([f"s{number:02d}" for number in range(12)])
        tree.write_recipe()
        tree.record()
        tree.run("ingest", "validate", "split", "shard")
    return root


@pytest.fixture
def sharded(tree: Tree, sharded_once: Path) -> Tree:
    """Twelve recorded pairs, their recipe, and what the stages up to `shard` make of them."""
    shutil.copytree(sharded_once, tree.root, dirs_exist_ok=True)
    return tree


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def dvc_tree(tree: Tree) -> Tree:
    """The working tree as a git and DVC repository."""
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, check=True, capture_output=True)
    return tree


@pytest.fixture
def dvc(tree: Tree):
    """Run `dvc` in the working tree, to a good end."""

    def run(*words: str) -> None:
        command = [sys.executable, "-m", "dvc", *words, "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture
def unet():
    """Run the `unet` command in a process of its own."""

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from pipeline.cli import main; main()", *words],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **environment},
        )

    return run


@pytest.fixture(scope="session")
def write_model_dir():
    """Write a model that finds what is bright (or, inverted, what is dark): its masks can be told by eye."""
    import torch

    from unet_core.checkpoint import write_model
    from unet_core.model import ModelConfig, ModelSpec, UNet

    def write(
        directory: Path,
        class_map: ClassMap | None = None,
        *,
        channels: int = 1,
        images: ImageConfig | None = None,
        inverted: bool = False,
        seed: int = 0,
    ) -> ModelSpec:
        spec = ModelSpec(
            config=ModelConfig(width=2, depth=1, norm="none", input_statistics="train"),
            images=images or ImageConfig(channels=channels),
            class_map=class_map or two_classes(),
            mean=(0.5,) * channels,
            deviation=(0.5,) * channels,
            precision="float32",
        )
        torch.manual_seed(seed)
        state = {name: tensor.clone() for name, tensor in UNet(spec).state_dict().items()}
        for name, tensor in state.items():
            if name.startswith(("encoder.0", "decoder.0", "head")):
                tensor.zero_()
        # The first channel passes through the first level as it is; the deeper one keeps its random weights and
        # is left out by the decoder.
        state["encoder.0.0.weight"][0, 0, 1, 1] = 1
        state["encoder.0.2.weight"][0, 0, 1, 1] = 1
        state["decoder.0.0.weight"][0, 2, 1, 1] = 1
        state["decoder.0.2.weight"][0, 0, 1, 1] = 1
        first = 0 if spec.class_map.kind == "multilabel" else 1
        sign = -1 if inverted else 1
        state["head.weight"][first:, 0] = 10 * sign
        state["head.bias"][first:] = -1 * sign
        if first:
            state["head.bias"][2:] = -1000
        write_model(directory, spec, state)
        return spec

    return write


def two_classes() -> ClassMap:
    return ClassMap(kind="multiclass", classes={"background": 0, "cell": 255}, background="background")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store of MLflow without runs: making one takes seconds, copying it none."""
    from pipeline import tracking

    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tracking.connect(f"sqlite:///{folder / 'mlflow.db'}")
    return folder / "mlflow.db"


@pytest.fixture
def client(tree: Tree, empty_store: Path):
    """A client of the working tree's own store, which is where commands look by default."""
    from pipeline import tracking

    shutil.copy(empty_store, tree.root / "mlflow.db")
    return tracking.connect(f"sqlite:///{tree.root / 'mlflow.db'}")


@pytest.fixture
def registered(client, sharded: Tree, write_model_dir) -> Tree:
    """Shards, a registered model that finds every bright pixel, and a client of the store (its masks are perfect)."""
    write_model_dir(sharded.root / "models" / "final")
    sharded.run("register")
    return sharded


@pytest.fixture
def people(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", "origin.git")
    git(tmp_path, "clone", "--quiet", "origin.git", "people")
    folder = tmp_path / "people"
    write(folder, lock="old\n", code="1\n", metrics="{}\n")
    commit_and_push(folder)
    return folder


@pytest.fixture
def record(people: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """A clone on main, as a scheduler's machine has it: nobody told its git who works there."""
    for name in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL", "GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    git(people.parent, "clone", "--quiet", "origin.git", "tree")
    return Record(root=people.parent / "tree", results=RESULTS, branch="retrain")
