"""Small data that the tests of unet_core share: pictures of shapes, shards of them, recipes for tiny networks."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import configuration, settings

from tests.unet_core.sharded import FIRST_SHARD, index_of
from unet_core.checkpoint import TrainState
from unet_core.index import ShardEntry, ShardIndex, read_index, write_index
from unet_core.loader import LaneLoader
from unet_core.model_config import ModelConfig, ModelSpec, Precision
from unet_core.packing import pack_all
from unet_core.reader import ShardReader
from unet_core.reduction import LaneTree
from unet_core.samples import ClassMap, ImageConfig, Sample
from unet_core.shards import write_shard
from unet_core.synthetic import SHAPE_NAMES, draw_shapes
from unet_core.train_config import TrainConfig
from unet_core.trainer import Report, Trainer
from unet_core.transforms import AugmentConfig

# The same examples on every machine, and no directory of them in the working tree.
configuration.set_hypothesis_home_dir(str(Path(tempfile.gettempdir()) / "hypothesis-of-unet-core"))
settings.register_profile("unet_core", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("unet_core")

#: Shards of the small data set: name, split, numbers of the pictures. 13 training samples: no power of two divides them.
SHAPES_SHARDS = (
    ("train/b0000-00000.tar", "train", range(5)),
    ("train/b0000-00001.tar", "train", range(5, 9)),
    ("train/b0001-00000.tar", "train", range(9, 13)),
    ("val/b0000-00000.tar", "val", range(13, 16)),
)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread only costs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shapes_map() -> ClassMap:
    """The six overlapping classes of the shapes."""
    return ClassMap(kind="multilabel", classes=dict.fromkeys(SHAPE_NAMES, 255))


@pytest.fixture(scope="session")
def cells_map() -> ClassMap:
    """Background, cell and nucleus, with an ignore value."""
    return ClassMap(
        kind="multiclass", classes={"background": 0, "cell": 1, "nucleus": 7}, ignore=200, background="background"
    )


@pytest.fixture(scope="session")
def draw_sample() -> Callable[..., Sample]:
    """Picture `number` of the shapes as a sample; gray, or coloured with three different channels."""

    def draw(number: int, *, height: int = 32, width: int = 32, channels: int = 1, key: str | None = None) -> Sample:
        gray, masks = draw_shapes(seed=0, number=number, height=height, width=width)
        image = np.stack([gray // (1 + channel) for channel in range(channels)], axis=-1)
        return Sample(key=key or f"shape_{number:04d}", image=image, mask=masks)

    return draw


@pytest.fixture(scope="session")
def random_sample() -> Callable[..., Sample]:
    """A multiclass sample of noise, each pixel another value."""

    def draw(key: str, *, height: int = 9, width: int = 11, channels: int = 3) -> Sample:
        rng = np.random.default_rng([height, width, channels, *key.encode()])
        image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        return Sample(key=key, image=image, mask=rng.choice(np.array([0, 1, 2, 255], dtype=np.uint8), (height, width)))

    return draw


@pytest.fixture
def samples(random_sample: Callable[..., Sample]) -> list[Sample]:
    """Three multiclass samples of different sizes."""
    sizes = (("a", 9, 11), ("b", 1, 1), ("c", 16, 5))
    return [random_sample(key, height=height, width=width) for key, height, width in sizes]


@pytest.fixture
def write_samples(tmp_path: Path, cells_map: ClassMap) -> Callable[..., ShardEntry]:
    """Write multiclass samples as a shard below tmp_path."""

    def write(samples: list[Sample], name: str = FIRST_SHARD, content: str = "content") -> ShardEntry:
        return write_shard(tmp_path, name, content, pack_all(samples, cells_map))

    return write


@pytest.fixture
def left_shards(
    tmp_path: Path, write_samples: Callable[..., ShardEntry], samples: list[Sample], cells_map: ClassMap
) -> list[ShardEntry]:
    """Two shards and their index, as an earlier run left them below tmp_path."""
    entries = [
        write_samples(samples[:2], content="first"),
        write_samples(samples[2:], "train/b0000-00001.tar", "second"),
    ]
    write_index(tmp_path, index_of(cells_map, *entries))
    return entries


@pytest.fixture(scope="session")
def shapes_dir(
    tmp_path_factory: pytest.TempPathFactory, draw_sample: Callable[..., Sample], shapes_map: ClassMap
) -> Path:
    """Shards and index of 13 training and 3 validation pictures, 32 x 32, gray. Read only."""
    directory = tmp_path_factory.mktemp("shapes")
    entries = [
        write_shard(directory, name, f"content of {name}", pack_all([draw_sample(n) for n in numbers], shapes_map))
        for name, split, numbers in SHAPES_SHARDS
    ]
    write_index(directory, ShardIndex(class_map=shapes_map, channels=1, shards=tuple(entries)))
    return directory


@pytest.fixture(scope="session")
def val(shapes_dir: Path) -> ShardReader:
    """The three validation pictures of the shapes."""
    return ShardReader(shapes_dir, read_index(shapes_dir).of_split("val"))


@pytest.fixture(scope="session")
def train_groups(
    shapes_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Sequence[int], Mapping[str, Any]], Callable[[int], list[Any]]]:
    """Numbers of workers, and what each group trains -> by the number, what every rank of gloo processes found."""

    def train(world_sizes: Sequence[int], cases: Mapping[str, Any]) -> Callable[[int], list[Any]]:
        directory = tmp_path_factory.mktemp("workers")
        about = {"world_sizes": world_sizes, "shards": str(shapes_dir), "directory": str(directory), "cases": cases}
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("gloo_worker.py")), json.dumps(about)],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

        def read(world_size: int) -> list[Any]:
            return [json.loads((directory / f"{rank}_of_{world_size}.json").read_text()) for rank in range(world_size)]

        return read

    return train


@pytest.fixture(scope="session")
def make_spec(shapes_map: ClassMap) -> Callable[..., ModelSpec]:
    """A tiny network's description: width 8, depth 2."""

    def make(
        *, channels: int = 1, class_map: ClassMap = shapes_map, precision: Precision = "float32", **config: Any
    ) -> ModelSpec:
        return ModelSpec(
            config=ModelConfig(**{"width": 8, "depth": 2, "norm": "batch", "input_statistics": "train", **config}),
            images=ImageConfig(channels=channels),
            class_map=class_map,
            mean=(0.25,) * channels,
            deviation=(0.5,) * channels,
            precision=precision,
        )

    return make


