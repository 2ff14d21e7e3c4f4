import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unet_core.backward import merge
from unet_core.border import BorderWeight
from unet_core.checkpoint import TrainState, clone_weights, read_checkpoint, write_checkpoint
from unet_core.errors import RecipeError, TrainingError
from unet_core.index import read_index
from unet_core.loader import LaneLoader
from unet_core.loss_scale import LossScale
from unet_core.model import ModelSpec, UNet
from unet_core.reader import ShardReader
from unet_core.reduction import LaneTree
from unet_core.samples import ClassMap, ImageConfig, Sample
from unet_core.train_config import TrainConfig, learning_rate_at
from unet_core.trainer import Report, Trainer, has_native_bfloat16, score_images, summarise
from unet_core.transforms import AugmentConfig
from unet_core.validation import Validation

Fit = Callable[..., tuple[Trainer, list[Report]]]
#: 13 training samples in 4 lanes of 3, one sample a step.
STEPS_PER_EPOCH = 3
MADE_BY = {"train.seed": 0}


@pytest.fixture(scope="module")
def start(shapes_dir: Path, make_spec: Callable[..., ModelSpec], val: ShardReader) -> Callable[..., Any]:
    """A plain process: the trainer, and its loop ready to run."""
    train = read_index(shapes_dir).of_split("train")

    def start(config: TrainConfig, state: TrainState | None = None, **spec: Any) -> tuple[Trainer, Any]:
        trainer = Trainer(make_spec(**spec), config, LaneTree(lanes=config.lanes))
        if state is not None:
            trainer.restore(state)
        loader = LaneLoader(
            ShardReader(shapes_dir, train), trainer.spec.class_map, AugmentConfig(crop_px=24), seed=config.seed
        )
        return trainer, trainer.fit(loader, val)

    return start


@pytest.fixture(scope="module")
def fit(start: Callable[..., Any]) -> Fit:
    """Train in a plain process to the end; the trainer and its reports."""

    def fit(config: TrainConfig, state: TrainState | None = None, **spec: Any) -> tuple[Trainer, list[Report]]:
        trainer, loop = start(config, state, **spec)
        return trainer, list(loop)

    return fit


def losses(reports: list[Report]) -> list[float]:
    return [step.loss for report in reports for step in report.steps]


def same_weights(first: Any, second: Any) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


# The loop


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


# Resuming


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


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux tells the processor's features")
def test_native_bfloat16_is_known_for_this_processor() -> None:
    features = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    assert has_native_bfloat16(torch.device("cpu")) == bool(features & {"avx512_bf16", "amx_bf16", "bf16"})


# Groups of workers


@pytest.fixture(scope="module")
def cases(make_config: Callable[..., TrainConfig]) -> dict[str, Any]:
    """What each group of workers trains, one after the other."""

    def case(model: dict[str, Any], **changes: Any) -> dict[str, Any]:
        config = make_config(epochs=2, samples_per_lane=2, gradient_clip=0.5, schedule="cosine", **changes)
        return {"model": model, "train": asdict(config)}

    return {
        "batch": case({"norm": "batch"}),
        "group": case({"norm": "group"}),
        "none": case({"norm": "none"}),
        "bfloat16": case({"norm": "batch"}, precision="bfloat16"),
        "contiguous": case({"norm": "batch"}, channels_last=False),
        "knobs": case(
            {"norm": "batch", "residual": True, "attention": True, "upsampling": "resize", "activation": "silu"}
        ),
        "dropout": case({"norm": "none", "dropout": 0.2}),
        "deep supervision": case({"norm": "batch", "deep_supervision": 1}, deep_supervision_weights=[1.0, 0.3]),
        "nested": case({"norm": "batch", "nested": True, "deep_supervision": 1}),
        "unpadded": case({"norm": "batch", "padding": "none"}),
        "class weights": case(
            {"norm": "none"}, class_weights=[1.0, 2.0, 0.5, 1.0, 4.0, 1.0], loss={"lovasz": 1.0, "focal": 1.0}
        ),
        "sgd": case({"norm": "batch"}, optimizer="sgd"),
        "ema": case({"norm": "batch"}, ema_decay=0.9),
        "accumulate": case({"norm": "batch", "dropout": 0.2}, accumulate=2),
        "float16": case({"norm": "batch"}, precision="float16"),
        "float16 overflow": case({"norm": "batch"}, precision="float16") | {"loss_scale": 2.0**40},
        "broken": case({"norm": "batch"}, checkpoint_every_steps=1) | {"break_at": 3},
        "oversample": case({"norm": "batch"}, oversample={"ring": 0.5}),
        "another seed": case({"norm": "batch"}, seed=1),
        "inexact": case({"norm": "batch"}, exact=False),
    }


