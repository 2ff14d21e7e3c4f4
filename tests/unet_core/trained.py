"""What tests say of a training that ran in their own process."""

from collections.abc import Callable
from typing import Any

import torch

from unet_core.trainer import Report, Trainer

Fit = Callable[..., tuple[Trainer, list[Report]]]
#: 13 training samples in 4 lanes of 3, one sample a step.
STEPS_PER_EPOCH = 3


def losses(reports: list[Report]) -> list[float]:
    return [step.loss for report in reports for step in report.steps]


def same_weights(first: Any, second: Any) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)
