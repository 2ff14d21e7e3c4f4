"""`registered_model` is tested with the registry, in test_promote.py."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import scoring
from pipeline.membership import Membership
from pipeline.placement import Placement
from pipeline.results import write_results
from pipeline.scores import ScoreRow
from pipeline.scoring import ScoringJob, median_latency_ms, predict_sample, score_split
from unet_core.checkpoint import read_model
from unet_core.errors import DataError
from unet_core.index import ShardIndex, read_index, write_index
from unet_core.inference import predict_logits
from unet_core.packing import pack_all
from unet_core.reader import ShardReader
from unet_core.samples import IGNORE_INDEX, ClassMap, Sample
from unet_core.shards import write_shard

INDEXED = ClassMap(kind="multiclass", classes={"soil": 0, "crop": 1}, ignore=255, background="soil")
PLANES = ClassMap(kind="multilabel", classes={"ring": 255, "plus": 255})
#: The model calls the bright pixels, two of four, class 1.
IMAGE = np.array([[255, 255, 0, 0]], dtype=np.uint8)[..., None]


OBJECTS = ClassMap(kind="instances", classes={"background": 0, "nucleus": 1}, background="background")


def score(folder: Path, write_model_dir, class_map: ClassMap, mask: list) -> list[ScoreRow]:
    dtype = np.uint16 if class_map.kind == "instances" else np.uint8
    return score_image(folder, write_model_dir, class_map, IMAGE, np.array([mask], dtype=dtype))


def score_image(
    folder: Path, write_model_dir, class_map: ClassMap, image: np.ndarray, mask: np.ndarray
) -> list[ScoreRow]:
    write_model_dir(folder / "model", class_map)
    shard = write_shard(
        folder, "test/b0001-00000.tar", "content", pack_all([Sample(key="a", image=image, mask=mask)], class_map)
    )
    write_index(folder, ShardIndex(class_map=class_map, channels=1, shards=(shard,)))
    return score_folder(folder)


def score_folder(folder: Path, memberships: dict | None = None, processes: int = 1) -> list[ScoreRow]:
    placement = Placement(
        root=folder,
        tracking_uri="",
        experiment="",
        ray_address=None,
        workers=None,
        loader_threads=1,
        processes=processes,
    )
    job = ScoringJob(model=folder / "model", shards=folder, split="test", tolerance_px=1.0)
    known = {"a": Membership(group="patient 1", slices={"stain": "pink"})}
    return score_split(job, known if memberships is None else memberships, name="test", placement=placement)


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


def test_a_row_has_all_scores_of_its_class(tmp_path: Path, write_model_dir) -> None:
    soil, crop = score(tmp_path, write_model_dir, INDEXED, [1, 0, 0, 1])
    assert (crop.group, crop.slices) == ("patient 1", {"stain": "pink"})
    assert (crop.precision, crop.recall) == (0.5, 0.5)
    # Predicted pixels 0 and 1, true ones 0 and 3; within one pixel of the other lie 0, 1 and 0.
    assert (crop.surface_points, crop.surface_hits, crop.surface_dice) == (4, 3, 0.75)
    assert crop.hausdorff95_px == pytest.approx(1.9)
    # Pixels of soil and of crop, by what they were taken for.
    assert (soil.confusion, crop.confusion) == ((1, 1), (1, 1))
    assert (sum(soil.decisions), sum(soil.right), sum(crop.decisions), sum(crop.right)) == (2, 1, 2, 1)
    assert (soil.surface_points, soil.surface_dice) == (0, None)
    assert (crop.true_objects, crop.average_precision) == (None, None)


def test_overlapping_classes_have_no_confusion(tmp_path: Path, write_model_dir) -> None:
    ring, _ = score(tmp_path, write_model_dir, PLANES, [[1, 1], [1, 0], [0, 0], [0, 0]])
    assert ring.confusion == ()
    assert sum(ring.decisions) == 4


@pytest.mark.parametrize("ground", ["background", None])
def test_objects_are_matched_where_masks_tell_them_apart(tmp_path: Path, write_model_dir, ground: str | None) -> None:
    class_map = dataclasses.replace(OBJECTS, background=ground)
    background, nucleus = score(tmp_path, write_model_dir, class_map, [1, 1, 0, 2])
    assert (background.scored, nucleus.scored) == (False, True)
    assert (nucleus.true_objects, nucleus.predicted_objects, nucleus.matched_objects) == (2, 1, (1,) * 10)
    assert nucleus.average_precision == pytest.approx(0.5)
    assert (nucleus.dice, background.true_objects) == (pytest.approx(0.8), None)


def test_the_objects_that_are_scored_are_those_that_people_get(tmp_path: Path, write_model_dir) -> None:
    """Two nuclei that touch: one connected part, parted by `unet predict --save instances`."""
    rows, columns = np.mgrid[:40, :60]
    discs = [(rows - 20) ** 2 + (columns - centre) ** 2 <= 12**2 for centre in (18, 40)]
    ids = np.where(discs[1], 2, discs[0].astype(np.uint16)).astype(np.uint16)
    image = ((ids > 0) * 255).astype(np.uint8)[..., None]
    _, nucleus = score_image(tmp_path, write_model_dir, OBJECTS, image, ids)
    model, spec = read_model(tmp_path / "model")
    write_results(tmp_path / "out", "a", image, predict_logits(model, spec, image), spec, frozenset({"instances"}))
    with Image.open(tmp_path / "out" / "instances" / "a.png") as given:
        assert int(np.asarray(given).max()) == 2
    assert (nucleus.true_objects, nucleus.predicted_objects, nucleus.matched_objects[0]) == (2, 2, 2)
    assert nucleus.dice == 1


def test_pictures_are_predicted_with_the_threads_that_scores_are(
    tmp_path: Path, write_model_dir, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    whole = scoring.predict_logits

    def watched(*arguments, **options):
        threads.append(torch.get_num_threads())
        return whole(*arguments, **options)

    monkeypatch.setattr(scoring, "predict_logits", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        score(tmp_path, write_model_dir, INDEXED, [1, 0, 0, 1])
        predict_sample(*read_model(tmp_path / "model"), IMAGE)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1}


def test_a_split_without_images_is_refused(tmp_path: Path, write_model_dir) -> None:
    write_index(tmp_path, ShardIndex(class_map=INDEXED, channels=1, shards=()))
    with pytest.raises(DataError) as caught:
        score_folder(tmp_path)
    assert str(caught.value) == (
        "no images to score: the shards have none in test. Raise split.test_fraction, or add images."
    )


def test_a_sample_that_the_catalog_does_not_know_is_refused(tmp_path: Path, write_model_dir) -> None:
    score(tmp_path, write_model_dir, INDEXED, [1, 0, 0, 1])
    with pytest.raises(DataError, match=r"^a sample of the shards is not in the catalog: a\. Run `dvc repro`\.$"):
        score_folder(tmp_path, memberships={})


@pytest.mark.slow
def test_several_processes_give_the_rows_of_one(
    tmp_path: Path, write_model_dir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "WORTH_SECONDS", 0.0)
    write_model_dir(tmp_path / "model", INDEXED)
    rng = np.random.default_rng(0)
    keys = [f"s{number:02d}" for number in range(6)]
    samples = [
        Sample(
            key=key,
            image=rng.integers(0, 256, (20, 24, 1), dtype=np.uint8),
            mask=rng.integers(0, 2, (20, 24), dtype=np.uint8),
        )
        for key in keys
    ]
    shard = write_shard(tmp_path, "test/b0001-00000.tar", "content", pack_all(samples, INDEXED))
    write_index(tmp_path, ShardIndex(class_map=INDEXED, channels=1, shards=(shard,)))
    memberships = {key: Membership(group=key, slices={}) for key in keys}
    alone, together = (score_folder(tmp_path, memberships, processes) for processes in (1, 2))
    assert [row.key for row in alone[::2]] == keys
    assert together == alone


def test_latency_is_that_of_one_image(tmp_path: Path, write_model_dir) -> None:
    score(tmp_path, write_model_dir, INDEXED, [1, 0, 0, 1])
    shards = read_index(tmp_path).of_split("test")
    assert 0 < median_latency_ms(*read_model(tmp_path / "model"), ShardReader(tmp_path, shards)) < 10_000
