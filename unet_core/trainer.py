"""The training loop: batches in, reports out, stepping over lanes. Knows no Ray, no MLflow, no file layout.

A worker of a group and a plain process run the same loop; how many workers there are changes no result.
"""

import copy
import json
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from unet_core.backward import AllAtOnce, Backward, LaneByLane
from unet_core.checkpoint import Position, Scores, TrainState, ValidationRecord, clone_weights
from unet_core.encoders import EncoderUNet, build_network
from unet_core.errors import RecipeError, TrainingError
from unet_core.initial_weights import read_encoder_weights, read_initial_weights
from unet_core.loader import Batch, LaneLoader
from unet_core.loss_scale import LossScale
from unet_core.model import ModelSpec, Network
from unet_core.plan import EpochPlan
from unet_core.reader import ShardReader
from unet_core.reduction import LaneTree
from unet_core.train_config import TrainConfig, is_over, is_plateau, learning_rate_at
from unet_core.validation import score_images, summarise

#: What may help where numbers grow out of hand.
REMEDY = "Lower train.learning_rate, or set train.gradient_clip."


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What a step leaves behind."""

    step: int
    loss: float
    learning_rate: float
    is_skipped: bool = False
    """The gradient overflowed float16: no weight changed, the next step scales its loss less."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the loop tells the outside, the same on every rank."""

    position: Position
    steps: tuple[StepRecord, ...]
    """Since the last report."""
    validation: ValidationRecord | None
    checkpoint: TrainState | None
    """Present when the state should be kept."""


