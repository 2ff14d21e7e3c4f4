"""Stage 7: the registered version on the test split -> scores per image and class, intervals, plots, cases."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import tracking
from pipeline.cases import write_cases
from pipeline.gate import refuse_seen
from pipeline.json_file import write_json
from pipeline.lineage_record import Inputs
from pipeline.membership import SliceColumn, groups_in, read_memberships
from pipeline.model_page import describe_scores
from pipeline.params import load_section
from pipeline.pictures import write_picture
from pipeline.placement import read_placement
from pipeline.receipt import read_receipt, registered_version
from pipeline.registration import put_section
from pipeline.score_plots import write_plots
from pipeline.score_summary import summarise
from pipeline.scores import Score, image_scores, write_rows
from pipeline.scoring import ScoringJob, registered_model, score_split
from pipeline.seen import TRAINING_GROUPS, is_trained_here, seen_groups, training_groups
from pipeline.stages.split import read_splits
from unet_core.checkpoint import read_model
from unet_core.errors import RecipeError, RegistryError
from unet_core.index import read_index
from unet_core.reader import ShardReader
from unet_core.splits import SplitConfig

log = logging.getLogger(__name__)

#: Pixels: MLflow's page of a version cuts off what is wider, and the errors stand at the right.
PAGE_WIDTH = 640


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Recipe section `evaluate`."""

    score: Score
    """The main score: the mean over images of the mean over their scored classes."""
    bootstrap_draws: int
    seed: int
    """Of the bootstrap."""
    slice_by: Sequence[SliceColumn] = ()
    """What samples are scored apart by, beside the columns that the source brought (ingest.slice_columns)."""
    tolerance_px: float = 2.0
    """How far, in pixels, an outline may lie from the true one and still count for the surface Dice."""

    def __post_init__(self) -> None:
        if self.bootstrap_draws < 1 or self.seed < 0:
            raise RecipeError(
                f"evaluate.bootstrap_draws: {self.bootstrap_draws}, evaluate.seed: {self.seed}: "
                "draws must be at least 1, the seed not negative."
            )
        if self.tolerance_px < 0:
            raise RecipeError(f"evaluate.tolerance_px: {self.tolerance_px}: must not be negative.")


def run(  # noqa: PLR0913  each is a path of dvc.yaml
    *,
    accepted: Path,
    splits: Path,
    shards: Path,
    model: Path,
    receipt: Path,
    evaluation: Path,
    metrics: Path,
    plots: Path,
) -> None:
    """Score the version that the registry has under the receipt's hash."""
    config = load_section("evaluate", EvaluateConfig)
    memberships = read_memberships(accepted, load_section("split", SplitConfig), config.slice_by)
    placement = read_placement()
    client = tracking.connect(placement.tracking_uri, placement.experiment)
    split_of = read_splits(splits)
    inputs = Inputs(root=placement.root, shards=shards, accepted=accepted, splits=split_of)
    version = registered_version(client, read_receipt(receipt), model, inputs)
    name = f"{version.name} version {version.number}"
    try:
        seen = seen_groups(client, version, shards, split_of, memberships)
    except RegistryError as error:
        if not is_trained_here(version, shards):
            raise
        # Today's splits are those of its training, and are recorded again below: the remedy for a damaged record.
        log.warning("evaluate: recorded anew: %s", error)
        seen = None
    refuse_seen(groups_in(split_of, memberships, "test").values(), {name: seen or ()})
    with registered_model(version) as directory:
        job = ScoringJob(model=directory, shards=shards, split="test", tolerance_px=config.tolerance_px)
        rows = score_split(job, memberships, name="evaluate", placement=placement)
        network, spec = read_model(directory)
    body = summarise(rows, config.score, draws=config.bootstrap_draws, seed=config.seed)
    tables = [metrics, evaluation / "scores.parquet"]
    write_rows(tables[-1], rows)
    write_json(metrics, body)
    if is_trained_here(version, shards):
        tables.append(evaluation / TRAINING_GROUPS)
        write_json(tables[-1], training_groups(split_of, memberships))
    else:
        # Whatever was recorded of its training stays.
        log.warning("evaluate: %s was trained on other shards than these", name)
    reader = ShardReader(shards, read_index(shards).of_split("test"))
    cases = write_cases(evaluation / "cases", image_scores(rows, config.score), reader, network, spec)
    figures = [*write_plots(plots, rows, body, config.score), plots / "cases.png"]
    page = Image.fromarray(np.concatenate([np.asarray(Image.open(path)) for path in cases]))
    page.thumbnail((PAGE_WIDTH, page.height))
    write_picture(figures[-1], np.asarray(page))
    if version.run_id:
        tracking.log_to_run(client, version.run_id, metrics=_numbers(body), files=[*tables, *figures])
    put_section(client, version, "Test scores", describe_scores(body, config.score, version.run_id))
    if body["interval_95"] is None:
        log.warning("evaluate: all test images belong to one group: how far the score would vary can't be told")
    log.info("evaluate: %s %.4f on %d test images", config.score, body[config.score], body["images"])


def _numbers(body: Mapping[str, Any]) -> dict[str, float]:
    """The summary's own numbers, and those of classes and objects, by names that MLflow takes."""
    found = {name: value for name, value in body.items() if isinstance(value, float)}
    for kind, parts in body.items():
        if kind.startswith("class_") or kind == "objects":
            found |= {f"{kind}/{name}": value for name, value in parts.items() if isinstance(value, float)}
    return {re.sub(r"[^\w\-. /]", "_", f"test_{name}"): value for name, value in found.items()}
