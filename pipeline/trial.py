"""What a trial of a search does: one process trains as the stage would, and tells of each validation."""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline import tuning
from pipeline.shard_places import open_shards
from pipeline.worker import enter_tree, read_recipe, settle_process, weights_at_hand
from unet_core.cache import CachedShards
from unet_core.checkpoint import ValidationRecord
from unet_core.errors import StorageError, UnetError
from unet_core.index import ShardIndex
from unet_core.loader import LaneLoader
from unet_core.reader import ShardReader
from unet_core.reduction import LaneTree
from unet_core.trainer import Trainer

#: Worse than every score.
NO_SCORE = -1e30


def run_trial(options: Mapping[str, Any]) -> None:
    """Train the recipe `options["recipe"]` (a text), and report each validation; a mistake of it is a report too."""
    enter_tree(options["root"])
    with open_shards(options["places"]) as files:
        try:
            _train(options, files)
        except StorageError:
            # No fault of the recipe: the next search tries it again.
            raise
        except UnetError as error:
            # A rate that breaks the network is an answer, not the end of the search.
            tuning.report({"failure": str(error)}, epoch=options["epochs"], score=NO_SCORE)


def score(validation: Mapping[str, Any], select_by: str) -> float:
    """What trials are compared by, larger is better: as training chooses its best weights."""
    if select_by == "loss":
        return -float(validation["loss"])
    return NO_SCORE if validation["dice"] is None else float(validation["dice"])


def _train(options: Mapping[str, Any], files: Path | CachedShards) -> None:
    index: ShardIndex = options["index"]
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "params.yaml"
        recipe.write_text(options["recipe"], encoding="utf-8")
        spec, config, augment = read_recipe(index, recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settle_process(config, device)
    with weights_at_hand(options["weights"]):
        trainer = Trainer(spec, config, LaneTree(lanes=config.lanes), device)
    train, val = (ShardReader(files, index.of_split(split)) for split in ("train", "val"))
    threads, border = options["loader_threads"], config.read_border_weight(spec.class_map)
    loader = LaneLoader(train, spec.class_map, augment, seed=config.seed, threads=threads, border=border)
    for told in trainer.fit(loader, val):
        if told.validation is not None:
            _report(told.validation, config.select_by)


def _report(validation: ValidationRecord, select_by: str) -> None:
    told = asdict(validation)
    tuning.report(told, epoch=validation.epoch, score=score(told, select_by))
