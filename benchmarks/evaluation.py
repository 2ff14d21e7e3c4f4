"""Scoring a test split: 63 images of the sizes of DSB2018's, with touching round cells, all scores, on all cores.

`python -m benchmarks.evaluation [--quick]` prints one JSON line: seconds of all, and the processor's seconds of
prediction and of scoring apart. The network is DSB2018's recipe's, untrained: its ragged outlines cost more than a good
model's. Compares with nothing: it is a budget of 25 seconds on two cores, of which scores under 5.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.workspace import peak_mb, print_result
from pipeline.membership import Membership
from pipeline.placement import read_placement
from pipeline.score_summary import summarise
from pipeline.scoring import ScoringJob, score_sample, score_split
from unet_core.checkpoint import read_model, write_model
from unet_core.index import ShardIndex, read_index, write_index
from unet_core.inference import predict_logits
from unet_core.model import ModelConfig, ModelSpec, UNet
from unet_core.packing import pack_all
from unet_core.reader import ShardReader
from unet_core.samples import ClassMap, ImageConfig, Sample
from unet_core.shards import write_shard

CLASSES = ClassMap(kind="instances", classes={"background": 0, "nucleus": 1}, background="background")
#: Height, width and number of DSB2018's test images.
SIZES = (((256, 256), 33), ((256, 320), 10), ((360, 360), 9), ((512, 640), 1), ((520, 696), 9), ((1024, 1024), 1))


def main() -> None:
    """Score twice: the second time in this process, with a stopwatch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a ninth of the images")
    share = 9 if parser.parse_args().quick else 1
    with tempfile.TemporaryDirectory() as scratch:
        job = _prepare(Path(scratch), share)
        reader = ShardReader(job.shards, read_index(job.shards).of_split("test"))
        memberships = {sample.key: Membership(group=sample.key, slices={}) for sample in reader}
        begun = time.perf_counter()
        rows = score_split(job, memberships, name="evaluate", placement=read_placement())
        body = summarise(rows, "dice", draws=2000, seed=0)
        seconds = time.perf_counter() - begun
        predicting, scoring = _time_apart(job, reader)
    print_result(
        {
            "seconds": round(seconds, 2),
            "prediction_cpu_seconds": round(predicting, 2),
            "scoring_cpu_seconds": round(scoring, 2),
            "images": body["images"],
            "peak_mb": round(peak_mb(), 1),
            "compared_with": "nothing: a budget of 25 seconds, scores 5",
        }
    )


def _prepare(folder: Path, share: int) -> ScoringJob:
    spec = ModelSpec(
        config=ModelConfig(width=16, depth=4, norm="group", input_statistics="train"),
        images=ImageConfig(channels=3),
        class_map=CLASSES,
        mean=(0.5,) * 3,
        deviation=(0.25,) * 3,
        precision="float32",
    )
    torch.manual_seed(0)
    write_model(folder / "model", spec, UNet(spec).state_dict())
    rng = np.random.default_rng(0)
    sizes = [size for size, count in SIZES for _ in range(count)][::share]
    samples = [_draw(rng, f"s{number:02d}", size) for number, size in enumerate(sizes)]
    shard = write_shard(folder, "test/b0001-00000.tar", "content", pack_all(samples, CLASSES))
    write_index(folder, ShardIndex(class_map=CLASSES, channels=3, shards=(shard,)))
    return ScoringJob(model=folder / "model", shards=folder, split="test", tolerance_px=2.0)


def _draw(rng: np.random.Generator, key: str, size: tuple[int, int]) -> Sample:
    """Bright disks on dark noise, later ones over earlier ones."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    ids = np.zeros(size, dtype=np.uint16)
    for number in range(1, height * width // 2500):
        row, column, radius = rng.integers(0, height), rng.integers(0, width), rng.integers(6, 18)
        ids[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = number
    noise = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    return Sample(key=key, image=noise + (ids > 0).astype(np.uint8)[..., None] * 150, mask=ids)


def _time_apart(job: ScoringJob, reader: ShardReader) -> tuple[float, float]:
    """Seconds of one core for prediction and for scoring."""
    torch.set_num_threads(1)
    model, spec = read_model(job.model)
    predicting = scoring = 0.0
    for sample in reader:
        begun = time.process_time()
        logits = predict_logits(model, spec, sample.image)
        predicted = time.process_time()
        score_sample(logits, sample, CLASSES, tolerance_px=job.tolerance_px)
        predicting += predicted - begun
        scoring += time.process_time() - predicted
    return predicting, scoring


if __name__ == "__main__":
    main()
