"""A registered model on a split: predict every image whole, count, one row per image and class."""

import tempfile
from dataclasses import asdict
from pathlib import Path

from pipeline import tracking
from pipeline.fetched_model import fetch_model
from pipeline.progress import progress
from pipeline.scores import ScoreRow
from unet_core.checkpoint import read_model
from unet_core.counts import Counts
from unet_core.inference import predict_logits, predict_mask, predict_symmetric
from unet_core.metrics import count_pixels, mask_to_tensor
from unet_core.model import ModelSpec, UNet
from unet_core.reader import ShardReader
from unet_core.samples import Array, ClassMap


def fetch_registered(version: tracking.Version) -> tuple[UNet, ModelSpec]:
    """Load a registered version; RegistryError if its files are not those that it was registered with."""
    with tempfile.TemporaryDirectory() as scratch:
        return read_model(fetch_model(version, Path(scratch)))


def score_split(model: UNet, spec: ModelSpec, reader: ShardReader, class_map: ClassMap, *, name: str) -> list[ScoreRow]:
    """Predict every image of a split whole and count, by the class map of the shards."""
    rows = []
    for sample in progress(reader, total=len(reader), label=name, unit="images"):
        logits = predict_logits(model, spec, sample.image)
        counts = count_pixels(logits, mask_to_tensor(sample.mask[None], class_map)[0])
        rows += [_row(sample.key, number, count, class_map) for number, count in enumerate(counts)]
    return rows


def _row(key: str, number: int, count: Counts, class_map: ClassMap) -> ScoreRow:
    return ScoreRow(
        key=key,
        class_name=class_map.names[number],
        scored=number in class_map.scored,
        dice=count.dice,
        iou=count.iou,
        **asdict(count),
    )


def predict_sample(model: UNet, spec: ModelSpec, image: Array, *, exact: bool = False, tta: bool = False) -> Array:
    """The encoded mask of one image; in exact tiles, or as the mean of its symmetric forms, if asked for."""
    predict = predict_symmetric if tta else predict_logits
    return predict_mask(predict(model, spec, image, exact=exact), spec)
