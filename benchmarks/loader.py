"""Samples a second of the training loader beside other loaders, on one core and the same images.

`python -m benchmarks.loader --source FOLDER [--quick]`, FOLDER with images/ and masks/ of equal names (DSB2018's, up
to 700 px). Everyone makes the same batches: 8 random crops of 256 x 256 with D4 and RandomBrightnessContrast, uint8.
The peers come with `pip install -e '.[bench]'`; what is not installed is left out and named, and no peer at all is an
error. One JSON line at the end.
"""

import argparse
import importlib.util
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import torch
from PIL import Image

from benchmarks.peers import PEERS
from benchmarks.workspace import print_result
from unet_core.codecs import Codec
from unet_core.images import FileBytes
from unet_core.index import ShardEntry, ShardIndex
from unet_core.loader import LaneLoader
from unet_core.packing import pack_all
from unet_core.pairs import read_sample
from unet_core.plan import plan_epoch
from unet_core.reader import ShardReader
from unet_core.samples import ClassMap, ImageConfig
from unet_core.shards import write_shard
from unet_core.transforms import AugmentConfig

CROP_PX = 256
BATCH = 8
LARGEST_PX = 700
SHARD_SAMPLES = 64
CELLS = ClassMap(kind="multiclass", classes={"background": 0, "nucleus": 255}, background="background")
RGB = ImageConfig(channels=3)
TRANSFORMS = ({"name": "D4", "p": 1.0}, {"name": "RandomBrightnessContrast", "p": 0.5})

Pair = tuple[Path, Path]


def file_bytes(path: Path) -> FileBytes:
    """A file as the decoders take it."""
    return FileBytes(name=str(path), data=path.read_bytes())


def main() -> None:
    """Measure ours and the peers, in turns, and take each one's median round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder with images/ and masks/")
    parser.add_argument("--quick", action="store_true", help="96 images and one round")
    arguments = parser.parse_args()
    use_one_core()
    pairs = find_pairs(arguments.source)[: 96 if arguments.quick else None]
    with tempfile.TemporaryDirectory() as scratch:
        readers: dict[str, Callable[[], Iterable[Any]]] = {"ours": make_ours(Path(scratch) / "raw", pairs, "raw")}
        readers["ours_png"] = make_ours(Path(scratch) / "png", pairs, "png")
        missing = {}
        for name, (module, make) in PEERS.items():
            if importlib.util.find_spec(module) is None:
                missing[name] = f"{module} is not installed"
                continue
            readers[name] = make(Path(scratch) / name, pairs)
        rates = measure(readers, rounds=1 if arguments.quick else 3)
    ours, ours_png = rates.pop("ours"), rates.pop("ours_png")
    print_result(
        {
            "samples_per_second": ours,
            "samples_per_second_png": ours_png,
            "peers": rates,
            "ratios": {name: round(ours / rate, 2) for name, rate in rates.items()},
            "missing": missing,
            "images": len(pairs),
        }
    )
    if not rates:
        sys.exit("no peer is installed: nothing to compare with. Run `pip install -e '.[bench]'`.")


def use_one_core() -> None:
    """Keep the process and its libraries' threads on one core."""
    logging.disable(logging.WARNING)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def find_pairs(source: Path) -> list[Pair]:
    """Images no larger than `LARGEST_PX` and their masks."""
    pairs = []
    for image in sorted((source / "images").iterdir()):
        mask = source / "masks" / image.name
        if mask.exists():
            with Image.open(image) as picture:
                if max(picture.size) <= LARGEST_PX:
                    pairs.append((image, mask))
    if not pairs:
        sys.exit(f"no images with masks: {source}. Name a folder with images/NAME and masks/NAME.")
    return pairs


def measure(readers: dict[str, Callable[[], Iterable[Any]]], *, rounds: int) -> dict[str, float]:
    """Samples a second of each: the median of some epochs, in turns, after one that warms up."""
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds + 1):
        for name, epoch in readers.items():
            started, count = time.perf_counter(), 0
            for images, masks in epoch():
                assert images.dtype == torch.uint8, name
                assert images.shape[1:] == (3, CROP_PX, CROP_PX), (name, images.shape)
                assert masks.shape[-2:] == (CROP_PX, CROP_PX), (name, masks.shape)
                count += len(images)
            if number:
                rates[name].append(count / (time.perf_counter() - started))
            print(f"round {number}: {name}: {count / (time.perf_counter() - started):.0f} samples/s", flush=True)
    return {name: round(statistics.median(values), 1) for name, values in rates.items()}


def make_ours(directory: Path, pairs: list[Pair], codec: Codec) -> Callable[[], Iterable[Any]]:
    """Write shards and read epochs of them by the training's own loader."""
    entries: list[ShardEntry] = []
    stream = iter(pairs)
    while part := list(islice(stream, SHARD_SAMPLES)):
        samples = (read_sample(image.stem, file_bytes(image), [file_bytes(mask)], RGB, CELLS) for image, mask in part)
        name = f"train/b0001-{len(entries):05d}.tar"
        entries.append(write_shard(directory, name, name, pack_all(samples, CELLS, codec)))
    index = ShardIndex(class_map=CELLS, channels=3, shards=tuple(entries))
    augment = AugmentConfig(crop_px=CROP_PX, transforms=TRANSFORMS)
    loader = LaneLoader(ShardReader(directory, index.shards), CELLS, augment, seed=0)
    epochs = iter(range(1_000_000))

    def epoch() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        number = next(epochs)
        sizes = [shard.num_samples for shard in index.shards]
        plan = plan_epoch(sizes, seed=0, epoch=number, lanes=1, samples_per_lane=BATCH, block_shards=4)
        for (batch,) in loader.steps(plan, epoch=number, lanes=range(1)):
            yield batch.images, batch.masks

    return epoch


if __name__ == "__main__":
    main()
