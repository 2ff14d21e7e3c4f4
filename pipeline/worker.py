"""What a training worker does. Apart from the stage's driver, so that workers start without MLflow and its seconds."""

import contextlib
import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline import cluster, identity, storage
from pipeline.checkpoints import Checkpoints, Found, Saver
from pipeline.memory import keep_freed_memory
from pipeline.params import RECIPE, load_section
from pipeline.shard_places import open_shards
from unet_core.cache import CachedShards
from unet_core.errors import TrainingError
from unet_core.index import ShardIndex
from unet_core.loader import LaneLoader, StepBatches
from unet_core.model_config import IMAGENET_DEVIATION, IMAGENET_MEAN, ModelConfig, ModelSpec
from unet_core.plan import EpochPlan
from unet_core.reader import MAX_OPEN, ShardReader
from unet_core.reduction import LaneTree
from unet_core.samples import ImageConfig
from unet_core.train_config import TrainConfig
from unet_core.trainer import Report, Trainer
from unet_core.transforms import AugmentConfig

#: About how long it takes from one report to the next.
REPORT_SECONDS = 2.0
MAX_STEPS_A_REPORT = 1000


def read_recipe(index: ShardIndex, recipe: Path = RECIPE) -> tuple[ModelSpec, TrainConfig, AugmentConfig]:
    """The network that recipe and data ask for, and how to train it."""
    config = load_section("train", TrainConfig, recipe)
    model = load_section("model", ModelConfig, recipe)
    images = load_section("images", ImageConfig, recipe)
    mean, deviation = index.train_statistics()
    if model.input_statistics == "imagenet":
        mean, deviation = IMAGENET_MEAN, IMAGENET_DEVIATION
        # An encoder is given a gray image three times, each with the mean and deviation of one colour.
        if images.channels != 3 and not (model.encoder is not None and images.channels == 1):
            raise TrainingError("model.input_statistics: imagenet is for RGB images. Set images.channels: 3, or train.")
        if images.bits != 8:
            raise TrainingError(
                f"model.input_statistics: imagenet is for images of 8 bits a channel, not {images.bits}. Set train."
            )
    spec = ModelSpec(
        config=model,
        images=images,
        class_map=index.class_map,
        mean=mean,
        deviation=deviation,
        precision=config.precision,
    )
    return spec, config.with_class_weights(index.class_pixels("train")), load_section("augment", AugmentConfig, recipe)


class NotedLoader(LaneLoader):
    """Notes which samples it served: a training's record says what each step really saw."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._seen: list[list[str]] = []

    def steps(self, plan: EpochPlan, *, epoch: int, lanes: Sequence[int], first: int = 0) -> StepBatches:
        """As LaneLoader's."""
        for batches in super().steps(plan, epoch=epoch, lanes=lanes, first=first):
            self._seen.append([hash_keys(batch.keys) for batch in batches])
            yield batches

    def take_seen(self) -> list[list[str]]:
        """A hash of the keys of each lane of each step since the last call."""
        seen, self._seen = self._seen, []
        return seen


def hash_keys(keys: Sequence[str]) -> str:
    """Short hash of the samples of one lane in one step."""
    return hashlib.sha256("\0".join(keys).encode()).hexdigest()[:16]


def train_worker(options: dict[str, Any]) -> None:
    """What every worker does. A foreseen mistake ends the training, also if it is this worker's alone (elastic.py)."""
    enter_tree(options["root"])
    checkpoints: Checkpoints = options["checkpoints"]
    identity.check_host(checkpoints.made_by)
    checkpoints.check_host()
    rank, world_size = cluster.rank_and_size()
    index: ShardIndex = options["index"]
    # As the training began: params.yaml may be on its way to the next one.
    spec, config, augment = options["recipe"]
    device = torch.device("cuda" if options["use_gpu"] else "cpu")
    settle_process(config, device)
    with weights_at_hand(options["weights"]):
        trainer = Trainer(spec, config, LaneTree(lanes=config.lanes, rank=rank, world_size=world_size), device)
    begun = _restore(trainer, checkpoints)
    with open_shards(options["places"]) as files, Saver(partial(checkpoints.write, spec), begun) as saver:
        _fit(trainer, index, files, augment, options, saver)


def enter_tree(root: str) -> None:
    """Go to the working tree, to which paths of the recipe are relative; Ray starts workers elsewhere.

    A host that does not see it has the copy that `unet submit` sent, where Ray has started the worker, or none at all.
    All that is read there (weights to begin with) is compared with the recipe's hash.
    """
    if Path(root).is_dir():
        os.chdir(root)


