"""Stage 7: the registered version on the test split -> scores per image and class, intervals, best and worst images."""

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import tracking
from pipeline.json_file import write_json
from pipeline.params import load_section
from pipeline.pictures import as_rgb, class_colours, fit, grid, overlay, paint_mask, write_picture
from pipeline.placement import read_placement
from pipeline.receipt import read_receipt, registered_version
from pipeline.scores import (
    Score,
    ScoreRow,
    bootstrap_interval,
    by_class,
    class_scores,
    image_scores,
    pixel_error,
    write_rows,
)
from pipeline.scoring import fetch_registered, predict_sample, score_split
from unet_core.errors import DataError, RecipeError
from unet_core.index import read_index
from unet_core.model import ModelSpec, UNet
from unet_core.reader import ShardReader

log = logging.getLogger(__name__)

#: Pictures of the best and of the worst images, each.
NUM_CASES = 4


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Recipe section `evaluate`."""

    score: Score
    """The main score: the mean over images of the mean over their scored classes."""
    bootstrap_draws: int
    seed: int
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        if self.bootstrap_draws < 1 or self.seed < 0:
            raise RecipeError(
                f"evaluate.bootstrap_draws: {self.bootstrap_draws}, evaluate.seed: {self.seed}: "
                "draws must be at least 1, the seed not negative."
            )


def run(*, shards: Path, model: Path, receipt: Path, evaluation: Path, metrics: Path, plots: Path) -> None:
    """Score the version that the registry has under the receipt's hash."""
    config = load_section("evaluate", EvaluateConfig)
    scores, cases = evaluation / "scores.parquet", evaluation / "cases"
    placement = read_placement()
    client = tracking.connect(placement.tracking_uri, placement.experiment)
    version = registered_version(client, read_receipt(receipt), model)
    network, spec = fetch_registered(version)
    index = read_index(shards)
    reader = ShardReader(shards, index.of_split("test"))
    rows = score_split(network, spec, reader, index.class_map, name="evaluate")
    write_rows(scores, rows)
    body = summarise(rows, config, spec)
    write_json(metrics, body)
    write_cases(cases, rows, config.score, reader, network, spec)
    figures = write_plots(plots, body, cases)
    if version.run_id:
        numbers = {f"test_{name}": value for name, value in body.items() if isinstance(value, float)}
        tracking.log_to_run(client, version.run_id, metrics=numbers, files=[metrics, scores, *figures])
    log.info("evaluate: %s %.4f on %d test images", config.score, body[config.score], body["images"])


def summarise(rows: Sequence[ScoreRow], config: EvaluateConfig, spec: ModelSpec) -> dict[str, Any]:
    """The metrics file: means over images, their interval, means per class, and pooled scores."""
    per_image = image_scores(rows, config.score)
    if not per_image:
        raise DataError(
            "no score is defined: no scored class occurs in the test images or predictions. "
            "Check masks.classes and the test split."
        )
    interval = bootstrap_interval(list(per_image.values()), draws=config.bootstrap_draws, seed=config.seed)
    body: dict[str, Any] = {
        config.score: sum(per_image.values()) / len(per_image),
        "interval_95": list(interval),
        "images": len(per_image),
        "class_dice": class_scores(rows, "dice"),
        "class_iou": class_scores(rows, "iou"),
        "pooled_dice": {name: counts.dice for name, counts in by_class(rows).items()},
    }
    if spec.class_map.kind != "multilabel":
        body["pixel_error"] = pixel_error(rows)
    return body


def write_plots(directory: Path, body: Mapping[str, Any], cases: Path) -> list[Path]:
    """For `dvc plots`: a bar a class, and the cases on one sheet."""
    bars, sheet = directory / "class_scores.csv", directory / "cases.png"
    defined = [(name, dice) for name, dice in body["class_dice"].items() if dice is not None]
    with bars.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([("class", "dice"), *defined])
    strips = [np.asarray(Image.open(path)) for path in sorted(cases.glob("*.png"))]
    write_picture(sheet, np.concatenate(strips))
    return [bars, sheet]


def write_cases(
    directory: Path, rows: Sequence[ScoreRow], score: Score, reader: ShardReader, network: UNet, spec: ModelSpec
) -> None:
    """Pictures of the best and worst images: image, mask, prediction, prediction over image; and a list of them."""
    per_image = image_scores(rows, score)
    ranked = sorted(per_image, key=lambda key: (per_image[key], key))
    numbers = {key: number for number, key in enumerate(reader.keys())}
    chosen = [("worst", key) for key in ranked[:NUM_CASES]] + [("best", key) for key in ranked[::-1][:NUM_CASES]]
    directory.mkdir(parents=True, exist_ok=True)
    listed = []
    for place, (kind, key) in enumerate(chosen):
        sample = reader.read(numbers[key])
        predicted = predict_sample(network, spec, sample.image)
        name = f"{place:02d}_{kind}.png"
        tiles = [
            as_rgb(sample.image),
            paint_mask(sample.mask, spec.class_map),
            paint_mask(predicted, spec.class_map),
            overlay(sample.image, predicted, spec.class_map),
        ]
        write_picture(directory / name, grid([[fit(tile) for tile in tiles]]))
        listed.append({"kind": kind, "key": key, "score": per_image[key], "picture": name})
    shades = ["#" + bytes(colour).hex() for colour in class_colours(spec.class_map)]
    colours = dict(zip(spec.class_map.names, shades, strict=True))
    body = {"colours": colours, "cases": listed}
    write_json(directory / "cases.json", body)