@pytest.fixture(scope="session")
def make_config() -> Callable[..., TrainConfig]:
    """A short training's recipe; each test names what it changes."""
    plain = TrainConfig(
        seed=0,
        epochs=2,
        lanes=4,
        samples_per_lane=1,
        block_shards=2,
        exact=True,
        threads_per_worker=1,
        precision="float32",
        channels_last=True,
        optimizer="adamw",
        learning_rate=0.01,
        weight_decay=0.01,
        schedule="constant",
        warmup_steps=0,
        decay_epochs=None,
        loss={"bce": 0.5, "dice": 0.5},
        class_weights="none",
        gradient_clip=None,
        validate_every_epochs=1,
        checkpoint_every_steps=None,
        select_by="loss",
    )
    return lambda **changes: replace(plain, **changes)


@pytest.fixture(scope="session")
def start(shapes_dir: Path, make_spec: Callable[..., ModelSpec], val: ShardReader) -> Callable[..., Any]:
    """A plain process: the trainer, and its loop ready to run."""
    train = read_index(shapes_dir).of_split("train")

    def start(config: TrainConfig, state: TrainState | None = None, **spec: Any) -> tuple[Trainer, Any]:
        trainer = Trainer(make_spec(**spec), config, LaneTree(lanes=config.lanes))
        if state is not None:
            trainer.restore(state)
        loader = LaneLoader(
            ShardReader(shapes_dir, train), trainer.spec.class_map, AugmentConfig(crop_px=24), seed=config.seed
        )
        return trainer, trainer.fit(loader, val)

    return start


@pytest.fixture(scope="session")
def fit(start: Callable[..., Any]) -> Callable[..., tuple[Trainer, list[Report]]]:
    """Train in a plain process to the end; the trainer and its reports."""

    def fit(config: TrainConfig, state: TrainState | None = None, **spec: Any) -> tuple[Trainer, list[Report]]:
        trainer, loop = start(config, state, **spec)
        return trainer, list(loop)

    return fit