@pytest.fixture(scope="module")
def trained_by(
    train_groups: Callable[..., Callable[[int], list[Any]]], cases: dict[str, Any]
) -> Callable[[int], list[Any]]:
    """Results of every rank of a group of so many gloo processes."""
    return train_groups(list(range(1, 9)), cases)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "case",
    [
        *("batch", "group", "none", "bfloat16", "contiguous", "knobs", "dropout", "class weights", "sgd", "ema"),
        *("deep supervision", "nested", "unpadded", "accumulate", "float16", "float16 overflow", "oversample"),
    ],
)
def test_every_number_of_workers_gives_the_same_bits(
    trained_by: Callable[[int], list[Any]], case: str, workers: int
) -> None:
    alone = trained_by(1)[0][case]
    assert all(math.isfinite(loss) for loss in alone["losses"])
    assert len(alone["losses"]) == 4
    for rank in trained_by(workers):
        assert rank[case] == alone


@pytest.mark.slow
def test_every_number_of_workers_skips_the_same_steps_of_float16(trained_by: Callable[[int], list[Any]]) -> None:
    for workers in (1, 2, 3, 4):
        for rank in trained_by(workers):
            assert rank["float16 overflow"]["skipped"] == [0, 1, 2, 3]
            assert rank["float16"]["skipped"] == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_broken_training_names_the_samples_of_all_workers_and_leaves_a_good_checkpoint(
    trained_by: Callable[[int], list[Any]], fit: Fit, cases: dict[str, Any], workers: int
) -> None:
    config = TrainConfig(**cases["broken"]["train"])
    (alone,) = trained_by(1)
    for rank in trained_by(workers):
        assert rank["broken"]["error"] == alone["broken"]["error"]
    text = rank["broken"]["error"]
    assert text.startswith("the loss is not a number: step 3: nan; samples: shape_00")
    assert len(set(re.findall(r"shape_00\d\d", text))) == 4 * 1  # the second step of an epoch has one sample a lane
    state = read_checkpoint(Path(rank["broken"]["checkpoint"]), {})
    assert state.position.step == 3
    resumed, reports = fit(config, state)
    # What a group left off goes on in one process with the bits of an undisturbed training.
    assert losses(reports) == alone["batch"]["losses"][3:]
    assert asdict(reports[-1].validation) == alone["batch"]["validations"][-1]
    assert resumed.position.step == 4


@pytest.mark.slow
def test_every_case_gives_other_bits(trained_by: Callable[[int], list[Any]], cases: dict[str, Any]) -> None:
    # Otherwise equal hashes would prove nothing. Only the memory order may or may not change bits.
    found = {
        name: result["hash"] + result["best"]
        for name, result in trained_by(1)[0].items()
        if name not in ("contiguous", "sums", "broken")
    }
    assert len(set(found.values())) == len(cases) - 2


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_plain_sums_follow_the_number_of_workers_to_rounding(
    trained_by: Callable[[int], list[Any]], workers: int
) -> None:
    alone, group = trained_by(1)[0]["inexact"], trained_by(workers)
    for rank in group:
        assert rank["inexact"]["hash"] == group[0]["inexact"]["hash"]
    assert group[0]["inexact"]["hash"] != alone["hash"]
    # Batch norm sees all samples of a worker at once, so more than rounding differs with it, but not much.
    assert group[0]["inexact"]["losses"] == pytest.approx(alone["losses"], rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("workers", range(1, 9))
def test_vectors_of_every_length_are_summed_along_the_tree(
    trained_by: Callable[[int], list[Any]], workers: int
) -> None:
    # Lengths that no number of workers divides, and shorter ones than there are workers.
    alone = trained_by(1)[0]["sums"]
    assert len(set(alone.values())) == len(alone)
    for rank in trained_by(workers):
        assert rank["sums"] == alone


@pytest.mark.slow
def test_a_worker_of_a_group_gives_the_bits_of_a_plain_process(
    trained_by: Callable[[int], list[Any]], shapes_dir: Path, cases: dict[str, Any]
) -> None:
    index = read_index(shapes_dir)
    mean, deviation = index.train_statistics()
    config = TrainConfig(**cases["batch"]["train"])
    from unet_core.model import ModelConfig

    spec = ModelSpec(
        config=ModelConfig(width=8, depth=2, norm="batch", input_statistics="train"),
        images=ImageConfig(channels=1), class_map=index.class_map, mean=mean, deviation=deviation, precision="float32",
    )  # fmt: skip
    trainer = Trainer(spec, config, LaneTree(lanes=4))
    train = index.of_split("train")
    loader = LaneLoader(ShardReader(shapes_dir, train), index.class_map, AugmentConfig(crop_px=24), seed=0, threads=2)
    reports = list(trainer.fit(loader, ShardReader(shapes_dir, index.of_split("val"))))
    assert losses(reports) == trained_by(2)[0]["batch"]["losses"]
