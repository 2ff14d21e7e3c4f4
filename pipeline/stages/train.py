"""Stage 5: shards -> the model that is best on validation, trained by Ray Train's workers."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline import cluster, identity, storage, tracking
from pipeline.checkpoints import Checkpoints
from pipeline.command import note_seconds
from pipeline.lineage import data_state, git_state
from pipeline.params import RECIPE, flatten, load_section
from pipeline.pictures import as_rgb, fit, grid, paint_mask, write_picture
from pipeline.placement import Placement, read_placement
from pipeline.public_text import public
from pipeline.shard_places import ShardPlaces, find_shards
from pipeline.training_run import TrainingRun
from pipeline.watch import Watch
from pipeline.worker import read_recipe, read_weights, train_worker
from unet_core.checkpoint import MANIFEST_NAME, TrainState, read_model, weights_hash, write_model
from unet_core.errors import StorageError, TrainingError
from unet_core.index import ShardIndex, read_index
from unet_core.inference import predict_logits, predict_mask
from unet_core.loader import LaneLoader
from unet_core.model import ModelConfig, ModelSpec
from unet_core.plan import EpochPlan, lanes_of_workers
from unet_core.reader import ShardReader
from unet_core.splits import Split
from unet_core.train_config import TrainConfig, is_over
from unet_core.trainer import has_native_bfloat16, make_network
from unet_core.transforms import AugmentConfig

log = logging.getLogger(__name__)


def run(*, shards: Path, model: Path, metrics: Path, curves: Path, validation: Path, examples: Path) -> None:
    """Train to the end, or go on with an unfinished training of the same recipe, data and code."""
    index = read_index(shards)
    spec, config, augment = read_recipe(index)
    placement = read_placement()
    if other := identity.say_other_pins(placement.root):
        # No error: `unet reproduce` trains with what is installed, and says so.
        log.warning("%s. Run `make install`", other)
    if placement.workers is not None:
        lanes_of_workers(lanes=config.lanes, workers=placement.workers.most)
    # Ray takes seconds to start: meanwhile the recipe is tried, and MLflow makes its store.
    least = placement.workers.least if placement.workers else 1
    with cluster.cluster(placement, least * config.threads_per_worker) as wait_for_cluster:
        plan = _check_early(index, shards, spec, config, augment)
        places = find_shards(shards, index, placement)
        made_by = training_inputs(shards)
        training = training_key(made_by)
        work_dir = placement.state_dir / "training" / training
        root = storage.join(placement.checkpoints, training) if placement.checkpoints else f"{work_dir}/checkpoints"
        checkpoints = Checkpoints(root=root, made_by=made_by)
        checkpoints.try_place()
        _tell_of_unused(work_dir / "checkpoints", root)
        client = tracking.connect(placement.tracking_uri, placement.experiment)
        params = flatten({**asdict(config), **asdict(spec.config)})
        run_ = TrainingRun(client, training=training, params=params)
        watch = Watch(run_, config, plan)
        # Before training: what is committed meanwhile did not make the model.
        begun = identity.begin(placement.root, shards)
        lineage = {**git_state(placement.root), **data_state(shards), **identity.tags(begun)}
        try:
            wait_for_cluster()
            _train(placement, (spec, config, augment), (index, places), work_dir, checkpoints, watch)
            _check_unchanged(made_by, training_inputs(shards))
            state = _final_state(checkpoints, config)
            write_model(model, spec, state.best_weights)
            watch.complete(state.scores)
            watch.write(metrics, curves, validation)
            _write_examples(examples, model, ShardReader(shards, index.of_split("val")))
            # The file in the working tree may have changed since.
            recipe = work_dir / RECIPE.name
            recipe.write_text(begun.recipe, encoding="utf-8")
            run_.log_files([metrics, curves, validation, examples, recipe])
            proof = work_dir / identity.IDENTITY_NAME
            # Only now: for a million samples an epoch's takes a quarter of a second, before the first step.
            plans = identity.plan_hashes(shards, config)
            run_.log_files([identity.finish(begun, proof, plans=plans, model=model, metrics=metrics)])
            run_.finish(model, {**lineage, tracking.WORKERS_TAG: "; ".join(watch.worker_history)})
        except BaseException:
            run_.fail()
            raise
        finally:
            watch.close()
    _remove_remains(root, str(work_dir))
    note_seconds(placement.timings, "training", watch.seconds)
    log.info("train: %s, weights %s", watch.summary(), weights_hash(model)[:12])


def training_inputs(shards: Path) -> dict[str, Any]:
    """All that decides the result, by name: values of the recipe, index of shards, code, and versions of libraries."""
    sections = {name: asdict(load_section(name, dict_type)) for name, dict_type in _SECTIONS.items()}
    return {**flatten(sections), **data_state(shards), **identity.host_state()}


def training_key(made_by: Mapping[str, Any]) -> str:
    """The name of the training that these inputs decide."""
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:32]


def _check_unchanged(began: Mapping[str, Any], ended: Mapping[str, Any]) -> None:
    """DVC records what lies there when the stage ends: it must be what the model was made of."""
    changed = [
        f"{name} was {began.get(name)}, is {ended.get(name)}" for name in began if began[name] != ended.get(name)
    ]
    if changed:
        raise TrainingError(
            f"changed while the training ran: {'; '.join(changed)}. Put it back and run again, which takes the ended "
            "training; or run again as it is now, which trains anew."
        )


_SECTIONS: Mapping[str, Any] = {"train": TrainConfig, "model": ModelConfig, "augment": AugmentConfig}


def _check_early(
    index: ShardIndex, shards: Path, spec: ModelSpec, config: TrainConfig, augment: AugmentConfig
) -> EpochPlan:
    """Find mistakes of the recipe before a cluster starts, and give the first epoch's plan."""
    config.make_loss(spec)
    check_classes(index, config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.initial_weights is not None or spec.config.encoder is not None:
        make_network(spec, config, device)
    train = ShardReader(shards, index.of_split("train"))
    plan = config.plan(train, spec.class_map, epoch=0)
    config.check_norm(spec, augment, train, plan)
    # One step's batches, so that a transform that can't work is found now.
    ShardReader(shards, index.shards).check_files()
    border = config.read_border_weight(spec.class_map)
    loader = LaneLoader(train, spec.class_map, augment, seed=config.seed, border=border)
    next(loader.steps(plan, epoch=0, lanes=range(1)))
    resting = "1 sample rests" if plan.num_resting == 1 else f"{plan.num_resting} samples rest"
    log.info("train: %d epochs of %d steps; %s in each epoch", config.epochs, plan.num_steps, resting)
    native = has_native_bfloat16(device)
    if config.precision == "bfloat16" and not native:
        log.warning("this processor has no native bfloat16 and emulates it slowly: train.precision: float32 is faster")
    if config.precision == "float32" and native:
        log.info("this processor has native bfloat16: train.precision: bfloat16 is faster here")
    return plan


def check_classes(index: ShardIndex, config: TrainConfig) -> None:
    """Refuse splits whose masks are empty of all that is scored: after hours there would be no score, or a void one."""
    scored = [index.class_map.names[number] for number in index.class_map.scored]
    needed: tuple[Split, ...] = ("train", "val") if config.select_by == "dice" else ("train",)
    for split in needed:
        pixels = index.class_pixels(split)
        if not any(pixels[name] for name in scored):
            raise TrainingError(
                f"no scored class occurs in {split}: {', '.join(scored)}. Look at reports/data.html, and correct the "
                "masks."
            )
    for name in scored:
        if not index.class_pixels("train")[name]:
            log.warning("train: no pixel of the training images is %s: it can't be learnt.", name)


def _train(
    placement: Placement,
    recipe: tuple[ModelSpec, TrainConfig, AugmentConfig],
    data: tuple[ShardIndex, ShardPlaces],
    work_dir: Path,
    checkpoints: Checkpoints,
    watch: Watch,
) -> None:
    config = recipe[1]
    group = cluster.choose_group(placement, lanes=config.lanes, threads=config.threads_per_worker)
    log.info("train: %s each", cluster.say_size(group.least, group.most, group.threads))
    options = {
        "root": str(placement.root),
        "index": data[0],
        "places": data[1],
        "checkpoints": checkpoints,
        "recipe": recipe,
        "weights": read_weights(recipe[0], config),
        "processor": identity.processor(),
        "loader_threads": placement.loader_threads,
        "use_gpu": group.use_gpu,
    }
    try:
        cluster.train_group(train_worker, options, group, work_dir=work_dir, on_report=watch.on_report)
    finally:
        if watch.failure is not None:
            # Whatever Ray says of it, this is the cause.
            raise TrainingError(watch.failure)


def _final_state(checkpoints: Checkpoints, config: TrainConfig) -> TrainState:
    """How the training ended; TrainingError where the newest whole checkpoint is of a time before."""
    found = storage.patiently(checkpoints.find_newest)
    if found is None:
        raise TrainingError(f"training left no checkpoint: {public(checkpoints.root)}. Train again.")
    state = found.state
    if not is_over(config, state.position.epoch, state.validations_since_best):
        newest = public(storage.join(checkpoints.root, found.name))
        why = found.warnings[0] if found.warnings else f"the newest checkpoint is {newest}."
        raise TrainingError(f"the training's last state is lost: {why} Train again: it goes on from there.")
    return state


def _tell_of_unused(local: Path, root: str) -> None:
    """Warn of checkpoints in the working tree that the training does not go on from."""
    if root != str(local) and any(local.glob(f"*/{MANIFEST_NAME}")):
        log.warning(
            "train: checkpoints of this training lie in %s too, and are not used: UNET_CHECKPOINTS names another "
            "place. Stop and unset it to go on from them.",
            local,
        )


def _remove_remains(*places: str) -> None:
    """Empty what an ended training no longer needs. It has ended well, even where that can't be done."""
    for place in places:
        try:
            storage.patiently(partial(storage.remove_all, place))
        except StorageError as error:
            log.warning("train: remains of the ended training can't be removed: %s Empty %s.", error, public(place))


def _write_examples(path: Path, model_dir: Path, val: ShardReader) -> None:
    """Image, true mask and prediction of a few validation images, side by side."""
    model, spec = read_model(model_dir)
    rows = []
    for number in range(min(4, len(val))):
        sample = val.read(number)
        predicted = predict_mask(predict_logits(model, spec, sample.image), spec)
        masks = [paint_mask(mask, spec.class_map) for mask in (sample.mask, predicted)]
        rows.append([fit(as_rgb(sample.image)), *[fit(mask) for mask in masks]])
    write_picture(path, grid(rows))
