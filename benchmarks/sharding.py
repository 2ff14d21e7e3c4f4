"""Speed of writing shards, and whether memory grows with the data.

`python -m benchmarks.sharding [--quick]` draws pictures, then writes shards of them on one core with each codec, and
once more with ten times the data, each in a process of its own, whose peak of memory is compared.
`mb_per_second`: bytes of the source files a second with the default codec, decoding included. One JSON line at the end.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from benchmarks.loader import CELLS, RGB, file_bytes, use_one_core
from benchmarks.workspace import peak_mb, print_result
from unet_core.codecs import EXTENSIONS, Codec
from unet_core.pairs import read_sample
from unet_core.samples import Sample
from unet_core.shards import write_shard

SHARD_SAMPLES = 64
SIDE_PX = 512


def main() -> None:
    """Compare the codecs, and ten times the data with one time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="an eighth of the pictures")
    parser.add_argument("--child", nargs=4, metavar=("SOURCE", "OUT", "CODEC", "COUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        source, out, codec, count = arguments.child
        print_result(write(Path(source), Path(out), codec, int(count)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        draw(source, 40)
        count = 32 if arguments.quick else 256
        rows = {codec: in_a_process(source, Path(scratch) / codec, codec, count) for codec in EXTENSIONS}
        large = in_a_process(source, Path(scratch) / "large", "raw", 10 * count)
    print_result(
        {
            "mb_per_second": rows["raw"]["mb_per_second"],
            "peak_ratio": round(large["peak_mb"] / rows["raw"]["peak_mb"], 3),
            "codecs": rows,
            "ten_times": large,
            "compared_with": "nothing: a budget",
        }
    )


def draw(source: Path, count: int) -> None:
    """Pictures like photographs: soft structure and a little noise, so that PNG halves them at best."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (source / folder).mkdir(parents=True)
    for number in range(count):
        soft = cv2.resize(rng.random((16, 16, 3), dtype=np.float32), (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC)
        noise = rng.normal(0, 4, (SIDE_PX, SIDE_PX, 3))
        image = np.clip(soft * 220 + noise, 0, 255).astype(np.uint8)
        cv2.imwrite(str(source / "images" / f"{number:04d}.png"), image)
        cv2.imwrite(str(source / "masks" / f"{number:04d}.png"), (soft[..., 0] > 0.5).astype(np.uint8) * 255)


def in_a_process(source: Path, out: Path, codec: str, count: int) -> dict[str, float]:
    """Write shards in a process of its own, whose memory starts small."""
    words = [sys.executable, "-m", "benchmarks.sharding", "--child", str(source), str(out), codec, str(count)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def write(source: Path, out: Path, codec: Codec, count: int) -> dict[str, float]:
    """Write `count` samples into shards; the files of the source come again and again."""
    use_one_core()
    images = sorted((source / "images").iterdir())
    num_bytes = 0

    def samples() -> Iterator[Sample]:
        nonlocal num_bytes
        for number in range(count):
            image = images[number % len(images)]
            mask = source / "masks" / image.name
            num_bytes += image.stat().st_size + mask.stat().st_size
            yield read_sample(f"{number:06d}", file_bytes(image), [file_bytes(mask)], RGB, CELLS)

    started, stream, written = time.perf_counter(), samples(), 0
    for number in range(-(-count // SHARD_SAMPLES)):
        name = f"train/b0001-{number:05d}.tar"
        written += write_shard(out, name, name, islice(stream, SHARD_SAMPLES), CELLS, codec=codec).num_bytes
        (out / name).unlink()
    seconds = time.perf_counter() - started
    return {
        "mb_per_second": round(num_bytes / 1e6 / seconds, 1),
        "written_mb_per_second": round(written / 1e6 / seconds, 1),
        "size_ratio": round(written / num_bytes, 3),
        "peak_mb": round(peak_mb(), 1),
    }


if __name__ == "__main__":
    main()
