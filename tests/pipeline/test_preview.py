import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cli import main
from pipeline.pictures import GAP_PX, TILE_PX
from pipeline.preview import preview
from unet_core.errors import DataError, RecipeError
from unet_core.index import read_index
from unet_core.reader import ShardReader

OUT = Path("reports/preview.png")
SIDE = TILE_PX + GAP_PX
FLIPS = {"crop_px": None, "transforms": [{"name": "D4", "p": 1.0}, {"name": "RandomBrightnessContrast", "p": 1.0}]}


def draw(*, count: int = 4, epoch: int = 0) -> np.ndarray:
    preview(shards=Path("data/shards"), out=OUT, count=count, epoch=epoch)
    with Image.open(OUT) as picture:
        return np.asarray(picture)


def tile(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    return sheet[row * SIDE : row * SIDE + TILE_PX, column * SIDE : column * SIDE + TILE_PX]


@pytest.fixture
def square(sharded):
    """D4 turns rectangles; these crops are square."""
    sharded.write_recipe(augment={**FLIPS, "crop_px": 8})
    return sharded


def test_each_sample_stands_above_its_augmentation_and_its_mask(sharded) -> None:
    sharded.write_recipe(augment={"crop_px": None, "transforms": []})
    sheet = draw(count=3)
    assert sheet.shape == (3 * SIDE, 3 * SIDE, 3)
    for column in range(3):
        # Without transforms the network sees the image itself.
        assert np.array_equal(tile(sheet, 0, column), tile(sheet, 1, column))
        # The mask is painted over it in a colour; the image itself is gray.
        painted = tile(sheet, 2, column)
        assert np.ptp(painted.astype(int), axis=-1).max() > 50
        assert np.ptp(tile(sheet, 0, column).astype(int), axis=-1).max() == 0


def test_more_samples_than_columns_go_on_below_and_no_more_than_there_are(sharded, capsys) -> None:
    sharded.write_recipe(augment={**FLIPS, "crop_px": 8}, train={"lanes": 1})
    train = ShardReader(Path("data/shards"), read_index(Path("data/shards")).of_split("train"))
    sheet = draw(count=100)
    assert len(train) > 4
    assert sheet.shape[:2] == (3 * SIDE * -(-len(train) // 4), 4 * SIDE)
    assert f"{len(train)} of {len(train)} training samples in epoch 0" in capsys.readouterr().out


def test_the_sheet_changes_with_the_epoch(square) -> None:
    assert not np.array_equal(draw(epoch=0), draw(epoch=1))


def test_the_sheet_is_the_same_with_any_number_of_threads(square, monkeypatch: pytest.MonkeyPatch) -> None:
    first = draw(epoch=3)
    monkeypatch.setenv("UNET_LOADER_THREADS", "4")
    assert np.array_equal(draw(epoch=3), first)


def test_overlapping_classes_are_shown_too(tree) -> None:
    tree.add_pairs([f"s{number:02d}" for number in range(12)])
    masks = tree.source / "masks"
    masks.rename(tree.source / "plus")
    for name in ("plus", "ring"):
        shutil.copytree(tree.source / "plus", masks / name)
    about = {"kind": "multilabel", "classes": {"ring": 255, "plus": 255}, "background": None}
    tree.write_recipe(masks=about, train={"loss": {"bce": 1.0}})
    tree.record()
    tree.run("ingest", "validate", "split", "shard")
    assert draw().shape == (3 * SIDE, 4 * SIDE, 3)


def test_a_transform_that_does_not_exist_is_refused_by_name(sharded) -> None:
    sharded.write_recipe(augment={"crop_px": None, "transforms": [{"name": "HorizontalFlipp"}]})
    with pytest.raises(RecipeError, match=r"unknown transform: augment\.transforms\[0\]: 'HorizontalFlipp'\. Did you"):
        draw()


def test_without_shards_the_message_says_so(tree) -> None:
    tree.write_recipe()
    with pytest.raises(DataError, match="data/shards"):
        draw()


@pytest.mark.parametrize(("option", "value"), [("--count", "0"), ("--count", "two"), ("--epoch", "-1")])
def test_a_number_that_is_none_is_refused(tree, capsys, option: str, value: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["preview", f"{option}={value}"])
    assert caught.value.code == 2
    assert "is not a whole number from" in capsys.readouterr().err