class Trainer:
    """One worker's part of a training."""

    report_every_steps = 1
    """Steps to the next report, the same on every rank; only how often progress is seen depends on it."""

    def __init__(
        self, spec: ModelSpec, config: TrainConfig, tree: LaneTree, device: torch.device | None = None
    ) -> None:
        self.spec = spec
        self.config = config
        self.tree = tree
        self.device = device or torch.device("cpu")
        self.loss = config.make_loss(spec)
        self.model = make_network(spec, config, self.device)
        self.optimizer = make_optimizer(self.model, config)
        self.position = Position()
        self.best_score: float | None = None
        self.best_weights = clone_weights(self.model)
        self.validations_since_best = 0
        self.num_decays = 0
        self.loss_scale = LossScale() if config.precision == "float16" else None
        self._losses: list[float] = []
        self._rates: list[float] = []
        self._validations: list[ValidationRecord] = []
        self.average = WeightAverage(self.model, config.ema_decay) if config.ema_decay is not None else None
        make_backward = LaneByLane if config.exact else AllAtOnce
        self._backward: Backward = make_backward(self.model, spec, self.loss, tree, self.device, config)

    def restore(self, state: TrainState) -> None:
        """Go on where a checkpoint stands."""
        self.model.load_state_dict(state.last_weights)
        # A copy: the optimizer takes the tensors that it is given, and changes them.
        self.optimizer.load_state_dict(copy.deepcopy(dict(state.optimizer)))
        self.position = state.position
        self.best_score = state.best_score
        self.best_weights = dict(state.best_weights)
        self.validations_since_best = state.validations_since_best
        self.num_decays = state.num_decays
        self.loss_scale = state.loss_scale
        self._losses, self._rates = list(state.scores.losses), list(state.scores.learning_rates)
        self._validations = list(state.scores.validations)
        if self.average is not None and state.averaged_weights is not None:
            self.average.model.load_state_dict(state.averaged_weights)

    def fit(self, loader: LaneLoader, val: ShardReader) -> Iterator[Report]:
        """Train to the end of the last epoch; every rank gets the same reports."""
        config = self.config
        if not len(val):
            raise TrainingError("no validation images: the shards have none in val. Raise split.val_fraction.")
        while not is_over(config, self.position.epoch, self.validations_since_best):
            plan = config.plan(loader.reader, self.spec.class_map, epoch=self.position.epoch)
            yield from self._run_epoch(loader, plan, val)

    def _run_epoch(self, loader: LaneLoader, plan: EpochPlan, val: ShardReader) -> Iterator[Report]:
        config, epoch = self.config, self.position.epoch
        records: list[StepRecord] = []
        batches = loader.steps(plan, epoch=epoch, lanes=self.tree.lanes, first=self.position.step_in_epoch)
        # Closed: after an error its traceback would keep the loader's threads alive.
        with closing(batches):
            for lane_batches in batches:
                records.append(self.step(lane_batches, steps_per_epoch=plan.num_steps))
                self._losses.append(records[-1].loss)
                self._rates.append(records[-1].learning_rate)
                done = self.position
                self.position = Position(epoch=epoch, step_in_epoch=done.step_in_epoch + 1, step=done.step + 1)
                if self.position.step_in_epoch == plan.num_steps:
                    break
                keep = self._checkpoint_is_due()
                if keep or len(records) >= self.report_every_steps:
                    yield self._report(records, None, keep=keep)
                    records = []
        self.position = Position(epoch=epoch + 1, step=self.position.step)
        is_last = epoch + 1 == config.epochs
        validation = None
        if is_last or (epoch + 1) % config.validate_every_epochs == 0:
            validation = self._validate(val)
            self._validations.append(validation)
            self._keep_best(validation)
        yield self._report(records, validation, keep=self._checkpoint_is_due() or validation is not None)

    def _checkpoint_is_due(self) -> bool:
        every = self.config.checkpoint_every_steps
        return every is not None and self.position.step % every == 0

    def _report(self, records: list[StepRecord], validation: ValidationRecord | None, *, keep: bool) -> Report:
        return Report(
            position=self.position,
            steps=tuple(records),
            validation=validation,
            checkpoint=self.state() if keep else None,
        )

    def state(self) -> TrainState:
        """All that decides how the training goes on; between two steps, as at a report."""
        last = clone_weights(self.model)
        broken = [name for name, weights in last.items() if not weights.isfinite().all()]
        if broken:
            # Never into a checkpoint: nothing could go on from it.
            raise TrainingError(f"a weight is not a number: {broken[0]} after step {self.position.step - 1}. {REMEDY}")
        return TrainState(
            position=self.position,
            best_score=self.best_score,
            best_weights=self.best_weights if self.best_score is not None else last,
            last_weights=last,
            averaged_weights=clone_weights(self.average.model) if self.average is not None else None,
            validations_since_best=self.validations_since_best,
            num_decays=self.num_decays,
            loss_scale=self.loss_scale,
            # A copy: the optimizer goes on changing its own tensors.
            optimizer=copy.deepcopy(self.optimizer.state_dict()),
            scores=Scores(
                losses=tuple(self._losses),
                learning_rates=tuple(self._rates),
                validations=tuple(self._validations),
            ),
        )

    def step(self, batches: list[Batch], *, steps_per_epoch: int) -> StepRecord:
        """One optimizer step."""
        step = self.position.step
        rate = learning_rate_at(step, self.config, steps_per_epoch=steps_per_epoch, num_decays=self.num_decays)
        record = self.step_at(batches, rate)
        if self.average is not None and not record.is_skipped:
            self.average.take(self.model, step)
        return record

    def step_at(self, batches: list[Batch], rate: float) -> StepRecord:
        """Change the weights by the gradient of this worker's batches and those of all others.

        TrainingError, the same on every rank, where loss or gradient are not finite; in float16 a gradient that
        overflows is skipped, as long as the loss can be scaled less.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        scale, step = self.loss_scale, self.position.step
        loss = self._backward.run(batches, step, scale=scale.scale if scale else 1.0)
        if not math.isfinite(loss):
            raise self._broken("loss", loss, batches)
        norm = self._gradient_norm()
        is_finite = math.isfinite(norm)
        if scale is not None:
            self.loss_scale = scale.after_step(is_finite=is_finite)
        if not is_finite and (scale is None or scale.is_smallest):
            raise self._broken("gradient", norm, batches)
        if is_finite:
            self._change_weights(rate, norm)
        return StepRecord(step=step, loss=loss, learning_rate=rate, is_skipped=not is_finite)

    def _gradient_norm(self) -> float:
        """Norm of the gradient of all lanes, the same on every rank; it is without the loss's scale from here on."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if self.loss_scale is not None:
            torch._foreach_div_(gradients, self.loss_scale.scale)
        return float(nn.utils.get_total_norm(gradients))

    def _change_weights(self, rate: float, norm: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.config.gradient_clip is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.gradient_clip, torch.tensor(norm))
        self.optimizer.step()

    def _broken(self, what: str, value: float, batches: list[Batch]) -> TrainingError:
        """Names the samples of the lanes, of all workers, whose loss is not finite; else those of all lanes."""
        losses = self._backward.lane_losses
        lanes = [[*batch.keys] for batch, loss in zip(batches, losses, strict=True) if not loss.isfinite()]
        of_all = self.tree.gather_texts(json.dumps(lanes), self.device)
        if all(text == "[]" for text in of_all):
            of_all = self.tree.gather_texts(json.dumps([[*batch.keys] for batch in batches]), self.device)
        keys = ", ".join(key for text in of_all for lane in json.loads(text) for key in lane)
        return TrainingError(
            f"the {what} is not a number: step {self.position.step}: {value}; samples: {keys}. {REMEDY}"
        )

    def _validate(self, val: ShardReader) -> ValidationRecord:
        rows = score_images(
            self._model_to_keep().eval(),
            self.spec,
            val,
            self.loss,
            numbers=range(self.tree.rank, len(val), self.tree.world_size),
        )
        if self.tree.world_size > 1:
            # Every row is filled by one rank and zero on the others, so this sum is exact in any order.
            rows = rows.to(self.device)
            dist.all_reduce(rows)
        found = summarise(rows.cpu(), self.spec)
        if not math.isfinite(found.loss):
            first = val.entry(int((~rows[:, 0].isfinite()).nonzero()[0])).key
            raise TrainingError(
                f"the loss is not a number: validation after step {self.position.step - 1}: {found.loss}; "
                f"first at {first}. {REMEDY}"
            )
        return ValidationRecord(step=self.position.step - 1, epoch=self.position.epoch, **asdict(found))

    def _keep_best(self, validation: ValidationRecord) -> None:
        score = -validation.loss if self.config.select_by == "loss" else validation.dice
        self.validations_since_best += 1
        if score is not None and (self.best_score is None or score > self.best_score):
            self.best_score = score
            self.best_weights = clone_weights(self._model_to_keep())
            self.validations_since_best = 0
        self.num_decays += is_plateau(self.config, self.validations_since_best)

    def _model_to_keep(self) -> Network:
        return self.model if self.average is None else self.average.model


