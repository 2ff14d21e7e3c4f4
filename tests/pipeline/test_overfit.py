"""Learning one batch by heart."""

from pathlib import Path

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
    with pytest.raises(RecipeError, match=r"^unet overfit: --steps 0: must be at least 1\.$"):
        overfit(shards=SHARDS, out=OUT, steps=0)


def test_a_rate_that_breaks_the_network_ends_at_once(sharded) -> None:
    from pipeline.overfit import overfit

    sharded.write_recipe(
        model={"width": 8, "depth": 2, "norm": "none"}, train={"learning_rate": 1e30, "optimizer": "sgd"}
    )
    with pytest.raises(TrainingError, match=r"^the loss does not come near zero: (nan|inf) after \d steps "):
        overfit(shards=SHARDS, out=OUT, steps=50)
