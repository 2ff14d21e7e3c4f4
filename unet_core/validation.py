"""Scores on the validation split: what decides which weights are the best. Each image is predicted whole."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unet_core.counts import mean_defined
from unet_core.inference import predict_logits
from unet_core.losses import Loss
from unet_core.metrics import count_pixels, mask_to_tensor
from unet_core.model import ModelSpec
from unet_core.reader import ShardReader


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Loss and Dice of the validation split."""

    loss: float
    """Mean over images."""
    dice: float | None
    """Mean over images and scored classes where it is defined."""
    class_dice: Mapping[str, float | None]


def score_images(model: nn.Module, spec: ModelSpec, reader: ShardReader, loss: Loss, *, numbers: range) -> Tensor:
    """Predict images whole; (images, 1 + 3 K) float64: loss, then TP, FP, FN of each class. Other rows are 0."""
    device = next(model.parameters()).device
    rows = torch.zeros(len(reader), 1 + 3 * spec.class_map.num_classes, dtype=torch.float64)
    for number in numbers:
        sample = reader.read(number)
        logits = predict_logits(model, spec, sample.image)
        mask = mask_to_tensor(sample.mask[None], spec.class_map)
        counts = count_pixels(logits, mask[0])
        rows[number, 0] = float(loss(logits[None].to(device), mask.to(device)))
        rows[number, 1:] = torch.tensor(
            [value for c in counts for value in (c.true_positive, c.false_positive, c.false_negative)]
        )
    return rows


def summarise(rows: Tensor, spec: ModelSpec) -> Validation:
    """Mean loss and mean Dice of the rows of `score_images`."""
    counts = rows[:, 1:].reshape(len(rows), -1, 3)
    sizes = 2 * counts[..., 0] + counts[..., 1] + counts[..., 2]
    dice = [
        [float(2 * image[k, 0] / size[k]) if size[k] else None for k in range(spec.class_map.num_classes)]
        for image, size in zip(counts, sizes, strict=True)
    ]
    return Validation(
        loss=float(rows[:, 0].mean()),
        dice=mean_defined(row[k] for row in dice for k in spec.class_map.scored),
        class_dice={name: mean_defined(row[k] for row in dice) for k, name in enumerate(spec.class_map.names)},
    )
