"""Trainings that go on from a checkpoint, and the checkpoints that they leave."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unet_core.trained import STEPS_PER_EPOCH, Fit, losses, same_weights
from unet_core.checkpoint import TrainState, clone_weights, read_checkpoint, write_checkpoint
from unet_core.reader import ShardReader
from unet_core.train_config import TrainConfig
from unet_core.trainer import score_images, summarise

MADE_BY = {"train.seed": 0}


@pytest.mark.parametrize(
    ("stop_at", "changes"),
    [
        (1, ({}, {})),
        (4, ({}, {})),
        (6, ({}, {})),
        (4, ({"norm": "none"}, {})),
        (4, ({"norm": "none", "dropout": 0.3}, {})),
        (4, ({}, {"optimizer": "sgd"})),
        (4, ({}, {"ema_decay": 0.9, "patience": 5})),
        (4, ({}, {"samples_per_lane": 2, "accumulate": 2})),
        (4, ({"precision": "float16"}, {"precision": "float16"})),
        (4, ({}, {"oversample": {"ring": 0.4, "plus": 0.4}})),
        # The second validation, after step 6, is worse and lowers the rate.
        (7, ({"norm": "none"}, {"schedule": "plateau", "decay_validations": 1, "learning_rate": 3.0})),
    ],
)
def test_resuming_gives_the_bits_of_an_undisturbed_run(
    tmp_path: Path, start: Callable[..., Any], fit: Fit, make_config: Callable[..., TrainConfig], stop_at: int, changes: tuple[Any, Any]
) -> None:  # fmt: skip
    model, train = changes
    config = make_config(**{"epochs": 3, "checkpoint_every_steps": 1, "schedule": "cosine", "warmup_steps": 2, **train})
    undisturbed, told = fit(config, **model)
    killed, loop = start(config, **model)
    for report in loop:
        if report.position.step == stop_at:
            write_checkpoint(tmp_path / "checkpoint", killed.spec, report.checkpoint, MADE_BY)
            break
    loop.close()
    resumed, told_later = fit(config, read_checkpoint(tmp_path / "checkpoint", MADE_BY), **model)
    assert losses(told_later) == losses(told)[stop_at:]
    assert same_weights(resumed.model.state_dict(), undisturbed.model.state_dict())
    assert same_weights(resumed.best_weights, undisturbed.best_weights)
    assert resumed.best_score == undisturbed.best_score
    assert resumed.position == undisturbed.position
    assert resumed.num_decays == undisturbed.num_decays
    assert resumed.loss_scale == undisturbed.loss_scale
    assert (resumed.num_decays > 0) == (config.schedule == "plateau")
    # Also what was told before the interruption is there, to the bit.
    assert resumed.state().scores == undisturbed.state().scores
    assert undisturbed.state().scores.losses == tuple(losses(told))
    if undisturbed.average is not None:
        assert resumed.average is not None
        assert same_weights(resumed.average.model.state_dict(), undisturbed.average.model.state_dict())


def test_averaged_weights_are_the_moving_average_of_each_step(
    start: Callable[..., Any], make_config: Callable[..., TrainConfig], val: ShardReader
) -> None:
    trainer, loop = start(make_config(epochs=2, ema_decay=0.6, checkpoint_every_steps=1))
    name = "head.weight"
    mean = trainer.model.state_dict()[name].clone().double()
    for step, report in enumerate(loop):
        decay = min(0.6, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * report.checkpoint.last_weights[name].double()
        torch.testing.assert_close(report.checkpoint.averaged_weights[name].double(), mean, rtol=1e-5, atol=1e-7)
        if report.validation is not None:
            rows = score_images(trainer.average.model.eval(), trainer.spec, val, trainer.loss, numbers=range(len(val)))
            assert report.validation.loss == summarise(rows, trainer.spec).loss
            raw = score_images(trainer.model.eval(), trainer.spec, val, trainer.loss, numbers=range(len(val)))
            assert report.validation.loss != summarise(raw, trainer.spec).loss
            if not trainer.validations_since_best:
                best = clone_weights(trainer.average.model)
    assert trainer.position.step == 2 * STEPS_PER_EPOCH
    # They are what is validated and kept.
    assert same_weights(trainer.best_weights, best)
    assert not same_weights(trainer.best_weights, trainer.model.state_dict())


def test_training_ends_when_validation_gets_no_better(
    start: Callable[..., Any], fit: Fit, make_config: Callable[..., TrainConfig]
) -> None:
    # A rate that changes no weight: the first validation stays the best.
    trainer, reports = fit(make_config(epochs=9, patience=2, learning_rate=1e-30, weight_decay=0.0), norm="none")
    assert [report.position.epoch for report in reports if report.validation] == [1, 2, 3]
    assert reports[-1].checkpoint is not None
    assert trainer.position.epoch == 3
    # And it has ended for good.
    again, loop = start(make_config(epochs=9, patience=2), reports[-1].checkpoint, norm="none")
    assert list(loop) == []
    assert again.position == trainer.position


def test_resuming_a_finished_training_does_nothing(
    tmp_path: Path, fit: Fit, make_config: Callable[..., TrainConfig]
) -> None:
    trainer, reports = fit(make_config())
    state = reports[-1].checkpoint
    assert state is not None
    again, nothing = fit(make_config(), state)
    assert nothing == []
    assert same_weights(again.model.state_dict(), trainer.model.state_dict())


def test_checkpoint_before_the_first_validation_holds_the_last_weights_as_the_best(
    fit: Fit, make_config: Callable[..., TrainConfig]
) -> None:
    _, reports = fit(make_config(checkpoint_every_steps=1))
    first = reports[0].checkpoint
    assert first is not None
    assert first.best_score is None
    assert same_weights(first.best_weights, first.last_weights)


def optimizer_bits(state: TrainState) -> dict[str, bytes]:
    return {
        f"{number}.{name}": tensor.contiguous().numpy().tobytes()
        for number, tensors in state.optimizer["state"].items()
        for name, tensor in tensors.items()
    }


def test_reported_checkpoint_does_not_change_while_training_goes_on(
    start: Callable[..., Any], make_config: Callable[..., TrainConfig]
) -> None:
    _, loop = start(make_config(checkpoint_every_steps=1))
    state = next(loop).checkpoint
    weights = {name: tensor.clone() for name, tensor in state.last_weights.items()}
    moments = optimizer_bits(state)
    next(loop)
    assert same_weights(state.last_weights, weights)
    assert optimizer_bits(state) == moments


def test_training_on_does_not_change_the_state_that_it_began_with(
    tmp_path: Path, start: Callable[..., Any], fit: Fit, make_config: Callable[..., TrainConfig]
) -> None:
    config = make_config(checkpoint_every_steps=1)
    trainer, loop = start(config)
    write_checkpoint(tmp_path / "checkpoint", trainer.spec, next(loop).checkpoint, MADE_BY)
    state = read_checkpoint(tmp_path / "checkpoint", MADE_BY)
    weights, moments = {name: tensor.clone() for name, tensor in state.last_weights.items()}, optimizer_bits(state)
    fit(config, state)
    assert same_weights(state.last_weights, weights)
    assert optimizer_bits(state) == moments
