"""What names a training and how it ends. Training itself, with Ray, is in tests/test_road.py."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import identity, storage
from pipeline.checkpoints import Checkpoints
from pipeline.params import load_section
from unet_core.checkpoint import Position, TrainState, clone_weights
from unet_core.errors import TrainingError
from unet_core.index import ShardEntry, ShardIndex
from unet_core.model import ModelConfig, ModelSpec, UNet
from unet_core.samples import ClassMap, ImageConfig
from unet_core.train_config import TrainConfig

pytestmark = pytest.mark.slow

SPEC = ModelSpec(
    config=ModelConfig(width=2, depth=1, norm="none", input_statistics="train"),
    images=ImageConfig(channels=1),
    class_map=ClassMap(kind="multiclass", classes={"background": 0, "cell": 255}, background="background"),
    mean=(0.5,),
    deviation=(0.5,),
    precision="float32",
)


def write_at(checkpoints: Checkpoints, step: int, *, epoch: int, validations_since_best: int = 0) -> Path:
    """The folder of a new checkpoint of a small network."""
    weights = clone_weights(UNet(SPEC))
    state = TrainState(
        position=Position(epoch=epoch, step=step),
        best_score=None,
        best_weights=weights,
        last_weights=weights,
        optimizer={"state": {}, "param_groups": []},
        validations_since_best=validations_since_best,
    )
    before = set(Path(checkpoints.root).glob("*"))
    checkpoints.write(SPEC, state)
    (written,) = set(Path(checkpoints.root).glob("*")) - before
    return written


@pytest.fixture
def config(tree) -> TrainConfig:
    """Of three epochs."""
    tree.write_recipe(train={"epochs": 3, "patience": 2})
    return load_section("train", TrainConfig)


def test_a_training_ends_with_the_state_after_its_last_epoch_or_that_out_of_patience(
    tmp_path: Path, config: TrainConfig
) -> None:
    from pipeline.stages.train import _final_state

    for name, state in (("epochs", (3, 0)), ("patience", (2, 2))):
        checkpoints = Checkpoints(root=str(tmp_path / name), made_by={})
        for _ in range(2):
            write_at(checkpoints, 6, epoch=state[0], validations_since_best=state[1])
        # The same step was written again, and whichever of the two is damaged, nothing is lost.
        (max(Path(checkpoints.root).iterdir()) / "last.safetensors").write_bytes(b"")
        found = _final_state(checkpoints, config)
        assert (found.position.epoch, found.validations_since_best) == state


def test_a_training_whose_last_state_is_lost_has_not_ended(tmp_path: Path, config: TrainConfig) -> None:
    from pipeline.stages.train import _final_state

    checkpoints = Checkpoints(root=str(tmp_path / "checkpoints"), made_by={})
    with pytest.raises(TrainingError, match=rf"^training left no checkpoint: {checkpoints.root}\. Train again\.$"):
        _final_state(checkpoints, config)
    older = write_at(checkpoints, 4, epoch=2)
    lost = "the training's last state is lost: "
    with pytest.raises(TrainingError) as caught:
        _final_state(checkpoints, config)
    assert str(caught.value) == f"{lost}the newest checkpoint is {older}. Train again: it goes on from there."
    last = write_at(checkpoints, 6, epoch=3) / "last.safetensors"
    last.write_bytes(b"")
    with pytest.raises(TrainingError) as caught:
        _final_state(checkpoints, config)
    assert str(caught.value) == (
        f"{lost}checkpoint is damaged: {last}. An older one is taken: {older}. Train again: it goes on from there."
    )


def index_of(**pixels: tuple[int, ...]) -> ShardIndex:
    """An index of one shard a split, which has so many pixels of background, cell and nucleus."""
    shards = tuple(
        ShardEntry(
            name=f"{split}/b0000-00000.tar", split=split, content="c", sha256="0", num_bytes=1, samples_sha256="0",
            num_samples=1, num_pixels=sum(counts), dtype="uint8", heights=(1, 1), widths=(1, 1), class_pixels=counts,
            channel_sums=(0,), channel_square_sums=(0,),
        )
        for split, counts in pixels.items()
    )  # fmt: skip
    classes = ClassMap(kind="multiclass", classes={"background": 0, "cell": 1, "nucleus": 2}, background="background")
    return ShardIndex(class_map=classes, channels=1, shards=shards)


@pytest.mark.parametrize(
    ("train", "val", "select_by", "empty"),
    [
        ((9, 0, 0), (9, 1, 1), "loss", "train"),
        ((9, 1, 1), (9, 0, 0), "dice", "val"),
        ((9, 1, 0), (9, 0, 1), "dice", None),
        ((9, 1, 1), (9, 0, 0), "loss", None),
    ],
)
def test_masks_without_a_scored_class_are_refused_before_training(
    config: TrainConfig, train: tuple[int, ...], val: tuple[int, ...], select_by: Any, empty: str | None
) -> None:
    from pipeline.stages.train import check_classes

    index, config = index_of(train=train, val=val), replace(config, select_by=select_by)
    if empty is None:
        check_classes(index, config)
        return
    with pytest.raises(TrainingError) as caught:
        check_classes(index, config)
    assert str(caught.value) == (
        f"no scored class occurs in {empty}: cell, nucleus. Look at reports/data.html, and correct the masks."
    )


def test_a_scored_class_that_training_never_sees_is_told(config: TrainConfig, caplog: pytest.LogCaptureFixture) -> None:
    from pipeline.stages.train import check_classes

    check_classes(index_of(train=(9, 1, 0), val=(9, 1, 1)), config)
    assert caplog.messages == ["train: no pixel of the training images is nucleus: it can't be learnt."]
    caplog.clear()
    check_classes(index_of(train=(0, 1, 1), val=(9, 1, 1)), config)
    assert caplog.messages == []


def test_a_stage_refuses_empty_masks_before_a_cluster_starts(sharded, client, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Path("data/shards/index.json")
    written = json.loads(index.read_text(encoding="utf-8"))
    for shard in written["shards"]:
        shard["class_pixels"] = [sum(shard["class_pixels"]), 0]
    index.write_text(json.dumps(written), encoding="utf-8")
    with pytest.raises(TrainingError, match=r"^no scored class occurs in train: cell\. Look at"):
        sharded.run("train")


def test_checkpoints_in_the_working_tree_that_are_not_used_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from pipeline.stages.train import _tell_of_unused

    local = tmp_path / "checkpoints"
    _tell_of_unused(local, "s3://bucket/training")
    write_at(Checkpoints(root=str(local), made_by={}), 4, epoch=2)
    _tell_of_unused(local, str(local))
    assert caplog.messages == []
    _tell_of_unused(local, "s3://bucket/training")
    assert caplog.messages == [
        f"train: checkpoints of this training lie in {local} too, and are not used: UNET_CHECKPOINTS names another "
        "place. Stop and unset it to go on from them."
    ]


def test_remains_that_can_not_be_removed_fail_no_ended_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.stages.train import _remove_remains

    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.0)
    work_dir = tmp_path / "training"
    (work_dir / "checkpoints").mkdir(parents=True)
    _remove_remains("away://user:word@bucket/training", str(work_dir))
    assert not work_dir.exists()
    (told,) = caplog.messages
    assert told.startswith(
        "train: remains of the ended training can't be removed: a place can't be reached: away://***@"
    )
    assert told.endswith(" Empty away://***@bucket/training.")


def test_a_training_is_named_by_recipe_data_and_code(small_data, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.stages.train import training_inputs, training_key

    shards, code = Path("data/shards"), small_data.root / "unet_core" / "model.py"
    code.parent.mkdir()
    monkeypatch.setattr(identity, "CODE", small_data.root)
    code.write_text("1", encoding="utf-8")
    small_data.run("ingest", "validate", "split", "shard")
    keys = [training_key(training_inputs(shards)), training_key(training_inputs(shards))]
    small_data.write_recipe(train={"learning_rate": 0.5})
    keys.append(training_key(training_inputs(shards)))
    small_data.write_recipe()
    code.write_text("2", encoding="utf-8")
    keys.append(training_key(training_inputs(shards)))
    code.write_text("1", encoding="utf-8")
    small_data.add_pair("s00", draw="corrected")
    small_data.record()
    small_data.run("ingest", "validate", "split", "shard")
    keys.append(training_key(training_inputs(shards)))
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4
    # What only promotion or evaluation reads does not start training anew.
    small_data.write_recipe(promote={"min_score": 0.9}, evaluate={"seed": 7})
    assert training_key(training_inputs(shards)) == keys[-1]
