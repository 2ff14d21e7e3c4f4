"""Groups of gloo workers, started by `train_groups` of conftest.py: `python gloo_worker.py JSON`.

Every worker trains the cases that it is told, one after the other, and writes the hash of all weights and buffers.
A module of its own, run as a script, so that no test module has to be importable in another process.
"""

import hashlib
import json
import math
import multiprocessing
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from unet_core.checkpoint import write_checkpoint
from unet_core.errors import TrainingError
from unet_core.index import read_index
from unet_core.loader import LaneLoader
from unet_core.loss_scale import LossScale
from unet_core.model import ModelConfig, ModelSpec
from unet_core.reader import ShardReader
from unet_core.reduction import LaneTree, PartialSums
from unet_core.samples import ImageConfig
from unet_core.train_config import TrainConfig
from unet_core.trainer import Report, Trainer
from unet_core.transforms import AugmentConfig


def train(shards: Path, case: dict[str, Any], *, rank: int, world_size: int, checkpoint: Path) -> dict[str, Any]:
    """Train one case to its end; hash of the weights, and what the loop reported."""
    index = read_index(shards)
    mean, deviation = index.train_statistics()
    spec = ModelSpec(
        config=ModelConfig(**{"width": 8, "depth": 2, "input_statistics": "train", **case["model"]}),
        images=ImageConfig(channels=index.channels),
        class_map=index.class_map,
        mean=mean,
        deviation=deviation,
        precision=case["train"]["precision"],
    )
    config = TrainConfig(**case["train"])
    trainer = Trainer(spec, config, LaneTree(lanes=config.lanes, rank=rank, world_size=world_size))
    if "loss_scale" in case:
        trainer.loss_scale = LossScale(scale=case["loss_scale"])
    train = ShardReader(shards, index.of_split("train"))
    loader = LaneLoader(train, index.class_map, AugmentConfig(crop_px=24), seed=config.seed)
    val = ShardReader(shards, index.of_split("val"))
    fit = trainer.fit(loader, val)
    if "break_at" in case:
        return break_weights(trainer, fit, step=case["break_at"], checkpoint=checkpoint)
    reports = list(fit)
    return {
        "hash": hash_state(trainer.model.state_dict()),
        "best": hash_state(dict(trainer.best_weights)),
        "names": list(trainer.best_weights),
        "losses": [step.loss for report in reports for step in report.steps],
        "skipped": [step.step for report in reports for step in report.steps if step.is_skipped],
        "validations": [asdict(report.validation) for report in reports if report.validation],
    }


def break_weights(trainer: Trainer, fit: Iterator[Report], *, step: int, checkpoint: Path) -> dict[str, Any]:
    """Let a training break after a step; what it says, and the checkpoint that this worker wrote before."""
    told = next(report for report in fit if report.position.step == step)
    assert told.checkpoint is not None
    write_checkpoint(checkpoint, trainer.spec, told.checkpoint, {})
    with torch.no_grad():
        trainer.model.head.bias.fill_(math.nan)
    try:
        list(fit)
    except TrainingError as error:
        return {"error": str(error), "checkpoint": str(checkpoint)}
    raise AssertionError("it should have ended")


def hash_state(state: dict[str, torch.Tensor]) -> str:
    """sha256 of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def sum_vectors(*, rank: int, world_size: int) -> dict[str, str]:
    """Hash of the sum over eight lanes of vectors of several lengths."""
    tree = LaneTree(lanes=8, rank=rank, world_size=world_size)
    found = {}
    for length in (1, 2, 3, 7, 1001):
        sums = PartialSums()
        for lane in tree.lanes:
            values = torch.randn(length, generator=torch.Generator().manual_seed(lane)) * 10.0 ** (lane % 4)
            sums.push([values])
        # Two on the way at once, as buckets are.
        (partial,) = sums.pop_total()
        both = [tree.start_all_reduce(part) for part in (partial, 2 * partial)] if world_size > 1 else []
        total, doubled = (future.wait() for future in both) if both else (partial, 2 * partial)
        found[str(length)] = hash_state({"total": total, "doubled": doubled})
    return found


def work(about: dict[str, Any], rank: int, world_size: int) -> None:
    """One worker: join the group, train the cases, write what came out."""
    torch.set_num_threads(1)
    directory = Path(about["directory"])
    if world_size > 1:
        meeting = f"file://{directory / f'meeting_{world_size}'}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    cases = about["cases"].items()
    found: dict[str, Any] = {"sums": sum_vectors(rank=rank, world_size=world_size)}
    if world_size <= max(case["train"]["lanes"] for _, case in cases):
        shards, checkpoint = Path(about["shards"]), directory / f"checkpoint_{rank}_of_{world_size}"
        found |= {
            name: train(shards, case, rank=rank, world_size=world_size, checkpoint=checkpoint) for name, case in cases
        }
    (directory / f"{rank}_of_{world_size}.json").write_text(json.dumps(found))
    if world_size > 1:
        dist.destroy_process_group()


def main(about: dict[str, Any]) -> int:
    """Run one group after the other; 1 if a worker failed."""
    context = multiprocessing.get_context("forkserver")
    # Loaded once, by the server that workers are forked from. Every optimizer wants torch._dynamo.
    context.set_forkserver_preload(["torch._dynamo", "unet_core.trainer"])
    for world_size in about["world_sizes"]:
        workers = [context.Process(target=work, args=(about, rank, world_size)) for rank in range(world_size)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