def read_weights(spec: ModelSpec, config: TrainConfig) -> dict[str, bytes]:
    """Files in the working tree that the network begins with, by their paths, for hosts that have only what git tracks.

    One outside the tree is left to the hosts, and one that is missing to the trainer, which says so.
    """
    named = [Path(told["path"]) for told in (config.initial_weights, spec.config.encoder_weights) if told is not None]
    inside = [path for path in named if not path.is_absolute() and ".." not in path.parts]
    return {str(path): path.read_bytes() for path in inside if path.is_file()}


@contextlib.contextmanager
def weights_at_hand(weights: Mapping[str, bytes]) -> Iterator[None]:
    """Where a host lacks one of the files that `read_weights` gave the driver, be in a folder that has them."""
    if all(Path(name).is_file() for name in weights):
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, data in weights.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        with contextlib.chdir(folder):
            yield


def settle_process(config: TrainConfig, device: torch.device) -> None:
    """Threads, memory, and on a GPU only algorithms that give the same bits each time."""
    torch.set_num_threads(config.threads_per_worker)
    keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(mode=True)


def _restore(trainer: Trainer, checkpoints: Checkpoints) -> Found | None:
    """Go on from the newest whole checkpoint, the same on all ranks; rank 0 gives what it found."""
    if trainer.tree.rank > 0:
        # Not the newest that this rank finds: a worker that was taken for dead may have added one meanwhile.
        name = cluster.from_rank_zero(None)
        if name is not None:
            trainer.restore(storage.patiently(partial(checkpoints.read, name)))
        return None
    found = storage.patiently(checkpoints.find_newest)
    cluster.from_rank_zero(found.name if found else None)
    if found is not None:
        trainer.restore(found.state)
    return found


def _fit(
    trainer: Trainer,
    index: ShardIndex,
    files: Path | CachedShards,
    augment: AugmentConfig,
    options: Mapping[str, Any],
    saver: Saver,
) -> None:
    """Train to the end and report; rank 0 keeps checkpoints, for all."""
    config, tree = trainer.config, trainer.tree
    # What is open can't be evicted from a cache: little more than the blocks that the lanes are in.
    max_open = 2 * config.block_shards * (len(tree.lanes) + 1) if isinstance(files, CachedShards) else MAX_OPEN
    train = ShardReader(files, index.of_split("train"), max_open=max_open)
    val = ShardReader(files, index.of_split("val"), max_open=max_open)
    class_map = trainer.spec.class_map
    border = config.read_border_weight(class_map)
    loader = NotedLoader(train, class_map, augment, seed=config.seed, threads=options["loader_threads"], border=border)
    of_host = _other_processor(options["processor"])
    started = reported = time.monotonic()
    for told in trainer.fit(loader, val):
        about = {**_record(told), "workers": tree.world_size, "seconds": time.monotonic() - started}
        about["samples"] = loader.take_seen()
        about["kept"] = saver.take_kept()
        of_shards = files.take_warnings() if isinstance(files, CachedShards) else []
        about["warnings"] = [*of_host, *saver.take_warnings(), *of_shards]
        of_host = []
        cluster.report(about)
        now = time.monotonic()
        leaves, seconds = _agree(trainer, leaves=cluster.host_leaves(), seconds=now - reported)
        reported = now
        if told.steps and told.validation is None:
            trainer.report_every_steps = _steps_to_next_report(len(told.steps), seconds)
        if tree.rank == 0 and (leaves or told.checkpoint is not None):
            # A checkpoint must not be ahead of the journal: nobody would tell these steps again. On a full disk it may
            # be, as lines wait for room there; none is lost, as the checkpoint has the scores of all steps to the last.
            cluster.wait_until_told()
            saver.keep(told.checkpoint or trainer.state())
        if leaves:
            saver.finish()
            cluster.leave()


def _other_processor(of_driver: str) -> list[str]:
    """A warning where this host rounds otherwise, perhaps."""
    here = identity.processor()
    if here == of_driver:
        return []
    return [f"{platform.node()} has another processor ({here}) than the driver ({of_driver}): bits may differ."]


def _agree(trainer: Trainer, *, leaves: bool, seconds: float) -> tuple[bool, float]:
    """Whether any worker's host leaves, and the mean of their seconds: all must stop, and report, at the same step."""
    sums = trainer.tree.all_reduce(torch.tensor([float(leaves), seconds], device=trainer.device)).tolist()
    return sums[0] > 0, sums[1] / trainer.tree.world_size


def _steps_to_next_report(num_steps: int, seconds: float) -> int:
    """A report costs some hundredths of a second, and no news is bad news: as many steps as `REPORT_SECONDS` hold."""
    return max(1, min(MAX_STEPS_A_REPORT, round(num_steps * REPORT_SECONDS / max(seconds, 1e-3))))


def _record(told: Report) -> dict[str, Any]:
    return {
        "epoch": told.position.epoch,
        "steps": [asdict(step) for step in told.steps],
        "validation": asdict(told.validation) if told.validation else None,
    }
