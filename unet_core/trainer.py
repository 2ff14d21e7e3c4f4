"""The training loop: batches in, reports out, stepping over lanes. Knows no Ray, no MLflow, no file layout.

A worker of a group and a plain process run the same loop; how many workers there are changes no result.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from unet_core.backward import AllAtOnce, Backward, LaneByLane
from unet_core.checkpoint import Position, TrainState, clone_weights
from unet_core.errors import RecipeError, TrainingError
from unet_core.loader import Batch, LaneLoader
from unet_core.losses import Loss, weighted_loss, weights_from_pixels
from unet_core.model import ModelSpec, UNet
from unet_core.plan import EpochPlan, plan_epoch
from unet_core.reader import ShardReader
from unet_core.reduction import LaneTree
from unet_core.samples import ClassMap
from unet_core.validation import Validation, score_images, summarise

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
    precision: Literal["float32", "bfloat16"]
    channels_last: bool
    """Memory order of images and weights; faster on most processors."""
    optimizer: Literal["adamw", "adam", "sgd"]
    """sgd has Nesterov's momentum of 0.9."""
    learning_rate: float
    """At its highest, after warm-up."""
    weight_decay: float
    schedule: Literal["constant", "cosine", "poly", "one_cycle", "step"]
    """How the learning rate falls after warm-up (docs/training.md)."""
    warmup_steps: int
    """Steps in which the learning rate rises from 0."""
    decay_epochs: int | None
    """For schedule step: epochs after which the learning rate is multiplied by 0.1, again and again."""
    loss: Mapping[str, Any]
    """Name of a loss -> weight, or weight and arguments (losses.py)."""
    class_weights: Literal["none", "inverse", "median"] | Sequence[float]
    """How much each class counts in the losses: all alike, by its share of the training pixels, or as listed."""
    gradient_clip: float | None
    """Largest norm of the gradient; null leaves it alone."""
    validate_every_epochs: int
    checkpoint_every_steps: int | None
    """Extra checkpoints between validations; null makes one after each validation only."""
    select_by: Literal["dice", "loss"]
    """What decides on validation which weights are the best: highest mean Dice or lowest loss."""

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.lanes & (self.lanes - 1):
            raise RecipeError(f"train.lanes: {self.lanes} is not a power of two. Choose 1, 2, 4, 8 ...")
        if self.schedule == "step" and not self.decay_epochs:
            raise RecipeError("train.schedule: step needs train.decay_epochs, the epochs between two decays.")
        if self.schedule == "one_cycle" and self.warmup_steps:
            raise RecipeError("train.schedule: one_cycle has a warm-up of its own. Set train.warmup_steps: 0.")
        for name in ("epochs", "samples_per_lane", "block_shards", "threads_per_worker", "validate_every_epochs"):
            if getattr(self, name) < 1:
                raise RecipeError(f"train.{name}: {getattr(self, name)}: must be at least 1.")
        for name in ("checkpoint_every_steps", "decay_epochs"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise RecipeError(f"train.{name}: {getattr(self, name)}: must be at least 1, or null.")
        for name in ("seed", "warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < 2**63:
                raise RecipeError(f"train.{name}: {getattr(self, name)}: must not be negative.")
        if not 0 < self.learning_rate < math.inf:
            raise RecipeError(f"train.learning_rate: {self.learning_rate}: must be above 0.")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise RecipeError(f"train.gradient_clip: {self.gradient_clip}: must be above 0, or null.")

    def with_class_weights(self, class_pixels: Mapping[str, int]) -> "TrainConfig":
        """The same with the numbers that `class_weights` stands for, of so many training pixels of each class."""
        if self.class_weights not in ("inverse", "median"):
            return self
        return replace(self, class_weights=weights_from_pixels(self.class_weights, class_pixels))

    def make_loss(self, class_map: ClassMap) -> Loss:
        """The loss that these losses and weights make; RecipeError where they do not fit the masks."""
        weights = None if self.class_weights == "none" else self.class_weights
        assert not isinstance(weights, str), "with_class_weights comes first"
        return weighted_loss(self.loss, class_map, weights)

    def plan(self, shard_sizes: Sequence[int], *, epoch: int) -> EpochPlan:
        """The order of an epoch over shards with so many samples."""
        return plan_epoch(
            shard_sizes,
            seed=self.seed,
            epoch=epoch,
            lanes=self.lanes,
            samples_per_lane=self.samples_per_lane,
            block_shards=self.block_shards,
        )


def _cosine(first: float, last: float, done: float) -> float:
    """From `first` to `last` along half a cosine."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * done))


def learning_rate_at(step: int, config: TrainConfig, *, steps_per_epoch: int) -> float:
    """Learning rate of a step: a pure function, so that resuming needs no scheduler state."""
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
            return config.learning_rate * 0.1 ** (step // steps_per_epoch // config.decay_epochs)


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What a step leaves behind."""

    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the loop tells the outside, the same on every rank."""

    position: Position
    num_steps: int
    """Steps of the whole training."""
    steps: tuple[StepRecord, ...]
    """Since the last report."""
    resting: int
    """Samples that this epoch's plan leaves out."""
    validation: Validation | None
    checkpoint: TrainState | None
    """Present when the state should be kept."""


class Trainer:
    """One worker's part of a training."""

    #: Steps between two reports; only how often progress is seen depends on it.
    report_every_steps = 10

    def __init__(
        self, spec: ModelSpec, config: TrainConfig, tree: LaneTree, device: torch.device | None = None
    ) -> None:
        self.spec = spec
        self.config = config
        self.tree = tree
        self.device = device or torch.device("cpu")
        self.loss = config.make_loss(spec.class_map)
        torch.manual_seed(config.seed)
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = UNet(spec).to(device=self.device, memory_format=memory_format)  # type: ignore[call-overload]
        self.optimizer = _make_optimizer(self.model, config)
        self.position = Position()
        self.best_score: float | None = None
        self.best_weights = clone_weights(self.model)
        make_backward = LaneByLane if config.exact else AllAtOnce
        self._backward: Backward = make_backward(self.model, spec, self.loss, tree, self.device, config.seed)

    def restore(self, state: TrainState) -> None:
        """Go on where a checkpoint stands."""
        self.model.load_state_dict(state.last_weights)
        # A copy: the optimizer takes the tensors that it is given, and changes them.
        self.optimizer.load_state_dict(copy.deepcopy(dict(state.optimizer)))
        self.position = state.position
        self.best_score = state.best_score
        self.best_weights = dict(state.best_weights)

    def fit(self, loader: LaneLoader, val: ShardReader, shard_sizes: list[int]) -> Iterator[Report]:
        """Train to the end of the last epoch; every rank gets the same reports."""
        config = self.config
        if not len(val):
            raise TrainingError("no validation images: the shards have none in val. Raise split.val_fraction.")
        while self.position.epoch < config.epochs:
            plan = config.plan(shard_sizes, epoch=self.position.epoch)
            yield from self._run_epoch(loader, plan, val)

    def _run_epoch(self, loader: LaneLoader, plan: EpochPlan, val: ShardReader) -> Iterator[Report]:
        config, epoch = self.config, self.position.epoch
        records: list[StepRecord] = []
        batches = loader.steps(plan, epoch=epoch, lanes=self.tree.lanes, first=self.position.step_in_epoch)
        for lane_batches in batches:
            records.append(self._step(lane_batches, plan.num_steps))
            done = self.position
            self.position = Position(epoch=epoch, step_in_epoch=done.step_in_epoch + 1, step=done.step + 1)
            if self.position.step_in_epoch == plan.num_steps:
                break
            keep = self._checkpoint_is_due()
            if keep or len(records) >= self.report_every_steps:
                yield self._report(plan, records, None, keep=keep)
                records = []
        self.position = Position(epoch=epoch + 1, step=self.position.step)
        is_last = epoch + 1 == config.epochs
        validation = None
        if is_last or (epoch + 1) % config.validate_every_epochs == 0:
            validation = self._validate(val)
            if not math.isfinite(validation.loss):
                raise TrainingError(
                    f"the loss is not a number: validation after step {self.position.step - 1}: {validation.loss}. "
                    "Lower train.learning_rate, or set train.gradient_clip."
                )
            self._keep_best(validation)
        yield self._report(plan, records, validation, keep=self._checkpoint_is_due() or validation is not None)

    def _checkpoint_is_due(self) -> bool:
        every = self.config.checkpoint_every_steps
        return every is not None and self.position.step % every == 0

    def _report(
        self, plan: EpochPlan, records: list[StepRecord], validation: Validation | None, *, keep: bool
    ) -> Report:
        return Report(
            position=self.position,
            num_steps=self.config.epochs * plan.num_steps,
            steps=tuple(records),
            resting=plan.num_resting,
            validation=validation,
            checkpoint=self._state() if keep else None,
        )

    def _state(self) -> TrainState:
        last = clone_weights(self.model)
        return TrainState(
            position=self.position,
            best_score=self.best_score,
            best_weights=self.best_weights if self.best_score is not None else last,
            last_weights=last,
            # A copy: the optimizer goes on changing its own tensors.
            optimizer=copy.deepcopy(self.optimizer.state_dict()),
        )

    def _step(self, batches: list[Batch], steps_per_epoch: int) -> StepRecord:
        """One optimizer step."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        return self._update(self._backward.run(batches, self.position.step), batches, steps_per_epoch)

    def _update(self, loss: float, batches: list[Batch], steps_per_epoch: int) -> StepRecord:
        step = self.position.step
        if not math.isfinite(loss):
            keys = ", ".join(key for batch in batches for key in batch.keys)
            raise TrainingError(
                f"the loss is not a number: step {step}: {loss}; this worker's samples: {keys}. "
                "Lower train.learning_rate, or set train.gradient_clip."
            )
        rate = learning_rate_at(step, self.config, steps_per_epoch=steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.config.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        return StepRecord(step=step, loss=loss, learning_rate=rate)

    def _validate(self, val: ShardReader) -> Validation:
        self.model.eval()
        rows = score_images(
            self.model, self.spec, val, self.loss, numbers=range(self.tree.rank, len(val), self.tree.world_size)
        )
        if self.tree.world_size > 1:
            # Every row is filled by one rank and zero on the others, so this sum is exact in any order.
            rows = rows.to(self.device)
            dist.all_reduce(rows)
        return summarise(rows.cpu(), self.spec)

    def _keep_best(self, validation: Validation) -> None:
        score = -validation.loss if self.config.select_by == "loss" else validation.dice
        if score is not None and (self.best_score is None or score > self.best_score):
            self.best_score = score
            self.best_weights = clone_weights(self.model)


def _make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    weights, rate, decay = model.parameters(), config.learning_rate, config.weight_decay
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(weights, lr=rate, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(weights, lr=rate, weight_decay=decay)
        case "sgd":
            return torch.optim.SGD(weights, lr=rate, weight_decay=decay, momentum=0.9, nesterov=True)


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the processor computes in bfloat16 itself; elsewhere it is emulated, correct and slow."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