class WeightAverage:
    """The exponential moving average of a model's weights and buffers, each on its own: the same on every worker."""

    def __init__(self, model: Network, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def take(self, model: Network, step: int) -> None:
        """Move towards the weights after a step. The first steps count more: the average begins where they do."""
        decay = min(self._decay, (1 + step) / (10 + step))
        values = model.state_dict()
        for name, mean in self.model.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(values[name], 1 - decay)
            else:
                mean.copy_(values[name])


def make_network(spec: ModelSpec, config: TrainConfig, device: torch.device) -> Network:
    """The network that a training begins with; ModelError where weights that the recipe names do not fit it."""
    torch.manual_seed(config.seed)
    network = build_network(spec)
    if spec.config.encoder_weights is not None:
        if config.initial_weights is not None:
            raise RecipeError(
                "model.encoder_weights: train.initial_weights gives the encoder other weights. Set one of them to null."
            )
        assert isinstance(network, EncoderUNet)
        path, sha256 = Path(spec.config.encoder_weights["path"]), spec.config.encoder_weights["sha256"]
        network.encoder.load_state_dict(read_encoder_weights(network.encoder, path, sha256))
    if config.initial_weights is not None:
        path, sha256 = Path(config.initial_weights["path"]), config.initial_weights["sha256"]
        network.load_state_dict(read_initial_weights(network, path, sha256))
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    placed: Network = network.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    return placed


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that the recipe names."""
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
