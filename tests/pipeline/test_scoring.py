"""`fetch_registered` is tested with the registry, in test_promote.py."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.scores import ScoreRow
from pipeline.scoring import predict_sample, score_split
from unet_core.checkpoint import read_model
from unet_core.packing import pack_all
from unet_core.reader import ShardReader
from unet_core.samples import IGNORE_INDEX, ClassMap, Sample
from unet_core.shards import write_shard

INDEXED = ClassMap(kind="multiclass", classes={"soil": 0, "crop": 1}, ignore=255, background="soil")
PLANES = ClassMap(kind="multilabel", classes={"ring": 255, "plus": 255})
#: The model calls the bright pixels, two of four, class 1.
IMAGE = np.array([[255, 255, 0, 0]], dtype=np.uint8)[..., None]


def score(folder: Path, write_model_dir, class_map: ClassMap, mask: list) -> list[ScoreRow]:
    write_model_dir(folder / "model", class_map)
    sample = Sample(key="a", image=IMAGE, mask=np.array([mask], dtype=np.uint8))
    shard = write_shard(folder, "test/b0001-00000.tar", "content", pack_all([sample], class_map))
    network, spec = read_model(folder / "model")
    return score_split(network, spec, ShardReader(folder, [shard]), spec.class_map, name="test")


def counts(row: ScoreRow) -> tuple[int, int, int]:
    return row.true_positive, row.false_positive, row.false_negative


def test_every_class_of_an_image_is_a_row_of_counts(tmp_path: Path, write_model_dir) -> None:
    soil, crop = score(tmp_path, write_model_dir, INDEXED, [1, 0, 0, 1])
    assert (soil.key, soil.class_name, soil.scored, counts(soil)) == ("a", "soil", False, (1, 1, 1))
    assert (crop.key, crop.class_name, crop.scored, counts(crop)) == ("a", "crop", True, (1, 1, 1))
    assert (crop.dice, crop.iou) == (pytest.approx(0.5), pytest.approx(1 / 3))


def test_ignored_pixels_count_nowhere(tmp_path: Path, write_model_dir) -> None:
    soil, crop = score(tmp_path, write_model_dir, INDEXED, [1, IGNORE_INDEX, IGNORE_INDEX, 0])
    assert (counts(soil), counts(crop)) == ((1, 0, 0), (1, 0, 0))


def test_overlapping_classes_are_counted_each_for_itself(tmp_path: Path, write_model_dir) -> None:
    ring, plus = score(tmp_path, write_model_dir, PLANES, [[1, 1], [1, 0], [0, 0], [0, 0]])
    assert (counts(ring), counts(plus)) == ((2, 0, 0), (1, 1, 0))


def test_the_mask_of_an_image_has_its_size(tmp_path: Path, write_model_dir) -> None:
    for class_map, shape in ((INDEXED, (1, 4)), (PLANES, (1, 4, 2))):
        write_model_dir(tmp_path / "model", class_map)
        mask = predict_sample(*read_model(tmp_path / "model"), IMAGE)
        assert mask.shape == shape
        assert mask.dtype == np.uint8
        assert mask.reshape(4, -1)[:, 0].tolist() == [1, 1, 0, 0]
