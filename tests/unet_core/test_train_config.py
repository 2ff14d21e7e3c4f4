import math
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unet_core.border import BorderWeight
from unet_core.errors import RecipeError
from unet_core.index import read_index
from unet_core.loader import LaneLoader
from unet_core.model import ModelSpec
from unet_core.reader import ShardReader
from unet_core.reduction import LaneTree
from unet_core.samples import ClassMap
from unet_core.train_config import TrainConfig, is_plateau, learning_rate_at
from unet_core.trainer import Trainer
from unet_core.transforms import AugmentConfig

# Learning rate


def rates(config: TrainConfig, steps_per_epoch: int = 10) -> list[float]:
    return [
        learning_rate_at(step, config, steps_per_epoch=steps_per_epoch)
        for step in range(config.epochs * steps_per_epoch)
    ]


def test_constant_learning_rate_stays(make_config: Callable[..., TrainConfig]) -> None:
    assert set(rates(make_config(learning_rate=0.3))) == {0.3}


def test_learning_rate_rises_in_equal_steps_while_warming_up(make_config: Callable[..., TrainConfig]) -> None:
    found = rates(make_config(learning_rate=0.8, warmup_steps=4))
    assert found[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_cosine_falls_from_the_whole_rate_to_almost_nothing(make_config: Callable[..., TrainConfig]) -> None:
    found = rates(make_config(learning_rate=0.5, schedule="cosine", epochs=10))
    assert found[0] == 0.5
    assert found[50] == pytest.approx(0.25)
    assert 0 < found[-1] < 0.5e-3
    assert all(second < first for first, second in zip(found, found[1:], strict=False))


def test_cosine_begins_after_the_warm_up(make_config: Callable[..., TrainConfig]) -> None:
    found = rates(make_config(learning_rate=1.0, schedule="cosine", epochs=11, warmup_steps=10))
    assert found[9] == found[10] == 1.0
    assert found[60] == pytest.approx(0.5)
    assert found[-1] < 1e-3


def torchs_rates(make: Callable[..., Any], steps: int, rate: float) -> list[float]:
    """What a scheduler of PyTorch's does with the rate."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    scheduler, seen = make(optimizer), []
    for _ in range(steps):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step() if len(seen) < steps else None
    return seen


def test_poly_and_one_cycle_are_pytorchs(make_config: Callable[..., TrainConfig]) -> None:
    from torch.optim.lr_scheduler import OneCycleLR, PolynomialLR

    config = make_config(schedule="poly", epochs=4, learning_rate=0.2)
    expected = torchs_rates(lambda optimizer: PolynomialLR(optimizer, 40, power=0.9), 40, 0.2)
    assert rates(config) == pytest.approx(expected, rel=1e-9)
    config = make_config(schedule="one_cycle", epochs=4, learning_rate=0.2)
    expected = torchs_rates(lambda optimizer: OneCycleLR(optimizer, 0.2, 40, cycle_momentum=False), 40, 0.2)
    assert rates(config) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_the_shortest_cycle_has_a_rate_in_each_step(make_config: Callable[..., TrainConfig], epochs: int) -> None:
    config = make_config(schedule="one_cycle", epochs=epochs)
    assert all(0 < rate <= config.learning_rate for rate in rates(config, steps_per_epoch=1))


def test_one_cycle_with_another_warm_up_is_refused(make_config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(RecipeError) as caught:
        make_config(schedule="one_cycle", warmup_steps=5)
    assert str(caught.value) == "train.schedule: one_cycle has a warm-up of its own. Set train.warmup_steps: 0."


def test_step_schedule_divides_by_ten_again_and_again(make_config: Callable[..., TrainConfig]) -> None:
    found = rates(make_config(learning_rate=1.0, schedule="step", decay_epochs=2, epochs=6))
    expected = [1.0] * 20 + [0.1] * 20 + [0.01] * 20
    assert found == pytest.approx(expected)


def test_plateau_falls_as_pytorchs_does(make_config: Callable[..., TrainConfig]) -> None:
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    config = make_config(schedule="plateau", decay_validations=2, decay_factor=0.5, learning_rate=0.8)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.8)
    # PyTorch's patience is the number of validations that change nothing yet.
    theirs = ReduceLROnPlateau(optimizer, patience=1, factor=0.5, threshold=0.0)
    best, since_best, decays, expected, found = math.inf, 0, 0, [], []
    for loss in (5, 4, 4.5, 4, 4, 4.2, 3, 3.5, 3.1, 3.2, 3.3, 3.4, 2):
        theirs.step(loss)
        expected.append(optimizer.param_groups[0]["lr"])
        since_best, best = (0, loss) if loss < best else (since_best + 1, best)
        decays += is_plateau(config, since_best)
        found.append(learning_rate_at(7, config, steps_per_epoch=10, num_decays=decays))
    assert found == pytest.approx(expected)
    assert decays == 4


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"schedule": "plateau"},
            "train.schedule: plateau needs train.decay_validations, the validations that it waits.",
        ),
        ({"decay_factor": 1.0}, "train.decay_factor: 1.0: must be between 0 and 1."),
        ({"decay_validations": 0}, "train.decay_validations: 0: must be at least 1, or null."),
    ],
)
def test_impossible_plateau_is_refused(
    make_config: Callable[..., TrainConfig], changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        make_config(**changes)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("schedule", "name", "other"),
    [
        ("cosine", "decay_epochs", "step"),
        ("plateau", "decay_epochs", "step"),
        ("step", "decay_validations", "plateau"),
        ("constant", "decay_validations", "plateau"),
    ],
)
def test_a_decay_that_the_schedule_does_not_use_is_refused(
    make_config: Callable[..., TrainConfig], schedule: str, name: str, other: str
) -> None:
    needed = {"step": {"decay_epochs": 2}, "plateau": {"decay_validations": 2}}.get(schedule, {})
    with pytest.raises(RecipeError) as caught:
        make_config(schedule=schedule, **{**needed, name: 3})
    assert str(caught.value) == (
        f"train.{name}: 3: schedule {schedule} does not use it. Set it to null, or train.schedule: {other}."
    )


def test_warm_up_longer_than_the_training_never_reaches_the_whole_rate(
    make_config: Callable[..., TrainConfig],
) -> None:
    found = rates(make_config(learning_rate=1.0, schedule="cosine", epochs=1, warmup_steps=20))
    assert found == pytest.approx([(step + 1) / 20 for step in range(10)])


# The recipe


@pytest.mark.parametrize("lanes", [0, 3, 6, -2])
def test_lanes_that_are_no_power_of_two_are_refused(make_config: Callable[..., TrainConfig], lanes: int) -> None:
    with pytest.raises(RecipeError, match=f"train.lanes: {lanes} is not a power of two. Choose 1, 2, 4, 8 ..."):
        make_config(lanes=lanes)


@pytest.mark.parametrize(
    "name", ["epochs", "samples_per_lane", "block_shards", "threads_per_worker", "validate_every_epochs"]
)
def test_count_of_zero_is_refused(make_config: Callable[..., TrainConfig], name: str) -> None:
    with pytest.raises(RecipeError, match=f"train.{name}: 0: must be at least 1."):
        make_config(**{name: 0})


@pytest.mark.parametrize(
    ("name", "value"), [("checkpoint_every_steps", 0), ("warmup_steps", -1), ("learning_rate", -0.1), ("gradient_clip", -1.0)]
)  # fmt: skip
def test_impossible_number_is_refused(make_config: Callable[..., TrainConfig], name: str, value: float) -> None:
    with pytest.raises(RecipeError, match=f"train.{name}"):
        make_config(**{name: value})


@pytest.mark.parametrize("accumulate", [0, 3, 8])
def test_accumulation_that_no_tree_has_is_refused(make_config: Callable[..., TrainConfig], accumulate: int) -> None:
    with pytest.raises(RecipeError) as caught:
        make_config(accumulate=accumulate, samples_per_lane=4)
    assert str(caught.value) == (
        f"train.accumulate: {accumulate}: must be a power of two, and at most train.samples_per_lane (4)."
    )


@pytest.mark.parametrize("shares", [{"ring": 0.0}, {"ring": 1.5}, {"ring": 0.6, "plus": 0.6}])
def test_impossible_share_is_refused(make_config: Callable[..., TrainConfig], shares: dict[str, float]) -> None:
    with pytest.raises(RecipeError) as caught:
        make_config(oversample=shares)
    assert str(caught.value) == f"train.oversample: {shares}: shares are above 0, and their sum is at most 1."


def test_a_class_that_the_data_do_not_have_cannot_be_oversampled(
    shapes_dir: Path, make_config: Callable[..., TrainConfig], shapes_map: ClassMap
) -> None:
    shards = read_index(shapes_dir).of_split("train")
    with pytest.raises(RecipeError) as caught:
        make_config(oversample={"rings": 0.3}).oversampling(ShardReader(shapes_dir, shards), shapes_map)
    assert str(caught.value) == (
        "train.oversample: no such class: rings. "
        "Choose from filled_square, filled_circle, triangle, ring, mesh_square, plus."
    )
    without = [replace(shard, class_pixels=(9, 9, 9, 0, 9, 9)) for shard in shards]
    with pytest.raises(RecipeError) as caught:
        make_config(oversample={"ring": 0.3}).oversampling(ShardReader(shapes_dir, without), shapes_map)
    assert str(caught.value) == "train.oversample: no pixel of the training images is ring. Remove it."


@pytest.mark.parametrize("decay_epochs", [None, 0])
def test_step_schedule_without_epochs_is_refused(
    make_config: Callable[..., TrainConfig], decay_epochs: int | None
) -> None:
    with pytest.raises(RecipeError) as caught:
        make_config(schedule="step", decay_epochs=decay_epochs)
    assert str(caught.value) == "train.schedule: step needs train.decay_epochs, the epochs between two decays."


def test_border_weights_without_a_loss_of_pixels_are_refused(
    make_config: Callable[..., TrainConfig], cells_map: ClassMap
) -> None:
    weight = {"w0": 10.0, "sigma_px": 5.0}
    assert make_config().read_border_weight(cells_map) is None
    config = make_config(loss={"dice": 0.5, "focal": {"weight": 0.5}}, border_weight=weight)
    assert config.read_border_weight(cells_map) == BorderWeight(w0=10, sigma_px=5)
    with pytest.raises(RecipeError) as caught:
        make_config(loss={"dice": 0.5, "lovasz": 0.5}, border_weight=weight).read_border_weight(cells_map)
    assert str(caught.value) == (
        "train.border_weight: none of the losses weighs pixels: dice, lovasz. Add one of cross_entropy, focal to "
        "train.loss, or remove the weight."
    )


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0])
def test_a_decay_that_is_no_average_is_refused(make_config: Callable[..., TrainConfig], decay: float) -> None:
    with pytest.raises(RecipeError) as caught:
        make_config(ema_decay=decay)
    assert str(caught.value) == f"train.ema_decay: {decay}: must be between 0 and 1, or null."


# A normalisation that would see one value: depth 2 halves images to a quarter


def check_norm(shapes_dir: Path, spec: ModelSpec, config: TrainConfig, crop_px: int | None = 4) -> None:
    """Check as the stage does, and take a step, which shows what PyTorch says of it."""
    reader = ShardReader(shapes_dir, read_index(shapes_dir).of_split("train"))
    augment, plan = AugmentConfig(crop_px=crop_px), config.plan(reader, spec.class_map, epoch=0)
    loader = LaneLoader(reader, spec.class_map, augment, seed=0)
    refused: Exception | None = None
    try:
        config.check_norm(spec, augment, reader, plan)
    except RecipeError as error:
        refused = error
    trainer = Trainer(spec, config, LaneTree(lanes=config.lanes))
    expected = pytest.raises(ValueError, match="^Expected more than 1 ") if refused else nullcontext()
    with closing(loader.steps(plan, epoch=0, lanes=range(config.lanes))) as steps, expected:
        for batches in steps:
            trainer.step_at(batches, 1e-9)
    if refused:
        raise refused


@pytest.mark.parametrize(
    ("model", "train", "crop_px"),
    [
        ({"norm": "batch"}, {"lanes": 4, "samples_per_lane": 1}, 4),
        ({"norm": "batch"}, {"lanes": 4, "samples_per_lane": 1}, 3),
        ({"norm": "batch"}, {"lanes": 2, "samples_per_lane": 2, "accumulate": 2}, 4),
        # 13 samples in 4 lanes: 3 each, of which the last step takes one.
        ({"norm": "batch"}, {"lanes": 4, "samples_per_lane": 2}, 4),
        ({"norm": "batch"}, {"lanes": 1, "samples_per_lane": 1, "exact": False}, 4),
        ({"norm": "batch", "depth": 5, "residual": True}, {"lanes": 4, "samples_per_lane": 1}, None),
    ],
)
def test_a_norm_that_would_see_one_value_is_refused(
    shapes_dir: Path, make_spec: Callable[..., ModelSpec], make_config: Callable[..., TrainConfig],
    model: dict[str, Any], train: dict[str, Any], crop_px: int | None,
) -> None:  # fmt: skip
    with pytest.raises(RecipeError, match=r"^model.norm: batch: images of "):
        check_norm(shapes_dir, make_spec(**model), make_config(**train), crop_px)


@pytest.mark.parametrize(
    ("model", "train", "crop_px"),
    [
        ({"norm": "batch"}, {"lanes": 4, "samples_per_lane": 1}, 5),
        ({"norm": "batch"}, {"lanes": 4, "samples_per_lane": 3}, 4),
        ({"norm": "batch"}, {"lanes": 4, "samples_per_lane": 1, "exact": False}, 4),
        ({"norm": "batch", "padding": "none"}, {"lanes": 4, "samples_per_lane": 1}, 4),
        ({"norm": "instance", "padding": "none"}, {"lanes": 4, "samples_per_lane": 1}, 4),
        ({"norm": "instance"}, {"lanes": 4, "samples_per_lane": 1}, 4),
        ({"norm": "group"}, {"lanes": 4, "samples_per_lane": 1}, 4),
        ({"norm": "none"}, {"lanes": 4, "samples_per_lane": 1}, 1),
    ],
)
def test_a_norm_that_sees_more_is_not(
    shapes_dir: Path, make_spec: Callable[..., ModelSpec], make_config: Callable[..., TrainConfig],
    model: dict[str, Any], train: dict[str, Any], crop_px: int | None,
) -> None:  # fmt: skip
    check_norm(shapes_dir, make_spec(**model), make_config(**train), crop_px)


def test_what_helps_a_norm_is_told(
    shapes_dir: Path, make_spec: Callable[..., ModelSpec], make_config: Callable[..., TrainConfig]
) -> None:
    with pytest.raises(RecipeError) as caught:
        check_norm(shapes_dir, make_spec(norm="batch"), make_config(samples_per_lane=1))
    assert str(caught.value) == (
        "model.norm: batch: images of 4x4 pixels have one pixel left at depth 2, and a pass of one image has one value to "
        "normalise. Lower model.depth, train on larger crops or images, take more samples a pass (train.samples_per_lane, "
        "train.accumulate), or choose norm group."
    )
    with pytest.raises(RecipeError) as caught:
        check_norm(shapes_dir, make_spec(norm="batch", stem_stride=2), make_config(samples_per_lane=1), 8)
    assert str(caught.value) == (
        "model.norm: batch: images of 8x8 pixels have one pixel left at depth 2 behind a stem of stride 2, 8 pixels a side, "
        "and a pass of one image has one value to normalise. Lower model.depth or model.stem_stride, train on larger crops "
        "or images, take more samples a pass (train.samples_per_lane, train.accumulate), or choose norm group."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "train.seed: -1: must not be negative."),
        ({"seed": 2**63}, "train.seed: 9223372036854775808: must be a number below 9223372036854775808."),
        ({"weight_decay": math.nan}, "train.weight_decay: nan: must be a number below 9223372036854775808."),
    ],
)
def test_a_number_out_of_range_is_told_with_its_bound(
    make_config: Callable[..., TrainConfig], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        make_config(**changes)
    assert str(caught.value) == message
