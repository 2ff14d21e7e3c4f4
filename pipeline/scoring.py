"""A registered model on a split: predict every image whole, count, one row per image and class."""

import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import tracking
from pipeline.fetched_model import fetch_model
from pipeline.membership import Membership
from pipeline.memory import keep_freed_memory
from pipeline.parallel import WORTH_SECONDS, map_parallel
from pipeline.placement import Placement
from pipeline.scores import ScoreRow
from unet_core.calibration import count_confidence
from unet_core.checkpoint import read_model
from unet_core.errors import DataError
from unet_core.index import read_index
from unet_core.inference import predict_logits, predict_mask, predict_symmetric
from unet_core.metrics import count_pixels, mask_to_tensor, predict_classes, predict_planes
from unet_core.model import ModelSpec, Network
from unet_core.objects import average_precision, match_objects
from unet_core.outputs import separate_objects
from unet_core.reader import ShardReader
from unet_core.samples import IGNORE_INDEX, Array, ClassMap, Sample
from unet_core.splits import Split
from unet_core.surface import compare_surfaces

#: Images whose time is taken.
NUM_TIMED = 9


@dataclass(frozen=True, kw_only=True)
class ScoringJob:
    """What every process must know to score images."""

    model: Path
    """A model directory."""
    shards: Path
    split: Split
    tolerance_px: float
    """Of the surface Dice."""


@contextmanager
def registered_model(version: tracking.Version) -> Iterator[Path]:
    """The model directory of a version; RegistryError if its files are not those that it was registered with."""
    with tempfile.TemporaryDirectory() as scratch:
        yield fetch_model(version, Path(scratch))


def score_split(
    job: ScoringJob, memberships: Mapping[str, Membership], *, name: str, placement: Placement
) -> list[ScoreRow]:
    """Score every image of a split, in several processes where there are many; in the order of the shards."""
    reader = ShardReader(job.shards, read_index(job.shards).of_split(job.split))
    if not len(reader):
        raise DataError(
            f"no images to score: the shards have none in {job.split}. Raise split.{job.split}_fraction, or add images."
        )
    rows = map_parallel(
        partial(_score_number, job),
        range(len(reader)),
        # Model and shards lie on this machine, so its own processes do the work, never a cluster's.
        placement=replace(placement, ray_address=None),
        label=name,
        unit="images",
        on_death=partial(_died, job),
        few=0 if _estimate_seconds(job) > WORTH_SECONDS else len(reader),
    )
    return [_with_membership(row, memberships) for row in chain.from_iterable(rows)]


def _estimate_seconds(job: ScoringJob) -> float:
    """How long one process would take; it decides who does the work and no result."""
    reader = _opened(job)[2]
    _score_number(job, 0)  # to warm up
    number = min(1, len(reader) - 1)
    begun = time.perf_counter()
    _score_number(job, number)
    seconds = time.perf_counter() - begun
    return seconds * sum(shard.num_pixels for shard in reader.shards) / math.prod(reader.entry(number).image.shape[:2])


def score_sample(logits: Tensor, sample: Sample, class_map: ClassMap, *, tolerance_px: float) -> list[ScoreRow]:
    """One row a class; logits (K, H, W), the mask by the class map of the shards."""
    mask = mask_to_tensor(sample.mask[None], class_map)[0]
    counts, sure = count_pixels(logits, mask), count_confidence(logits, mask)
    predicted, true = _planes(logits, mask)
    rows = []
    for number, name in enumerate(class_map.names):
        count, histogram, is_scored = counts[number], sure[number], number in class_map.scored
        rows.append(
            ScoreRow(
                key=sample.key,
                class_name=name,
                scored=is_scored,
                dice=count.dice,
                iou=count.iou,
                precision=count.precision,
                recall=count.recall,
                confusion=_confusion(predicted, true[number]) if mask.dim() == 2 else (),
                decisions=tuple(histogram.decisions.tolist()),
                right=tuple(histogram.right.tolist()),
                confidence=tuple(histogram.confidence.tolist()),
                **asdict(count),
                **(_compare_shapes(predicted[number], true[number], tolerance_px) if is_scored else {}),
                **(_compare_objects(predicted[number], sample.mask) if is_scored and is_instances(class_map) else {}),
            )
        )
    return rows


