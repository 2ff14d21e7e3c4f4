"""Which learning rate: a short training in which it rises from next to nothing until the loss grows (Smith 2017)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unet_core.checkpoint import Position
from unet_core.errors import TrainingError
from unet_core.loader import Batch, LaneLoader
from unet_core.samples import ClassMap
from unet_core.train_config import TrainConfig
from unet_core.trainer import Trainer

#: From the first rate to the last.
LOWEST, HIGHEST = 1e-5, 1.0
#: Losses are means over this share of the sweep's steps, to both sides alike: a mean of the past would come late.
WINDOW_FRACTION = 0.08
#: The sweep ends where the loss has lost so much of what it had gained, if that was so much of its first value.
LOST, GAINED = 0.5, 0.1


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A loss for each rate, up to where it grew out of hand, or to the highest."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Smoothed."""

    @property
    def falls(self) -> bool:
        """Whether any rate lowers the loss."""
        return len(self.losses) > 0 and int(np.argmin(self.losses)) >= 2

    @property
    def steepest(self) -> float:
        """The rate at which the loss falls fastest; TrainingError where it never falls."""
        if not self.falls:
            raise TrainingError(
                "the loss falls at no learning rate. Run `unet overfit`: it tells whether the network can learn at all."
            )
        end = int(np.argmin(self.losses)) + 1
        slopes = np.gradient(self.losses[:end], np.log(self.rates[:end]))
        return self.rates[int(np.argmin(slopes))]

    @property
    def suggested(self) -> float:
        """The steepest rate, but a tenth of the one at which the loss grew out of hand at most; two digits."""
        return float(f"{min(self.steepest, self.rates[-1] / 10):.2g}")


def sweep_rates(trainer: Trainer, batches: Iterator[Sequence[Batch]], *, num_steps: int) -> Sweep:
    """Train with rates that rise by the same factor from step to step."""
    rates: list[float] = np.geomspace(LOWEST, HIGHEST, num_steps).tolist()
    losses: list[float] = []
    window = max(1, round(num_steps * WINDOW_FRACTION))
    for number, (rate, lanes) in enumerate(zip(rates, batches, strict=False)):
        trainer.position = Position(step=number)
        try:
            losses.append(trainer.step_at(list(lanes), rate).loss)
        except TrainingError:
            # What the sweep is for: this rate is too high.
            break
        if has_grown(smooth(losses, window)):
            break
    return Sweep(rates=tuple(rates[: len(losses)]), losses=tuple(smooth(losses, window)))


def smooth(losses: Sequence[float], window: int) -> list[float]:
    """The mean of each value and of up to `window` neighbours on both sides, as many on the one as on the other."""
    found = []
    for place in range(len(losses)):
        reach = min(window, place, len(losses) - 1 - place)
        found.append(float(np.mean(losses[place - reach : place + reach + 1])))
    return found


def has_grown(smoothed: Sequence[float]) -> bool:
    """Whether the loss is on its way up again; the last values, which few neighbours make smooth, don't count."""
    seen = smoothed[: -max(1, len(smoothed) // 20)]
    if not seen:
        return False
    gained = seen[0] - min(seen)
    return gained > GAINED * seen[0] and seen[-1] > min(seen) + LOST * gained


def endless_batches(loader: LaneLoader, config: TrainConfig, class_map: ClassMap) -> Iterator[list[Batch]]:
    """The batches of all lanes, one epoch after the other."""
    epoch = 0
    while True:
        plan = config.plan(loader.reader, class_map, epoch=epoch)
        yield from loader.steps(plan, epoch=epoch, lanes=range(config.lanes))
        epoch += 1


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a number of samples a lane costs."""

    samples_per_lane: int
    images_per_second: float
    peak_mb: float | None
    """Memory of a step beside what was there before it; None where the system does not tell."""


#: So much of the best speed is good enough for fewer samples.
NEAR_BEST = 0.95


def suggested_load(loads: Sequence[Load]) -> Load:
    """The fewest samples a lane whose speed is near the best: more steps of smaller batches learn more."""
    best = max(load.images_per_second for load in loads)
    return min(
        (load for load in loads if load.images_per_second >= NEAR_BEST * best), key=lambda load: load.samples_per_lane
    )
