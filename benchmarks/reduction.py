"""What exact sums cost: time beside plain DDP, and the copies of the gradients that the tree holds.

Two gloo workers with one thread each have both kinds of step in the same processes and take turns, on one batch in
memory: nothing of Ray, loader or checkpoints, and whatever else the machine does meets both alike. Copies are the
growth of a worker's resident memory during a step, in sizes of the gradients, for a network whose feature maps are
small beside its weights. `python -m benchmarks.reduction [--quick]` prints one JSON line last.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import multiprocessing

from benchmarks.workspace import peak_mb, print_result
from unet_core.loader import Batch
from unet_core.model import ModelConfig, ModelSpec
from unet_core.reduction import LaneTree
from unet_core.samples import ClassMap, ImageConfig
from unet_core.train_config import TrainConfig
from unet_core.trainer import Trainer

CLASSES = 6
STEPS_A_TURN = 10
#: (workers, lanes of each) whose memory is measured.
GROUPS = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4))


def main() -> None:
    """Measure time, then memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few turns")
    turns = 4 if parser.parse_args().quick else 20
    seconds = in_group(2, compare, turns)
    wall, processor = (
        [turn["plain"][kind] / turn["exact"][kind] for turn in seconds] for kind in ("wall", "processor")
    )
    copies = {}
    for workers, lanes in GROUPS:
        held = in_group(workers, count_copies, workers * lanes)
        copies[f"workers {workers}, lanes each {lanes}"] = {"held": round(held, 2), "allowed": math.log2(lanes) + 2}
    print_result(
        {
            "exact_over_plain_ddp": round(statistics.median(wall), 3),
            "exact_over_plain_ddp_processor_time": round(statistics.median(processor), 3),
            "gradient_copies": copies,
        }
    )


def in_group(workers: int, measure: Callable[[int, int], Any], count: int) -> Any:
    """What rank 0 of a group of gloo processes found with `measure(rank, count)`."""
    with tempfile.TemporaryDirectory() as scratch:
        multiprocessing.spawn(_work, (workers, scratch, measure, count), nprocs=workers)  # type: ignore[attr-defined, no-untyped-call]
        return json.loads(Path(scratch, "found.json").read_text())


def _work(rank: int, workers: int, scratch: str, measure: Callable[[int, int], Any], count: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{scratch}/meeting", rank=rank, world_size=workers)
    found = measure(rank, count)
    if rank == 0:
        Path(scratch, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def compare(rank: int, turns: int) -> list[dict[str, dict[str, float]]]:
    """Wall and processor time of each turn, exact and plain, at the size of the default recipe."""
    steps = {}
    for kind in ("exact", "plain"):
        tree = LaneTree(lanes=2, rank=rank, world_size=2)
        trainer = make_trainer(tree, width=8, exact=kind == "exact")
        steps[kind] = stepper(trainer, side_px=192)
        steps[kind]()
    found = []
    for turn in range(turns):
        times = {}
        for kind in ("exact", "plain") if turn % 2 else ("plain", "exact"):
            dist.barrier()
            wall, processor = time.perf_counter(), time.process_time()
            for _ in range(STEPS_A_TURN):
                steps[kind]()
            times[kind] = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        found.append(times)
    return found


def count_copies(rank: int, lanes: int) -> float:
    """By how many sizes of its gradients a worker grows during a step, beyond what one bare pass needs beside them."""
    tree = LaneTree(lanes=lanes, rank=rank, world_size=dist.get_world_size())
    trainer = make_trainer(tree, width=64, exact=True)
    step = stepper(trainer, side_px=16)
    for _ in range(3):
        step()
    size = sum(parameter.numel() * parameter.element_size() for parameter in trainer.model.parameters())
    image = torch.zeros(trainer.config.samples_per_lane, 1, 16, 16)
    bare = growth(trainer, lambda: trainer.model(image).sum().backward())
    # DDP keeps its buckets from step to step.
    kept = 1 if tree.world_size > 1 else 0
    return (growth(trainer, step) - bare) / size + 1 + kept


def growth(trainer: Trainer, run: Callable[[], object]) -> int:
    """Bytes by which the resident memory grows while `run` works, beginning without gradients."""
    trainer.optimizer.zero_grad(set_to_none=True)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = psutil.Process().memory_info().rss
    run()
    return int(peak_mb() * 2**20) - before


def make_trainer(tree: LaneTree, *, width: int, exact: bool) -> Trainer:
    """A trainer of the shapes' network, in a given width."""
    spec = ModelSpec(
        config=ModelConfig(width=width, depth=4, norm="batch", input_statistics="train"),
        images=ImageConfig(channels=1),
        class_map=ClassMap(kind="multilabel", classes={f"class {number}": 255 for number in range(CLASSES)}),
        mean=(0.1,),
        deviation=(0.3,),
        precision="float32",
    )
    config = TrainConfig(
        seed=0,
        epochs=1,
        lanes=tree.num_lanes,
        samples_per_lane=2,
        block_shards=1,
        exact=exact,
        threads_per_worker=1,
        precision="float32",
        channels_last=True,
        optimizer="adamw",
        learning_rate=1e-3,
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
    return Trainer(spec, config, tree)


def stepper(trainer: Trainer, *, side_px: int) -> Callable[[], object]:
    """A function that trains one step on one batch in memory."""
    shape = (trainer.config.samples_per_lane, CLASSES, side_px, side_px)
    images = torch.randint(0, 256, (shape[0], side_px, side_px, 1), dtype=torch.uint8).permute(0, 3, 1, 2)
    masks = torch.randint(0, 2, shape, dtype=torch.uint8)
    batch = Batch(keys=("a", "b"), images=images, masks=masks, border=None)
    batches = [batch for _ in trainer.tree.lanes]
    return lambda: trainer.step(batches, steps_per_epoch=100)


if __name__ == "__main__":
    main()
