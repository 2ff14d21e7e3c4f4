import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unet_core.trained import STEPS_PER_EPOCH, Fit, losses, same_weights
from unet_core.backward import merge
from unet_core.border import BorderWeight
from unet_core.errors import RecipeError, TrainingError
from unet_core.index import read_index
from unet_core.loader import LaneLoader
from unet_core.loss_scale import LossScale
from unet_core.model import ModelSpec, UNet
from unet_core.reader import ShardReader
from unet_core.reduction import LaneTree
from unet_core.samples import ClassMap, Sample
from unet_core.train_config import TrainConfig, learning_rate_at
from unet_core.trainer import Trainer, has_native_bfloat16, score_images, summarise
from unet_core.transforms import AugmentConfig
from unet_core.validation import Validation


def test_plateau_lowers_the_rate_after_validations_that_are_no_better(
    fit: Fit, make_config: Callable[..., TrainConfig]
) -> None:
    # A rate that changes no weight: the first validation stays the best.
    config = make_config(schedule="plateau", decay_validations=2, epochs=6, learning_rate=1e-30, weight_decay=0.0)
    trainer, reports = fit(config, norm="none")
    found = [step.learning_rate for report in reports for step in report.steps][::STEPS_PER_EPOCH]
    assert found == pytest.approx([1e-30] * 3 + [1e-31] * 2 + [1e-32])
    assert trainer.num_decays == 2


def test_loss_of_another_kind_of_mask_is_refused_before_training(
    make_spec: Callable[..., ModelSpec], make_config: Callable[..., TrainConfig]
) -> None:
    with pytest.raises(RecipeError, match="cross_entropy does not fit"):
        Trainer(make_spec(), make_config(loss={"cross_entropy": 1.0}), LaneTree(lanes=4))


@pytest.mark.parametrize("exact", [True, False])
def test_border_weights_reach_the_loss_of_a_step(
    tmp_path: Path, make_spec: Callable[..., ModelSpec], make_config: Callable[..., TrainConfig],
    random_sample: Callable[..., Sample], cells_map: ClassMap, exact: bool,
) -> None:  # fmt: skip
    from unet_core.packing import pack_all
    from unet_core.shards import write_shard

    entry = write_shard(tmp_path, "train/a.tar", "content", pack_all([random_sample(key) for key in "abcd"], cells_map))
    reader = ShardReader(tmp_path, [entry])
    # A rate of nothing: the network stays, and losses differ by their weights only.
    config = make_config(epochs=1, lanes=2, loss={"cross_entropy": 1.0}, learning_rate=1e-30, exact=exact)
    found = {}
    for border in (None, BorderWeight(w0=10, sigma_px=2)):
        trainer = Trainer(make_spec(class_map=cells_map, channels=3, norm="none"), config, LaneTree(lanes=2))
        loader = LaneLoader(reader, cells_map, AugmentConfig(crop_px=8), seed=0, border=border)
        batches = next(iter(loader.steps(config.plan(reader, cells_map, epoch=0), epoch=0, lanes=range(2))))
        found[border] = losses(list(trainer.fit(loader, reader)))[0]
        taken = batches if exact else [merge(batches)]
        with torch.no_grad():
            by_hand = [trainer.loss(trainer.model(batch.images), batch.masks.long(), batch.border) for batch in taken]
        assert found[border] == pytest.approx(float(torch.stack(by_hand).mean()), rel=1e-5)
    assert len(set(found.values())) == 2


@pytest.mark.parametrize(
    "model",
    [
        {"norm": "batch"},
        {"norm": "group"},
        {"norm": "none"},
        {"deep_supervision": 1},
        {"nested": True, "deep_supervision": 1},
        {"padding": "none"},
    ],
    ids=str,
)
def test_training_lowers_the_loss(fit: Fit, make_config: Callable[..., TrainConfig], model: dict[str, Any]) -> None:
    _, reports = fit(make_config(epochs=12, lanes=2, validate_every_epochs=12), **model)
    found = losses(reports)
    assert sum(found[-6:]) < 0.75 * sum(found[:6])


