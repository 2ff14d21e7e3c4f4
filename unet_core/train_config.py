"""Recipe section `train`, and the learning rate of each step that follows from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from unet_core.border import BorderWeight
from unet_core.deep_supervision import HeadsLoss, supervised_loss
from unet_core.errors import RecipeError
from unet_core.losses import PIXEL_LOSSES, weighted_loss, weights_from_pixels
from unet_core.model_config import ModelSpec, Precision
from unet_core.plan import EpochPlan, Oversampling, plan_epoch
from unet_core.reader import ShardReader
from unet_core.samples import ClassMap
from unet_core.transforms import AugmentConfig

#: Of DeepLab (Chen et al. 2017).
POLY_POWER = 0.9
#: One cycle (Smith and Topin 2018) as PyTorch has it: the share of steps in which the rate rises, and by what its
#: highest value is divided in the first and the last step.
CYCLE_RISE, CYCLE_FIRST, CYCLE_LAST = 0.3, 25.0, 25e4


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Recipe section `train`: everything about training that may change its result."""

    seed: int
    epochs: int
    lanes: int
    """Parallel streams of samples, a power of two: the largest number of workers that can ever train."""
    samples_per_lane: int
    """Samples that a step takes from each lane; a batch has lanes * samples_per_lane."""
    block_shards: int
    """Samples are shuffled among this many neighbouring shards."""
    exact: bool
    """The same bits for every number of workers; false: DDP's own sums, equal to rounding, in one pass a worker."""
    threads_per_worker: int
    """Threads of a worker's arithmetic; part of the recipe, since sums inside an operation follow it."""
    precision: Precision
    """float16 scales the loss as it needs, and is for GPUs without bfloat16."""
    channels_last: bool
    """Memory order of images and weights; faster on most processors."""
    optimizer: Literal["adamw", "adam", "sgd"]
    """sgd has Nesterov's momentum of 0.9."""
    learning_rate: float
    """At its highest, after warm-up."""
    weight_decay: float
    schedule: Literal["constant", "cosine", "poly", "one_cycle", "step", "plateau"]
    """How the learning rate falls after warm-up (docs/training.md)."""
    warmup_steps: int
    """Steps in which the learning rate rises from 0."""
    decay_epochs: int | None
    """For schedule step: epochs after which the learning rate is multiplied by decay_factor, again and again."""
    loss: Mapping[str, Any]
    """Name of a loss -> weight, or weight and arguments (losses.py)."""
    class_weights: Literal["none", "inverse", "median"] | Sequence[float] = "none"
    """How much each class counts in the losses: all alike, by its share of the training pixels, or as listed."""
    gradient_clip: float | None
    """Largest norm of the gradient; null leaves it alone."""
    validate_every_epochs: int
    checkpoint_every_steps: int | None
    """Extra checkpoints between validations; null makes one after each validation only."""
    select_by: Literal["dice", "loss"]
    """What decides on validation which weights are the best: highest mean Dice or lowest loss."""
    ema_decay: float | None = None
    """Validate and keep the exponential moving average of the weights with this decay per step; null: the weights."""
    patience: int | None = None
    """Validations in a row without a better score after which training ends; null: never before the last epoch."""
    initial_weights: Mapping[str, str] | None = None
    """path and sha256 of weights (safetensors) that training begins with; null: random ones."""
    border_weight: Mapping[str, float] | None = None
    """w0 and sigma_px: how much more background counts between cells that lie close together (border.py)."""
    deep_supervision_weights: Sequence[float] | None = None
    """How much each head of model.deep_supervision counts, the prediction's first; null: 1, 1/2, 1/4 ..."""
    accumulate: int = 1
    """Passes in which a lane's samples run one after the other, a power of two: more samples a step than memory holds
    at once."""
    oversample: Mapping[str, float] = field(default_factory=dict)
    """Class -> the share of an epoch's samples that are drawn again among those that have it, in others' place."""
    decay_factor: float = 0.1
    """For schedules step and plateau: what the learning rate is multiplied by."""
    decay_validations: int | None = None
    """For schedule plateau: validations in a row without a better score after which the learning rate falls."""

    compile: bool = False
    """Train by a compiled network (torch.compile): other rounding, some time before the first step, faster steps."""

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.lanes & (self.lanes - 1):
            raise RecipeError(f"train.lanes: {self.lanes} is not a power of two. Choose 1, 2, 4, 8 ...")
        self._check_schedule()
        for name in ("epochs", "samples_per_lane", "block_shards", "threads_per_worker", "validate_every_epochs"):
            if getattr(self, name) < 1:
                raise RecipeError(f"train.{name}: {getattr(self, name)}: must be at least 1.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise RecipeError(f"train.ema_decay: {self.ema_decay}: must be between 0 and 1, or null.")
        for name in ("checkpoint_every_steps", "decay_epochs", "decay_validations", "patience"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise RecipeError(f"train.{name}: {getattr(self, name)}: must be at least 1, or null.")
        for name in ("seed", "warmup_steps", "weight_decay"):
            value = getattr(self, name)
            if not 0 <= value < 2**63:
                wanted = "not be negative" if value < 0 else f"be a number below {2**63}"
                raise RecipeError(f"train.{name}: {value}: must {wanted}.")
        if not 0 < self.learning_rate < math.inf:
            raise RecipeError(f"train.learning_rate: {self.learning_rate}: must be above 0.")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise RecipeError(f"train.gradient_clip: {self.gradient_clip}: must be above 0, or null.")
        self._check_initial_weights()
        self._check_samples()

    def _check_initial_weights(self) -> None:
        if self.initial_weights is not None and set(self.initial_weights) != {"path", "sha256"}:
            raise RecipeError(
                f"train.initial_weights: {', '.join(self.initial_weights) or 'nothing'} given. Give path and sha256, "
                "which `sha256sum FILE` prints."
            )

    def _check_samples(self) -> None:
        if self.accumulate < 1 or self.accumulate & (self.accumulate - 1) or self.accumulate > self.samples_per_lane:
            raise RecipeError(
                f"train.accumulate: {self.accumulate}: must be a power of two, and at most train.samples_per_lane "
                f"({self.samples_per_lane})."
            )
        if any(not 0 < share <= 1 for share in self.oversample.values()) or sum(self.oversample.values()) > 1:
            raise RecipeError(
                f"train.oversample: {dict(self.oversample)}: shares are above 0, and their sum is at most 1."
            )

    def _check_schedule(self) -> None:
        if self.schedule == "step" and not self.decay_epochs:
            raise RecipeError("train.schedule: step needs train.decay_epochs, the epochs between two decays.")
        if self.schedule == "plateau" and not self.decay_validations:
            raise RecipeError("train.schedule: plateau needs train.decay_validations, the validations that it waits.")
        for name, schedule in (("decay_epochs", "step"), ("decay_validations", "plateau")):
            if getattr(self, name) and self.schedule != schedule:
                raise RecipeError(
                    f"train.{name}: {getattr(self, name)}: schedule {self.schedule} does not use it. Set it to null, "
                    f"or train.schedule: {schedule}."
                )
        if not 0 < self.decay_factor < 1:
            raise RecipeError(f"train.decay_factor: {self.decay_factor}: must be between 0 and 1.")
        if self.schedule == "one_cycle" and self.warmup_steps:
            raise RecipeError("train.schedule: one_cycle has a warm-up of its own. Set train.warmup_steps: 0.")

    def with_class_weights(self, class_pixels: Mapping[str, int]) -> "TrainConfig":
        """The same with the numbers that `class_weights` stands for, of so many training pixels of each class."""
        if self.class_weights not in ("inverse", "median"):
            return self
        return replace(self, class_weights=weights_from_pixels(self.class_weights, class_pixels))

    def make_loss(self, spec: ModelSpec) -> HeadsLoss:
        """The loss that these losses and weights make; RecipeError where they do not fit the masks or the network."""
        weights = None if self.class_weights == "none" else self.class_weights
        assert not isinstance(weights, str), "with_class_weights comes first"
        loss = weighted_loss(self.loss, spec.class_map, weights)
        return supervised_loss(loss, spec.config, self.deep_supervision_weights)

    def read_border_weight(self, class_map: ClassMap) -> BorderWeight | None:
        """How borders between cells are weighted; RecipeError where masks or losses know no weights of pixels."""
        if self.border_weight is None:
            return None
        if not any(name in PIXEL_LOSSES for name in self.loss):
            raise RecipeError(
                f"train.border_weight: none of the losses weighs pixels: {', '.join(self.loss)}. Add one of "
                f"{', '.join(PIXEL_LOSSES)} to train.loss, or remove the weight."
            )
        return BorderWeight.of_recipe(self.border_weight, class_map)

    def oversampling(self, train: ShardReader, class_map: ClassMap) -> Oversampling | None:
        """What `oversample` asks of these shards; RecipeError for a class that they do not have."""
        for name in self.oversample:
            if name not in class_map.names:
                raise RecipeError(f"train.oversample: no such class: {name}. Choose from {', '.join(class_map.names)}.")
            if not any(shard.class_pixels[class_map.names.index(name)] for shard in train.shards):
                raise RecipeError(f"train.oversample: no pixel of the training images is {name}. Remove it.")
        shares = {class_map.names.index(name): share for name, share in self.oversample.items()}
        return Oversampling(shares=shares, presence=train.class_presence) if shares else None

    def plan(self, train: ShardReader, class_map: ClassMap, *, epoch: int) -> EpochPlan:
        """The order of an epoch over the training shards."""
        return plan_epoch(
            [shard.num_samples for shard in train.shards],
            seed=self.seed,
            epoch=epoch,
            lanes=self.lanes,
            samples_per_lane=self.samples_per_lane,
            block_shards=self.block_shards,
            oversampling=self.oversampling(train, class_map),
        )

    def check_norm(self, spec: ModelSpec, augment: AugmentConfig, train: ShardReader, plan: EpochPlan) -> None:
        """RecipeError where batch norm would see one pixel of one image in a pass: PyTorch refuses a single value."""
        # Without a crop, all images have one size.
        height = augment.crop_px or max(shard.heights[1] for shard in train.shards)
        width = augment.crop_px or max(shard.widths[1] for shard in train.shards)
        # Without padding, the image is mirrored to a larger one.
        has_one_pixel = max(height, width) <= spec.config.stride and spec.config.padding == "zeros"
        if spec.config.norm == "batch" and has_one_pixel and self._smallest_pass(plan) == 1:
            depth, stem = f"depth {spec.config.depth}", spec.config.stem_stride
            where = (
                depth if stem == 1 else f"{depth} behind a stem of stride {stem}, {spec.config.stride} pixels a side"
            )
            raise RecipeError(
                f"model.norm: batch: images of {height}x{width} pixels have one pixel left at {where}, and a pass of "
                f"one image has one value to normalise. Lower model.depth{' or model.stem_stride' * (stem > 1)}, train "
                "on larger crops or images, take more samples a pass (train.samples_per_lane, train.accumulate), or "
                "choose norm group."
            )

    def _smallest_pass(self, plan: EpochPlan) -> int:
        """Samples of the smallest forward pass of an epoch: its last step takes what is left."""
        full, last = self.samples_per_lane, plan.lane_size - (plan.num_steps - 1) * self.samples_per_lane
        # At once, a worker's lanes are one batch; how many it has is not known here, all at most.
        sizes = [size * (1 if self.exact else self.lanes) for size in ((last, full) if plan.num_steps > 1 else (last,))]
        return min(size // min(self.accumulate, 1 << (size.bit_length() - 1)) for size in sizes)


def _cosine(first: float, last: float, done: float) -> float:
    """From `first` to `last` along half a cosine."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * done))


def is_plateau(config: TrainConfig, validations_since_best: int) -> bool:
    """Whether the learning rate falls after the validation that made it so many without a better score."""
    if config.schedule != "plateau" or not validations_since_best:
        return False
    assert config.decay_validations is not None
    return validations_since_best % config.decay_validations == 0


def is_over(config: TrainConfig, num_epochs: int, validations_since_best: int) -> bool:
    """Whether training ends after so many epochs, or for want of a better score."""
    is_out_of_patience = config.patience is not None and validations_since_best >= config.patience
    return num_epochs >= config.epochs or is_out_of_patience


def learning_rate_at(step: int, config: TrainConfig, *, steps_per_epoch: int, num_decays: int = 0) -> float:
    """Learning rate of a step: a pure function, so that resuming needs no scheduler state but the `num_decays` that
    validation has made.
    """
    total = config.epochs * steps_per_epoch
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    match config.schedule:
        case "constant":
            return config.learning_rate
        case "cosine":
            return config.learning_rate * _cosine(1, 0, done)
        case "poly":
            return config.learning_rate * (1 - done) ** POLY_POWER
        case "one_cycle":
            peak = CYCLE_RISE * total - 1
            if step <= peak:
                return config.learning_rate * _cosine(1 / CYCLE_FIRST, 1, step / peak)
            return config.learning_rate * _cosine(1, 1 / CYCLE_LAST, (step - peak) / max(1, total - 1 - peak))
        case "step":
            assert config.decay_epochs is not None
            return config.learning_rate * config.decay_factor ** (step // steps_per_epoch // config.decay_epochs)
        case "plateau":
            return config.learning_rate * config.decay_factor**num_decays
