"""Mpx/s and memory of predicting one large RGB image in fast mode, beside MONAI's sliding window as documented.

`python -m benchmarks.inference [--quick]` runs each in processes of its own, in turns, and prints one JSON line of
medians last. Both have the same random weights and go from uint8 pixels to a mask of classes; ours folds the weights as
`unet predict` does. MONAI gets 256 tiles, overlap 0.25, Gaussian weights, four tiles at a time, float32.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.workspace import ROOT, peak_mb, print_result
from pipeline.memory import keep_freed_memory
from unet_core.folding import fold_batch_norm
from unet_core.inference import ArrayRows, predict_bands, predict_mask
from unet_core.model import ModelConfig, ModelSpec, UNet
from unet_core.samples import Array, ClassMap, ImageConfig
from unet_core.trainer import has_native_bfloat16

ROUNDS = 3
MONAI_TILE_PX = 256
QUICK_PX = 1024


def main() -> None:
    """Run both in turns, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=4096, help="height and width of the image")
    parser.add_argument("--width", type=int, default=16, help="channels of the network's first level")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="ours; default: what the processor has")
    parser.add_argument("--quick", action="store_true", help=f"one round on {QUICK_PX} x {QUICK_PX} pixels")
    parser.add_argument("--only", choices=("ours", "monai"), help=argparse.SUPPRESS)
    parser.add_argument("--mask", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    native = has_native_bfloat16(torch.device("cpu"))
    precision = arguments.precision or ("bfloat16" if native else "float32")
    side = QUICK_PX if arguments.quick else arguments.side
    if arguments.only:
        predict = predict_ours if arguments.only == "ours" else predict_by_monai
        measure(predict, arguments.mask, side, make_spec(arguments.width, precision))
    else:
        options = ["--side", str(side), "--width", str(arguments.width), "--precision", precision]
        compare(options, precision, rounds=1 if arguments.quick else ROUNDS)


def compare(options: list[str], precision: str, *, rounds: int) -> None:
    """Processes in turns; medians of their rates and memory."""
    told: dict[str, list[dict[str, float]]] = {"ours": [], "monai": []}
    with tempfile.TemporaryDirectory() as scratch:
        masks = {name: Path(scratch) / f"{name}.npy" for name in told}
        for number in range(rounds):
            for name, results in told.items():
                command = [sys.executable, "-m", "benchmarks.inference", *options, "--only", name]
                command += ["--mask", str(masks[name])]
                done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
                results.append(json.loads(done.stdout.splitlines()[-1]))
                print(f"round {number}: {name}: {results[-1]}", flush=True)
        same = float((np.load(masks["ours"]) == np.load(masks["monai"])).mean())
    ours, monai = (
        {key: statistics.median(result[key] for result in results) for key in results[0]} for results in told.values()
    )
    print_result(
        {
            **{key: round(value, 3) for key, value in ours.items()},
            **{f"monai_{key}": round(value, 3) for key, value in monai.items()},
            "times_monai": round(ours["mpx_per_second"] / monai["mpx_per_second"], 2),
            "times_monai_per_cpu_second": round(ours["mpx_per_cpu_second"] / monai["mpx_per_cpu_second"], 2),
            "same_fraction": round(same, 4),
            "precision": precision,
            "compared_with": "monai.inferers.sliding_window_inference",
        }
    )


def measure(predict: Callable[[UNet, ModelSpec, Array], Array], mask: Path, side: int, spec: ModelSpec) -> None:
    """Predict once, after a corner that warms up; the mask goes to a file, numbers to standard output."""
    torch.manual_seed(0)
    model = UNet(spec).eval()
    image = np.random.default_rng(0).integers(0, 256, (side, side, spec.channels), dtype=np.uint8)
    predict(model, spec, image[:MONAI_TILE_PX, :MONAI_TILE_PX])
    started, cpu_started = time.perf_counter(), time.process_time()
    predicted = predict(model, spec, image)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    mpx = side * side / 1e6
    rates = {"mpx_per_second": mpx / seconds, "mpx_per_cpu_second": mpx / cpu_seconds}
    np.save(mask, predicted)
    print_result({**rates, "peak_mb": peak_mb()})


def predict_ours(model: UNet, spec: ModelSpec, image: Array) -> Array:
    """As `unet predict` does."""
    keep_freed_memory()
    folded = fold_batch_norm(model)
    return np.concatenate([predict_mask(band.logits, spec) for band in predict_bands(folded, spec, ArrayRows(image))])


def predict_by_monai(model: UNet, spec: ModelSpec, image: Array) -> Array:
    """As in MONAI's documentation."""
    from monai.inferers.utils import sliding_window_inference

    inputs = torch.from_numpy(image).permute(2, 0, 1)[None].float().contiguous()
    with torch.no_grad():
        logits = sliding_window_inference(inputs, (MONAI_TILE_PX,) * 2, 4, model, overlap=0.25, mode="gaussian")
    assert isinstance(logits, torch.Tensor)
    return predict_mask(logits[0], spec)


def make_spec(width: int, precision: str) -> ModelSpec:
    """A U-Net of four levels with batch norm, for RGB and two classes."""
    return ModelSpec(
        config=ModelConfig(width=width, depth=4, norm="batch", input_statistics="train"),
        images=ImageConfig(channels=3),
        class_map=ClassMap(kind="multiclass", classes={"background": 0, "cell": 1}),
        mean=(0.5,) * 3,
        deviation=(0.25,) * 3,
        precision="bfloat16" if precision == "bfloat16" else "float32",
    )


if __name__ == "__main__":
    main()
