"""Speed of writing shards, and whether memory grows with the data.

`python -m benchmarks.sharding [--quick]` draws pictures, then writes shards of them on one core with each codec, and
once more with ten times the data, each in a process of its own, whose peak of memory is compared.
`mb_per_second`: bytes of the source files a second that pass through (`shard.codec: original`; reading, hashing and
writing them; they were decoded and counted by `validate`); `converting_mb_per_second`: with the default codec, decoding
included. One JSON line at the end.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import cv2
import numpy as np

from benchmarks.loader import CELLS, RGB, file_bytes, use_one_core
from benchmarks.workspace import peak_mb, print_result
from unet_core import packing
from unet_core.codecs import CODECS, Codec
from unet_core.hashing import hash_file
from unet_core.index import Originals
from unet_core.packing import PackedSample, pack_all, pass_through
from unet_core.pairs import read_sample
from unet_core.samples import Sample
from unet_core.shards import write_shard

SHARD_SAMPLES = 64
SIDE_PX = 512
ORIGINALS = Originals(images=RGB, masks=CELLS)


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
        rows = {codec: in_a_process(source, Path(scratch) / codec, codec, count) for codec in CODECS}
        large = in_a_process(source, Path(scratch) / "large", "raw", 10 * count)
    print_result(
        {
            "mb_per_second": rows["original"]["mb_per_second"],
            "converting_mb_per_second": rows["raw"]["mb_per_second"],
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
    pairs = [(image, source / "masks" / image.name) for image in sorted((source / "images").iterdir())]
    sizes = [image.stat().st_size + mask.stat().st_size for image, mask in pairs]
    num_bytes = sum(sizes[number % len(pairs)] for number in range(count))
    originals = ORIGINALS if codec == "original" else None
    samples = files(pairs, count) if codec == "original" else pack_all(decoded(pairs, count), CELLS, codec)
    # A generator starts when it is first asked: what `validate` would have counted is counted before the clock runs.
    first = next(samples)
    stream, written = chain([first], samples), 0
    started = time.perf_counter()
    for number in range(-(-count // SHARD_SAMPLES)):
        name = f"train/b0001-{number:05d}.tar"
        written += write_shard(out, name, name, islice(stream, SHARD_SAMPLES), originals=originals).num_bytes
        (out / name).unlink()
    seconds = time.perf_counter() - started
    return {
        "mb_per_second": round(num_bytes / 1e6 / seconds, 1),
        "written_mb_per_second": round(written / 1e6 / seconds, 1),
        "size_ratio": round(written / num_bytes, 3),
        "peak_mb": round(peak_mb(), 1),
    }


def decoded(pairs: Sequence[tuple[Path, Path]], count: int) -> Iterator[Sample]:
    """Samples as the default codec takes them."""
    for number in range(count):
        image, mask = pairs[number % len(pairs)]
        yield read_sample(f"{number:06d}", file_bytes(image), [file_bytes(mask)], RGB, CELLS)


def files(pairs: Sequence[tuple[Path, Path]], count: int) -> Iterator[PackedSample]:
    """Files that pass through, their hashes compared as the stage does."""
    known = [
        (sample.image.shape, packing.count(sample, CELLS), hash_file(pair[0]), hash_file(pair[1]))
        for sample, pair in zip(decoded(pairs, len(pairs)), pairs, strict=True)
    ]
    for number in range(count):
        shape, counts, *hashes = known[number % len(pairs)]
        image, mask = (file_bytes(path) for path in pairs[number % len(pairs)])
        assert [hashlib.sha256(file.data).hexdigest() for file in (image, mask)] == hashes
        yield pass_through(f"{number:06d}", image, [mask], shape, counts, ORIGINALS)


if __name__ == "__main__":
    main()