def test_multiclass_training_lowers_the_loss(
    tmp_path: Path, make_spec: Callable[..., ModelSpec], make_config: Callable[..., TrainConfig],
    draw_sample: Callable[..., Sample],
) -> None:  # fmt: skip
    from unet_core.packing import pack_all
    from unet_core.shards import write_shard

    class_map = ClassMap(kind="multiclass", classes={"ground": 0, "shape": 1}, ignore=255, background="ground")
    samples = [draw_sample(number, channels=3) for number in range(8)]
    merged = [replace(sample, mask=sample.mask.max(axis=-1)) for sample in samples]
    entry = write_shard(tmp_path, "train/a.tar", "content", pack_all(merged, class_map))
    reader = ShardReader(tmp_path, [entry])
    config = make_config(epochs=10, lanes=2, loss={"cross_entropy": 1.0, "dice": 1.0}, select_by="dice")
    trainer = Trainer(make_spec(class_map=class_map, channels=3), config, LaneTree(lanes=2))
    loader = LaneLoader(reader, class_map, AugmentConfig(crop_px=None), seed=0)
    reports = list(trainer.fit(loader, reader))
    assert losses(reports)[-1] < 0.5 * losses(reports)[0]
    last = reports[-1].validation
    assert last is not None
    assert last.dice == last.class_dice["shape"]  # the background counts in no score
    assert last.dice is not None
    assert last.dice > 0.6


def test_reports_tell_every_step_once_and_in_order(
    fit: Fit, make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "report_every_steps", 5)
    config = make_config(epochs=3, lanes=1, validate_every_epochs=2, learning_rate=0.002, warmup_steps=5)
    trainer, reports = fit(config)
    steps = [step for report in reports for step in report.steps]
    assert [step.step for step in steps] == list(range(3 * 13))
    assert [step.learning_rate for step in steps] == [
        learning_rate_at(step, config, steps_per_epoch=13) for step in range(3 * 13)
    ]
    assert [len(report.steps) for report in reports] == [5, 5, 3] * 3
    assert [report.position.epoch for report in reports if report.validation] == [2, 3]
    assert trainer.position.step == 3 * 13


def test_report_with_a_validation_has_a_checkpoint(fit: Fit, make_config: Callable[..., TrainConfig]) -> None:
    _, reports = fit(make_config(epochs=3))
    assert sum(report.validation is not None for report in reports) == 3
    assert all((report.checkpoint is None) == (report.validation is None) for report in reports)


