"""Learning one batch by heart."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.pictures import GAP_PX, TILE_PX
from unet_core.errors import RecipeError, TrainingError

pytestmark = pytest.mark.slow

SHARDS, OUT = Path("data/shards"), Path("reports/overfit.png")


@pytest.fixture
def sharded(small_data):
    small_data.write_recipe(model={"width": 8, "depth": 2}, train={"learning_rate": 0.01})
    small_data.run("ingest", "validate", "split", "shard")
    return small_data


def test_a_batch_is_learned_by_heart_and_drawn(sharded, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.overfit import overfit

    overfit(shards=SHARDS, out=OUT, steps=1000)
    told = capsys.readouterr().out
    assert told.startswith("the network can learn its data: loss 0.0")
    with Image.open(OUT) as picture:
        assert picture.width == 3 * (TILE_PX + GAP_PX)
        assert picture.height % (TILE_PX + GAP_PX) == 0


def test_coarse_heads_and_border_weights_take_part(sharded, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.overfit import overfit

    sharded.write_recipe(
        model={"width": 8, "depth": 2, "deep_supervision": 1},
        train={"learning_rate": 0.01, "border_weight": {"w0": 10, "sigma_px": 2}},
    )
    overfit(shards=SHARDS, out=OUT, steps=1000)
    assert capsys.readouterr().out.startswith("the network can learn its data: loss 0.0")
    with Image.open(OUT) as picture:
        assert picture.width == 3 * (TILE_PX + GAP_PX)


def test_a_loss_that_stays_is_an_error_with_a_picture(sharded) -> None:
    from pipeline.overfit import overfit

    with pytest.raises(
        TrainingError, match=r"^the loss does not come near zero: 0\.\d+ after 2 steps on \d+ samples, "
    ):
        overfit(shards=SHARDS, out=OUT, steps=2)
    assert OUT.is_file()
    with pytest.raises(RecipeError, match=r"^--steps 0: must be at least 1\.$"):
        overfit(shards=SHARDS, out=OUT, steps=0)


@pytest.mark.parametrize(
    "train", [{"gradient_clip": 1.0, "samples_per_lane": 2, "accumulate": 2}, {"exact": False}], ids=str
)
def test_steps_are_those_of_a_training(sharded, monkeypatch: pytest.MonkeyPatch, train: dict[str, Any]) -> None:
    from pipeline import overfit as module
    from pipeline.worker import read_recipe
    from unet_core.index import read_index
    from unet_core.loader import LaneLoader
    from unet_core.reader import ShardReader
    from unet_core.reduction import LaneTree
    from unet_core.trainer import Trainer

    sharded.write_recipe(
        model={"width": 8, "depth": 2, "norm": "batch"}, train={"learning_rate": 0.1, "weight_decay": 0.0, **train}
    )
    told: list[list[float]] = []
    monkeypatch.setattr(module, "_tell", lambda losses, *_: told.append(losses))
    module.overfit(shards=SHARDS, out=OUT, steps=3)
    index = read_index(SHARDS)
    spec, config, augment = read_recipe(index)
    reader = ShardReader(SHARDS, index.of_split("train"))
    plan = config.plan(reader, spec.class_map, epoch=0)
    loader = LaneLoader(reader, spec.class_map, augment, seed=config.seed)
    lanes = next(loader.steps(plan, epoch=0, lanes=range(config.lanes)))
    trainer = Trainer(spec, config, LaneTree(lanes=config.lanes))
    assert told == [[trainer.step_at(lanes, 0.1).loss for _ in range(3)]]


def test_a_rate_that_breaks_the_network_ends_at_once(sharded) -> None:
    from pipeline.overfit import overfit

    sharded.write_recipe(
        model={"width": 8, "depth": 2, "norm": "none"}, train={"learning_rate": 1e30, "optimizer": "sgd"}
    )
    with pytest.raises(TrainingError, match=r"^the (loss|gradient) is not a number: step \d+: "):
        overfit(shards=SHARDS, out=OUT, steps=50)
