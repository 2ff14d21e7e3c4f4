"""The sheet of what the network will see."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures import GAP_PX, TILE_PX
from pipeline.preview import preview
from unet_core.errors import DataError, RecipeError

SHARDS, OUT = Path("data/shards"), Path("reports/preview.png")


def draw(count: int = 4, epoch: int = 0) -> np.ndarray:
    preview(shards=SHARDS, out=OUT, count=count, epoch=epoch)
    with Image.open(OUT) as picture:
        return np.asarray(picture)


@pytest.fixture
def sharded(small_data):
    small_data.run("ingest", "validate", "split", "shard")
    return small_data


def test_the_sheet_has_a_row_for_two_samples_and_the_odd_one_is_not_lost(sharded) -> None:
    side = TILE_PX + GAP_PX
    assert draw(count=4).shape == (2 * side, 6 * side, 3)
    sheet = draw(count=3)
    assert sheet.shape == (2 * side, 6 * side, 3)
    assert (sheet[side:, 3 * side :] == 255).all()
    assert (sheet[side : 2 * side - GAP_PX, : 3 * side] != 255).any()


def test_another_epoch_is_another_draw_and_the_same_one_the_same(sharded) -> None:
    first = draw()
    assert (draw() == first).all()
    assert (draw(epoch=1) != first).any()


def test_what_cannot_be_drawn_is_refused(sharded) -> None:
    with pytest.raises(DataError, match="--count 0 --epoch 0: the count is at least 1"):
        draw(count=0)
    sharded.write_recipe(augment={"transforms": [{"name": "HorizontalFlop"}]})
    with pytest.raises(
        RecipeError, match=r"unknown transform: augment.transforms\[0\]: 'HorizontalFlop'. Did you mean"
    ):
        draw()