def test_checkpoints_come_as_often_as_the_recipe_says(fit: Fit, make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(epochs=4, validate_every_epochs=4, checkpoint_every_steps=2)
    _, reports = fit(config)
    kept = [report.checkpoint.position.step for report in reports if report.checkpoint]
    # Steps 6 and 12 end an epoch; only the last epoch is validated.
    assert kept == [2, 4, 6, 8, 10, 12]


def test_same_seed_trains_the_same_weights_and_another_seed_others(
    fit: Fit, make_config: Callable[..., TrainConfig]
) -> None:
    first, second, other = (fit(make_config(seed=seed))[0].model.state_dict() for seed in (0, 0, 1))
    assert same_weights(first, second)
    assert not same_weights(first, other)


def test_memory_order_of_channels_is_as_the_recipe_says(
    make_spec: Callable[..., ModelSpec], make_config: Callable[..., TrainConfig]
) -> None:
    for channels_last in (True, False):
        trainer = Trainer(make_spec(), make_config(channels_last=channels_last), LaneTree(lanes=4))
        weight = trainer.model.encoder[1][0].weight  # type: ignore[index]
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("clip", [1e-3, 1e9])
def test_gradient_is_clipped_to_its_largest_norm(
    start: Callable[..., Any], make_config: Callable[..., TrainConfig], clip: float
) -> None:
    trainer, loop = start(make_config(gradient_clip=clip, lanes=1, checkpoint_every_steps=1))
    next(loop)
    norm = torch.stack([parameter.grad.norm() for parameter in trainer.model.parameters()]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3) if clip < 1 else float(norm) > 1e-2


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_weight_decay_reaches_the_optimizer(
    make_spec: Callable[..., ModelSpec], make_config: Callable[..., TrainConfig], optimizer: str
) -> None:
    trainer = Trainer(make_spec(), make_config(optimizer=optimizer, weight_decay=0.25), LaneTree(lanes=4))
    assert type(trainer.optimizer) is {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.25}


def test_loss_that_is_not_a_number_names_step_and_samples(
    start: Callable[..., Any], make_config: Callable[..., TrainConfig]
) -> None:
    trainer, loop = start(make_config(learning_rate=1e30, lanes=2, epochs=5), norm="none")
    with pytest.raises(TrainingError) as caught:
        list(loop)
    text = str(caught.value)
    assert re.match(rf"the (loss|gradient) is not a number: step {trainer.position.step}: (nan|inf); samples: ", text)
    assert trainer.position.step >= 1
    assert text.count("shape_00") == 2
    assert text.endswith("Lower train.learning_rate, or set train.gradient_clip.")
    assert caught.value.exit_code == 5


def test_weights_that_explode_in_the_last_step_are_no_result(fit: Fit, make_config: Callable[..., TrainConfig]) -> None:
    # The loss of a step is that of the weights before it; only the validation sees what the last step did.
    config = make_config(learning_rate=1e30, lanes=8, epochs=1)  # 13 samples, 8 lanes: one step
    text = r"the loss is not a number: validation after step 0: (nan|inf); first at shape_0013\. Lower train\.learning"
    with pytest.raises(TrainingError, match=text):
        fit(config, norm="none")


def test_a_lane_whose_loss_is_not_a_number_is_named_alone(
    start: Callable[..., Any], make_config: Callable[..., TrainConfig]
) -> None:
    trainer, loop = start(make_config(checkpoint_every_steps=1))
    next(loop)
    plain = trainer._backward._loss
    spoiled = iter([False, False, True, False])
    trainer._backward._loss = lambda *given: plain(*given) * (math.nan if next(spoiled) else 1.0)
    with pytest.raises(TrainingError, match=r"step 1: nan; samples: shape_00\d\d\. Lower"):
        next(loop)


def test_a_gradient_that_is_not_a_number_changes_no_weight(
    start: Callable[..., Any], make_config: Callable[..., TrainConfig]
) -> None:
    trainer, loop = start(make_config(checkpoint_every_steps=1), norm="none")
    kept = next(loop).checkpoint
    trainer.model.head.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"^the gradient is not a number: step 1: (nan|inf); samples: shape_"):
        next(loop)
    assert same_weights(trainer.model.state_dict(), kept.last_weights)


def test_weights_that_are_no_numbers_come_into_no_checkpoint(
    start: Callable[..., Any], make_config: Callable[..., TrainConfig]
) -> None:
    trainer, loop = start(make_config(checkpoint_every_steps=1))
    next(loop)
    with torch.no_grad():
        trainer.optimizer.register_step_post_hook(lambda *_: trainer.model.head.bias.data.fill_(math.inf))
    with pytest.raises(TrainingError) as caught:
        next(loop)
    assert str(caught.value) == (
        "a weight is not a number: head.bias after step 1. Lower train.learning_rate, or set train.gradient_clip."
    )


# float16


