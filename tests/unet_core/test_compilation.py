"""Training by a compiled network. In processes of their own: torch's compiler warns, and takes its compiler once."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from unet_core.train_config import TrainConfig

pytestmark = pytest.mark.slow

REFUSED = """
import torch
from unet_core.compilation import compile_network
from unet_core.errors import TrainingError
try:
    compile_network(torch.nn.Conv2d(1, 1, 1), torch.device("cpu"))
except TrainingError as error:
    print(error)
"""


def test_two_workers_train_the_bits_of_one_by_a_compiled_network(
    train_groups: Callable[..., Callable[[int], list[Any]]], make_config: Callable[..., TrainConfig]
) -> None:
    # Steps of three samples and one of a single one, in two passes and one; validation of images of another size.
    config = make_config(epochs=2, samples_per_lane=2, accumulate=2, ema_decay=0.9, compile=True)
    cases = {
        name: {"model": {"norm": "batch", "dropout": 0.2}, "train": {**asdict(config), "compile": name == "compiled"}}
        for name in ("compiled", "eager")
    }
    trained_by = train_groups([1, 2], cases)
    (alone,) = trained_by(1)
    assert all(math.isfinite(loss) for loss in alone["compiled"]["losses"])
    assert len(alone["compiled"]["losses"]) == 4
    assert [found["compiled"] for found in trained_by(2)] == [alone["compiled"]] * 2
    # Another rounding, and other draws of dropout: part of the recipe.
    assert alone["compiled"]["hash"] != alone["eager"]["hash"]
    assert alone["compiled"]["names"] == alone["eager"]["names"]


def test_a_host_without_a_compiler_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REFUSED],
        env={**os.environ, "CXX": "no_such_compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("train.compile: nothing can be compiled on this host: ")
    assert "no_such_compiler" in done.stdout
    assert done.stdout.endswith("Install a C++ compiler (on a GPU triton, too), or set train.compile: false.\n")
    assert done.stdout.count("\n") == 1
