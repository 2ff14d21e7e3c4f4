"""Groups of gloo processes: the same bits for every number of workers."""

import math
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.unet_core.trained import Fit, losses
from unet_core.checkpoint import read_checkpoint
from unet_core.index import read_index
from unet_core.loader import LaneLoader
from unet_core.model import ModelSpec
from unet_core.reader import ShardReader
from unet_core.reduction import LaneTree
from unet_core.samples import ImageConfig
from unet_core.train_config import TrainConfig
from unet_core.trainer import Trainer
from unet_core.transforms import AugmentConfig


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
