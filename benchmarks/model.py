"""How fast a training step is: beside the same network in float32 contiguous, and beside plain matrix products.

`speedup_over_float32`: a whole step (passes, loss, gradient norm, AdamW) at width 32 on 8 images of 128 x 128, in the
best precision and memory order for this processor and with freed memory kept, over the same network and step as other
libraries run them by default: float32 contiguous, and memory as the C library gives it, so in a process of its own.
`speedup_of_precision` is over float32 contiguous with freed memory kept, too. Ways take turns in rounds, medians.
`matmul_fraction`: floating-point operations a second of the convolutions of a step at width 64 on 8 images of 192 x
192, over those of a 2048-cubed matrix product in the same precision, in turns too. Both for each precision; the
headline numbers are those of bfloat16 where the processor computes in it (`native_bfloat16`), else of float32, since it
is emulated then.
`python -m benchmarks.model [--quick]` prints one JSON line last.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.workspace import print_result
from pipeline.memory import keep_freed_memory
from unet_core.loader import Batch
from unet_core.model_config import ModelConfig, ModelSpec, Precision
from unet_core.reduction import LaneTree
from unet_core.samples import ClassMap, ImageConfig
from unet_core.train_config import TrainConfig
from unet_core.trainer import Trainer, has_native_bfloat16

CLASSES = ClassMap(kind="multiclass", classes={"background": 0, "cell": 1}, background="background")
MATRIX_SIDE = 2048
#: The way that other libraries go.
DEFAULT = "float32_contiguous_default_memory"
Step = Callable[[], None]


def main() -> None:
    """Measure both, and say which precision the headline numbers have."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round instead of five")
    rounds = 1 if parser.parse_args().quick else 5
    # As training workers do.
    keep_freed_memory()
    native = has_native_bfloat16(torch.device("cpu"))
    best: Precision = "bfloat16" if native else "float32"
    speed = images_per_second(rounds)
    rates = gigaflops(rounds)
    precisions = ("float32", "bfloat16")
    fractions = {name: round(rates[f"{name}_step"] / rates[f"{name}_product"], 3) for name in precisions}
    print_result(
        {
            "speedup_over_float32": round(speed[f"{best}_channels_last"] / speed[DEFAULT], 2),
            "speedup_of_precision": round(speed[f"{best}_channels_last"] / speed["float32_contiguous"], 2),
            "matmul_fraction": fractions[best],
            "precision": best,
            "native_bfloat16": native,
            "threads": torch.get_num_threads(),
            "images_per_second": {name: round(value, 2) for name, value in speed.items()},
            "matmul_fractions": fractions,
            "gigaflops": {name: round(value, 1) for name, value in rates.items()},
        }
    )


def images_per_second(rounds: int) -> dict[str, float]:
    """Of training steps at width 32, batch 8, 128 x 128."""
    ways: dict[str, tuple[Precision, bool]] = {
        "float32_contiguous": ("float32", False),
        "float32_channels_last": ("float32", True),
        "bfloat16_channels_last": ("bfloat16", True),
    }
    steps = {
        name: make_small_step(precision, channels_last=channels_last)
        for name, (precision, channels_last) in ways.items()
    }
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        steps[DEFAULT] = lambda: other.submit(default_step).result()
        return {name: 8 / seconds for name, seconds in take_turns(steps, rounds).items()}


def default_step() -> None:
    """A step in a process that sets nothing, where this is called."""
    make_small_step("float32", channels_last=False)()


def gigaflops(rounds: int) -> dict[str, float]:
    """Billions of floating-point operations a second, of steps at width 64 on 192 x 192 and of matrix products."""
    tasks: dict[str, Step] = {}
    operations: dict[str, float] = {}
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for precision in precisions:
        step = make_step(width=64, size_px=192, count=8, precision=precision, channels_last=True)
        with FlopCounterMode(display=False) as counter:
            step()
        tasks[f"{precision}_step"], operations[f"{precision}_step"] = step, counter.get_total_flops()
        tasks[f"{precision}_product"] = make_product(precision)
        operations[f"{precision}_product"] = 2 * MATRIX_SIDE**3
    return {name: operations[name] / seconds / 1e9 for name, seconds in take_turns(tasks, rounds).items()}


@functools.cache
def make_small_step(precision: Precision, *, channels_last: bool) -> Step:
    """At width 32, on 8 images of 128 x 128."""
    return make_step(width=32, size_px=128, count=8, precision=precision, channels_last=channels_last)


def make_step(*, width: int, size_px: int, count: int, precision: Precision, channels_last: bool) -> Step:
    """A training step on one batch that lies in memory."""
    spec = ModelSpec(
        config=ModelConfig(width=width, depth=4, norm="batch", input_statistics="train"),
        images=ImageConfig(channels=3),
        class_map=CLASSES,
        mean=(0.5,) * 3,
        deviation=(0.25,) * 3,
        precision=precision,
    )
    trainer = Trainer(spec, recipe(count, precision, channels_last=channels_last), LaneTree(lanes=1))
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, size_px, size_px, 3), generator=draw, dtype=torch.uint8)
    masks = torch.randint(0, 2, (count, size_px, size_px), generator=draw, dtype=torch.uint8)
    batch = Batch(keys=tuple(map(str, range(count))), images=images.permute(0, 3, 1, 2), masks=masks, border=None)
    return lambda: consume(trainer.step_at([batch], 1e-4))


def recipe(count: int, precision: Precision, *, channels_last: bool) -> TrainConfig:
    """A step's part of a recipe, as `unet init` writes it."""
    common: dict[str, Any] = {"seed": 0, "epochs": 1, "lanes": 1, "block_shards": 1, "exact": True}
    common |= {"threads_per_worker": torch.get_num_threads(), "validate_every_epochs": 1, "select_by": "dice"}
    common |= {"optimizer": "adamw", "learning_rate": 1e-4, "weight_decay": 0.01, "gradient_clip": None}
    common |= {"schedule": "constant", "warmup_steps": 0, "decay_epochs": None, "checkpoint_every_steps": None}
    return TrainConfig(
        **common,
        samples_per_lane=count,
        precision=precision,
        channels_last=channels_last,
        loss={"cross_entropy": 0.5, "dice": 0.5},
    )


def make_product(precision: Precision) -> Step:
    """A matrix product."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    first, second = (torch.rand(MATRIX_SIDE, MATRIX_SIDE, dtype=dtype) for _ in range(2))
    return lambda: consume(first @ second)


def consume(_: object) -> None:
    """Let a result go."""


def take_turns(tasks: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median seconds of each task; each runs once in each round, after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            if number:
                found[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


if __name__ == "__main__":
    main()