def is_instances(class_map: ClassMap) -> bool:
    """Whether objects are told apart."""
    return class_map.kind == "instances"


def median_latency_ms(model: Network, spec: ModelSpec, reader: ShardReader) -> float:
    """Milliseconds to predict one image with all cores of this machine: the median of a few, after one to warm up."""
    seconds = []
    for number in range(min(NUM_TIMED, len(reader))):
        image = reader.read(number).image
        begun = time.perf_counter()
        predict_logits(model, spec, image)
        seconds.append(time.perf_counter() - begun)
    return 1000 * float(np.median(seconds[1:] or seconds))


def predict_sample(model: Network, spec: ModelSpec, image: Array, *, exact: bool = False, tta: bool = False) -> Array:
    """The encoded mask of one image, as it is scored; in exact tiles, or as the mean of its symmetric forms."""
    predict = predict_symmetric if tta else predict_logits
    with _one_thread():
        return predict_mask(predict(model, spec, image, exact=exact), spec)


def _score_number(job: ScoringJob, number: int) -> list[ScoreRow]:
    model, spec, reader, class_map = _opened(job)
    sample = reader.read(number)
    with _one_thread():
        logits = predict_logits(model, spec, sample.image)
        return score_sample(logits, sample, class_map, tolerance_px=job.tolerance_px)


@lru_cache(maxsize=1)
def _opened(job: ScoringJob) -> tuple[Network, ModelSpec, ShardReader, ClassMap]:
    """Once a process."""
    keep_freed_memory()
    index = read_index(job.shards)
    return *read_model(job.model), ShardReader(job.shards, index.of_split(job.split)), index.class_map


@contextmanager
def _one_thread() -> Iterator[None]:
    """Whatever the number of processes and cores: sums of another number of threads may round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _died(job: ScoringJob, number: int) -> list[ScoreRow]:
    key = ShardReader(job.shards, read_index(job.shards).of_split(job.split)).entry(number).key
    raise DataError(f"a process died while it scored {key}: not enough memory? Set UNET_PROCESSES=1, or cut the image.")


def _with_membership(row: ScoreRow, memberships: Mapping[str, Membership]) -> ScoreRow:
    found = memberships.get(row.key)
    if found is None:
        raise DataError(f"a sample of the shards is not in the catalog: {row.key}. Run `dvc repro`.")
    return replace(row, group=found.group, slices=found.slices)


def _planes(logits: Tensor, mask: Tensor) -> tuple[Array, Array]:
    """Predicted and true masks of all classes, (K, H, W) bool; ignored pixels are in neither."""
    if mask.dim() == 3:
        return predict_planes(logits).numpy(), mask.bool().numpy()
    classes = torch.arange(len(logits)).view(-1, 1, 1)
    predicted = (predict_classes(logits) == classes) & (mask != IGNORE_INDEX)
    return predicted.numpy(), (mask == classes).numpy()


def _confusion(predicted: Array, true: Array) -> tuple[int, ...]:
    return tuple(int(np.count_nonzero(plane & true)) for plane in predicted)


def _compare_shapes(predicted: Array, true: Array, tolerance_px: float) -> dict[str, Any]:
    found = compare_surfaces(predicted, true, tolerance_px=tolerance_px)
    return {
        "surface_points": found.points,
        "surface_hits": found.hits,
        "surface_dice": found.dice,
        "hausdorff95_px": found.hausdorff95_px,
    }


def _compare_objects(predicted: Array, ids: Array) -> dict[str, Any]:
    # The objects that `unet predict` gives people.
    found = match_objects(separate_objects(predicted), ids)
    return {
        "true_objects": found.true,
        "predicted_objects": found.predicted,
        "matched_objects": found.matched,
        "average_precision": average_precision(true=found.true, predicted=found.predicted, matched=found.matched),
    }
