"""`unet overfit`: train on one batch until the loss is near zero. What fails here can't succeed on all the data."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.command import say
from pipeline.pictures import as_rgb, fit, grid, paint_mask, write_picture
from pipeline.progress import Progress
from pipeline.worker import read_recipe, settle_process
from unet_core.backward import merge
from unet_core.checkpoint import Position
from unet_core.errors import RecipeError, TrainingError
from unet_core.index import read_index
from unet_core.inference import autocast, predict_mask
from unet_core.loader import Batch, LaneLoader
from unet_core.model import ModelSpec, Network
from unet_core.reader import ShardReader
from unet_core.reduction import LaneTree
from unet_core.samples import Array
from unet_core.trainer import Trainer

#: Near zero is this part of what the losses' weights sum up to.
NEAR_ZERO = 0.02
#: Rows of the picture.
MAX_SHOWN = 8


def overfit(*, shards: Path, out: Path, steps: int) -> None:
    """Train on the first batch of the first epoch; a picture of it. TrainingError if the loss stays."""
    if steps < 1:
        raise RecipeError(f"--steps {steps}: must be at least 1.")
    index = read_index(shards)
    spec, config, augment = read_recipe(index)
    # What keeps a network from learning a batch by heart.
    spec = replace(spec, config=replace(spec.config, dropout=0.0))
    # And what compiling would take is longer than the whole.
    config = replace(config, weight_decay=0.0, compile=False)
    train = ShardReader(shards, index.of_split("train"))
    border = config.read_border_weight(spec.class_map)
    loader = LaneLoader(train, spec.class_map, augment, seed=config.seed, border=border)
    plan = config.plan(train, spec.class_map, epoch=0)
    config.check_norm(spec, augment, train, plan)
    (lanes,) = islice(loader.steps(plan, epoch=0, lanes=range(config.lanes)), 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settle_process(config, device)
    trainer = Trainer(spec, config, LaneTree(lanes=config.lanes), device)
    goal = NEAR_ZERO * sum(_weight(told) for told in config.loss.values())
    losses: list[float] = []
    shown, begun = Progress(total=steps, label="overfit", unit="steps"), time.monotonic()
    while len(losses) < steps and (not losses or losses[-1] > goal):
        trainer.position = Position(step=len(losses))
        losses.append(trainer.step_at(lanes, config.learning_rate).loss)
        shown.advance(1, f"loss {losses[-1]:.4f}")
    shown.close()
    # As the loss saw them: lane by lane, or all at once.
    _draw(out, trainer.model, spec, lanes if config.exact else [merge(lanes)])
    _tell(losses, goal, sum(len(batch.keys) for batch in lanes), out, time.monotonic() - begun)


def _tell(losses: list[float], goal: float, num_samples: int, out: Path, seconds: float) -> None:
    what = f"{losses[-1]:.4f} after {len(losses)} steps on {num_samples} samples, {losses[0]:.4f} before"
    if not losses[-1] <= goal:
        raise TrainingError(
            f"the loss does not come near zero: {what}; {goal:.4f} was wanted. Look at {out}: do masks belong to their "
            "images? Else raise --steps or model.width, or change train.learning_rate."
        )
    say(f"the network can learn its data: loss {what} ({seconds:.0f} s). {out}: image, mask, what it predicts")


def _weight(told: object) -> float:
    weight = told["weight"] if isinstance(told, dict) else told
    assert isinstance(weight, int | float)
    return weight


def _draw(out: Path, model: Network, spec: ModelSpec, batches: Sequence[Batch]) -> None:
    rows: list[list[Array]] = []
    shown = (found for batch in batches for found in _predict(model, spec, batch))
    for image, mask, logits in islice(shown, MAX_SHOWN):
        true = mask.numpy()
        if spec.class_map.kind == "multilabel":
            true = np.ascontiguousarray(true.transpose(1, 2, 0))
        masks = [paint_mask(found, spec.class_map) for found in (true, predict_mask(logits, spec))]
        rows.append([fit(as_rgb(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))), *map(fit, masks)])
    write_picture(out, grid(rows))


def _predict(model: Network, spec: ModelSpec, batch: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each image with its mask and logits."""
    device = next(model.parameters()).device
    # In training mode: batch norm's running statistics lag behind by many steps.
    with torch.inference_mode(), autocast(device, spec.precision):
        outputs = model(batch.images.to(device))
    of_images = (outputs[0] if spec.config.deep_supervision else outputs).float().cpu()
    yield from zip(batch.images, batch.masks, of_images, strict=True)
