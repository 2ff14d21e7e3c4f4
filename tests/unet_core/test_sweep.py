from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from unet_core.errors import TrainingError
from unet_core.index import read_index
from unet_core.loader import LaneLoader
from unet_core.model import ModelSpec
from unet_core.reader import ShardReader
from unet_core.reduction import LaneTree
from unet_core.sweep import (
    HIGHEST,
    LOWEST,
    Load,
    Sweep,
    endless_batches,
    has_grown,
    smooth,
    suggested_load,
    sweep_rates,
)
from unet_core.train_config import TrainConfig
from unet_core.trainer import Trainer
from unet_core.transforms import AugmentConfig

RATES = tuple(np.geomspace(1e-5, 10, 7).tolist())  # factors of ten


def test_steepest_is_where_the_loss_falls_most() -> None:
    found = Sweep(rates=RATES, losses=(1.0, 0.99, 0.8, 0.4, 0.35, 0.34, 2.0))
    assert found.steepest == pytest.approx(1e-3)
    assert found.suggested == 1e-3


def test_suggestion_keeps_a_factor_of_ten_from_where_the_loss_grew() -> None:
    found = Sweep(rates=RATES[:4], losses=(1.0, 0.99, 0.9, 0.2))
    assert found.steepest > found.rates[-1] / 10
    assert found.suggested == pytest.approx(1e-3)


@pytest.mark.parametrize("losses", [(1.0, 1.1, 1.2, 1.3), (1.0,), (1.0, 0.9)])
def test_a_loss_that_never_falls_is_an_error(losses: tuple[float, ...]) -> None:
    with pytest.raises(TrainingError) as caught:
        _ = Sweep(rates=RATES[: len(losses)], losses=losses).suggested
    assert str(caught.value) == (
        "the loss falls at no learning rate. Run `unet overfit`: it tells whether the network can learn at all."
    )


@pytest.fixture
def loader(shapes_dir: Path, make_spec: Callable[..., ModelSpec]) -> LaneLoader:
    train = ShardReader(shapes_dir, read_index(shapes_dir).of_split("train"))
    return LaneLoader(train, make_spec().class_map, AugmentConfig(crop_px=24), seed=0)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_sweep_suggests_a_rate_that_trains(
    loader: LaneLoader, make_spec: Callable[..., ModelSpec], make_config: Callable[..., TrainConfig], norm: str
) -> None:
    spec, config = make_spec(norm=norm), make_config(lanes=2)
    trainer = Trainer(spec, config, LaneTree(lanes=2))
    found = sweep_rates(trainer, endless_batches(loader, config, spec.class_map), num_steps=60)
    assert found.rates[0] == pytest.approx(LOWEST)
    assert found.rates[1] / found.rates[0] == pytest.approx((HIGHEST / LOWEST) ** (1 / 59))
    assert 1e-3 < found.suggested <= 0.1


def test_a_sweep_ends_where_the_loss_breaks(
    loader: LaneLoader, make_spec: Callable[..., ModelSpec], make_config: Callable[..., TrainConfig]
) -> None:
    # Steps a million times as large as they should be.
    spec, config = make_spec(norm="none"), make_config(lanes=1, optimizer="sgd", loss={"bce": 1e6})
    trainer = Trainer(spec, config, LaneTree(lanes=1))
    found = sweep_rates(trainer, endless_batches(loader, config, spec.class_map), num_steps=40)
    assert 0 < len(found.losses) == len(found.rates) < 40
    assert np.isfinite(found.losses).all()


def test_smoothing_looks_as_far_to_the_left_as_to_the_right() -> None:
    assert smooth([0.0, 0.0, 6.0, 0.0, 0.0], 1) == [0.0, 2.0, 2.0, 2.0, 0.0]
    assert smooth([1.0, 2.0, 3.0, 4.0], 5) == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("losses", "answer"),
    [
        ([1.0, 0.9, 0.5, 0.8, 0.8], True),
        ([1.0, 0.9, 0.5, 0.7, 0.7], False),
        # Up and down without having learned anything; the last value is not looked at.
        ([1.0, 0.95, 1.2, 1.2], False),
        ([1.0, 0.9, 0.5, 0.5, 9.0], False),
        ([1.0], False),
    ],
)
def test_a_loss_has_grown_when_half_of_what_it_gained_is_lost(losses: list[float], answer: bool) -> None:
    assert has_grown(losses) == answer


def test_batches_go_on_with_the_next_epoch(
    loader: LaneLoader, make_spec: Callable[..., ModelSpec], make_config: Callable[..., TrainConfig]
) -> None:
    config, class_map = make_config(lanes=4), make_spec().class_map
    found = [batch.keys for step in islice(endless_batches(loader, config, class_map), 6) for batch in step]
    plans = [config.plan(loader.reader, class_map, epoch=epoch).lanes.T.ravel() for epoch in range(2)]
    assert found == [(loader.reader.entry(int(number)).key,) for plan in plans for number in plan]


def test_fewest_samples_with_nearly_the_best_speed_are_suggested() -> None:
    speeds = {1: 10.0, 2: 18.0, 4: 19.5, 8: 20.0, 16: 12.0}
    loads = [Load(samples_per_lane=n, images_per_second=speed, peak_mb=None) for n, speed in speeds.items()]
    assert suggested_load(loads).samples_per_lane == 4