def test_a_step_that_overflows_float16_is_skipped_and_scales_less(
    start: Callable[..., Any], make_config: Callable[..., TrainConfig]
) -> None:
    config = make_config(epochs=1, precision="float16", checkpoint_every_steps=1, ema_decay=0.9)
    trainer, loop = start(config, precision="float16", norm="none")
    before = trainer.model.state_dict()["head.weight"].clone()
    # Nothing in float16 is as large as this.
    trainer.loss_scale = LossScale(scale=2.0**40)
    first = next(loop)
    assert [step.is_skipped for step in first.steps] == [True]
    assert torch.equal(first.checkpoint.last_weights["head.weight"], before)
    assert torch.equal(first.checkpoint.averaged_weights["head.weight"], before)
    assert first.checkpoint.loss_scale == LossScale(scale=2.0**39)
    trainer.loss_scale = LossScale()
    second = next(loop)
    assert [step.is_skipped for step in second.steps] == [False]
    assert not torch.equal(second.checkpoint.last_weights["head.weight"], before)
    assert second.checkpoint.loss_scale == LossScale(good_steps=1)


def test_float16_without_a_scale_left_is_an_error(
    start: Callable[..., Any], make_config: Callable[..., TrainConfig]
) -> None:
    trainer, loop = start(make_config(precision="float16"), precision="float16")
    trainer.loss_scale = LossScale(scale=1.0)
    trainer.model.head.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"^the gradient is not a number: step 0: "):
        next(loop)


def test_the_scale_of_float16_changes_only_what_would_have_vanished(
    fit: Fit, make_config: Callable[..., TrainConfig]
) -> None:
    exact, _ = fit(make_config(epochs=1, gradient_clip=0.5), norm="none")
    half, _ = fit(make_config(epochs=1, gradient_clip=0.5, precision="float16"), norm="none", precision="float16")
    assert half.loss_scale == LossScale(good_steps=STEPS_PER_EPOCH)
    name = "head.bias"
    torch.testing.assert_close(half.model.state_dict()[name], exact.model.state_dict()[name], rtol=0.1, atol=2e-3)


def test_training_without_validation_images_is_refused_before_the_first_step(
    shapes_dir: Path, make_spec: Callable[..., ModelSpec], make_config: Callable[..., TrainConfig]
) -> None:
    train = read_index(shapes_dir).of_split("train")
    loader = LaneLoader(ShardReader(shapes_dir, train), make_spec().class_map, AugmentConfig(crop_px=24), seed=0)
    trainer = Trainer(make_spec(), make_config(), LaneTree(lanes=4))
    with pytest.raises(TrainingError, match="no validation"):
        next(trainer.fit(loader, ShardReader(shapes_dir, ())))
    assert trainer.position.step == 0


@pytest.mark.parametrize("select_by", ["loss", "dice"])
def test_best_weights_are_kept_when_later_ones_are_worse(
    fit: Fit, make_config: Callable[..., TrainConfig], val: ShardReader, select_by: str
) -> None:
    learned, reports = fit(make_config(epochs=10, lanes=2, select_by=select_by, validate_every_epochs=5))
    # One more epoch, whose learning rate spoils what was learned.
    spoiling = make_config(epochs=11, lanes=2, select_by=select_by, learning_rate=100.0)
    spoiled, more = fit(spoiling, reports[-1].checkpoint)
    seen = [report.validation for report in reports + more if report.validation]
    scores = [-found.loss if select_by == "loss" else found.dice or 0.0 for found in seen]
    assert scores[-1] < max(scores)
    assert spoiled.best_score == learned.best_score == max(scores)
    assert same_weights(spoiled.best_weights, learned.best_weights)
    best = seen[scores.index(max(scores))]
    assert loss_of(spoiled, val) == Validation(loss=best.loss, dice=best.dice, class_dice=best.class_dice)
    assert not same_weights(spoiled.model.state_dict(), spoiled.best_weights)


def loss_of(trainer: Trainer, val: ShardReader) -> Validation:
    """Validate a trainer's best weights anew."""
    model = UNet(trainer.spec).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    model.load_state_dict(dict(trainer.best_weights))
    rows = score_images(model, trainer.spec, val, trainer.loss, numbers=range(len(val)))
    return summarise(rows, trainer.spec)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux tells the processor's features")
def test_native_bfloat16_is_known_for_this_processor() -> None:
    features = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    assert has_native_bfloat16(torch.device("cpu")) == bool(features & {"avx512_bf16", "amx_bf16", "bf16"})
