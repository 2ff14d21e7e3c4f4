"""Memory of `unet predict` on a large tiled TIFF, which it reads and writes by rows.

`python -m benchmarks.large_file [--quick]` writes a file of 20,000 x 20,000 RGB pixels (with --quick 1,600 rows of it),
predicts mask, uncertainty and overlay in a process of its own, and prints one JSON line last. Weights are random.
Compares with nothing: a budget of 2,000 MB.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
import torch

from benchmarks.inference import make_spec
from benchmarks.workspace import ROOT, print_result
from unet_core.checkpoint import write_model
from unet_core.model import UNet
from unet_core.samples import Array

SIDE_PX, QUICK_ROWS, TILE_PX = 20_000, 1_600, 512
BUDGET_MB = 2_000

PROGRAM = """
import sys
from benchmarks.workspace import peak_mb
from pipeline.cli import main
try:
    main(sys.argv[1:])
finally:
    print(peak_mb())
"""


def main() -> None:
    """Write the file and the model, predict, and read the results' sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=16, help="channels of the network's first level")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS} rows; memory does not depend on them")
    arguments = parser.parse_args()
    height = QUICK_ROWS if arguments.quick else SIDE_PX
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_image(folder / "large.tif", height)
        spec = make_spec(arguments.width, "float32")
        torch.manual_seed(0)
        write_model(folder / "model", spec, UNet(spec).state_dict())
        words = ["predict", str(folder / "large.tif"), "--out", str(folder / "out"), "--model", str(folder / "model")]
        words += ["--save", "mask,uncertainty,overlay"]
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
        seconds = time.perf_counter() - started
        with tifffile.TiffFile(folder / "out" / "masks" / "large.tif") as file:
            shape = file.pages.first.shape
    peak = float(done.stdout.splitlines()[-1])
    print_result(
        {
            "peak_mb": round(peak),
            "within_budget": peak < BUDGET_MB,
            "mpx_per_second": round(height * SIDE_PX / 1e6 / seconds, 3),
            "mask": list(shape),
            "compared_with": f"nothing: a budget of {BUDGET_MB} MB",
        }
    )


def write_image(path: Path, height: int) -> None:
    """Noise, the same in every tile."""
    tile = np.random.default_rng(0).integers(0, 256, (TILE_PX, TILE_PX, 3), dtype=np.uint8)

    def tiles() -> Iterator[Array]:
        for _ in range(-(-height // TILE_PX) * -(-SIDE_PX // TILE_PX)):
            yield tile

    shape = (height, SIDE_PX, 3)
    tifffile.imwrite(
        path, tiles(), shape=shape, dtype=np.uint8, tile=(TILE_PX, TILE_PX), photometric="rgb", compression="zlib"
    )


if __name__ == "__main__":
    main()
