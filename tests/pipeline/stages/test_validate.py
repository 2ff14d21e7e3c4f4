import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.catalog import read_catalog
from unet_core.errors import DataError, RecipeError

ACCEPTED, REJECTED = Path("data/accepted.parquet"), Path("data/rejected.json")
METRICS, EXAMPLES = Path("metrics/validate.json"), Path("plots/data.png")


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def check(tree) -> str:
    """Run the stage on what lies there; the reason of the only rejected sample."""
    tree.record()
    tree.run("ingest")
    with pytest.raises(DataError):
        tree.run("validate")
    (entry,) = read_json(REJECTED)
    return entry["reason"]


def test_good_samples_are_accepted_with_their_size(small_data) -> None:
    small_data.add_pair("s03", size=(20, 8))
    small_data.record()
    small_data.run("ingest", "validate")
    rows = {row.key: row for row in read_catalog(ACCEPTED)}
    assert len(rows) == 12
    assert (rows["s00"].width, rows["s00"].height) == (16, 12)
    assert (rows["s03"].width, rows["s03"].height) == (20, 8)
    assert read_json(REJECTED) == []
    with Image.open(EXAMPLES) as sheet:
        assert sheet.mode == "RGB"


def test_metrics_count_samples_pixels_and_the_share_of_each_class(tree) -> None:
    for key, width in (("a", 10), ("b", 30)):
        save(tree.source / "images" / f"{key}.png", np.zeros((8, width), dtype=np.uint8))
        mask = np.zeros((8, width), dtype=np.uint8)
        mask[:, :5] = 255
        save(tree.source / "masks" / f"{key}.png", mask)
    tree.write_recipe()
    tree.record()
    tree.run("ingest", "validate")
    assert read_json(METRICS) == {
        "accepted": 2,
        "rejected": 0,
        "problems": {},
        "image_sizes": 2,
        "pixels": 320,
        "class_fraction": {"background": 0.75, "cell": 0.25},
        "images_without_class": {"background": 0, "cell": 0},
        "exact_duplicates": 0,
        "near_duplicates": 0,
        "duplicates_with_other_masks": 0,
        "not_compared_with_all": 0,
    }


def test_a_class_value_outside_the_recipe_is_rejected(tree) -> None:
    tree.add_pair("a", value=7)
    tree.write_recipe()
    assert check(tree) == (
        "class value outside the recipe: raw/masks/a.png: 7. The recipe knows [0, 255]; add the value to "
        "masks.classes (or masks.ignore), or correct the mask."
    )


def test_sizes_that_differ_are_rejected(tree) -> None:
    tree.add_pair("a")
    save(tree.source / "masks" / "a.png", np.zeros((12, 15), dtype=np.uint8))
    tree.write_recipe()
    assert check(tree) == (
        "mask size differs from image: a: image 16x12, mask 15x12. Export the mask again, or remove the pair."
    )


def test_a_file_cut_short_is_rejected(tree) -> None:
    tree.add_pair("a")
    path = tree.source / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:-40])
    tree.write_recipe()
    assert check(tree).startswith("image can't be read: raw/images/a.png: ")


def test_an_image_of_sixteen_bits_is_rejected(tree) -> None:
    tree.add_pair("a")
    save(tree.source / "images" / "a.png", np.zeros((12, 16), dtype=np.uint16))
    tree.write_recipe()
    assert check(tree).startswith("more than 8 bits a channel: raw/images/a.png: ")


def test_above_the_limit_the_reasons_are_listed_and_written(small_data) -> None:
    for number in range(7):
        small_data.add_pair(f"s{number:02d}", value=7)
    small_data.write_recipe(validate={"max_rejected_fraction": 0.5})
    small_data.record()
    small_data.run("ingest")
    with pytest.raises(DataError) as caught:
        small_data.run("validate")
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        "7 of 12 samples are rejected, validate.max_rejected_fraction allows 0.5. All reasons are in "
        "data/rejected.json, with pictures in reports/data.html; correct the files or raise the limit."
    )
    assert [line.partition(":")[0] for line in lines[1:6]] == [f"  s{number:02d}" for number in range(5)]
    assert lines[6] == "  ... and 2 more"
    rejected = read_json(REJECTED)
    assert [entry["key"] for entry in rejected] == [f"s{number:02d}" for number in range(7)]
    assert lines[1] == f"  s00: {rejected[0]['reason']}"
    assert read_json(METRICS)["rejected"] == 7
    assert not ACCEPTED.exists()


def test_at_the_limit_the_rest_is_accepted(small_data) -> None:
    for number in range(6):
        small_data.add_pair(f"s{number:02d}", value=7)
    small_data.write_recipe(validate={"max_rejected_fraction": 0.5})
    small_data.record()
    small_data.run("ingest", "validate")
    assert [row.key for row in read_catalog(ACCEPTED)] == [f"s{number:02d}" for number in range(6, 12)]
    assert len(read_json(REJECTED)) == 6


def test_if_all_are_rejected_none_is_left_whatever_the_limit(tree) -> None:
    tree.add_pair("a", value=7)
    tree.write_recipe(validate={"max_rejected_fraction": 1.0})
    tree.record()
    tree.run("ingest")
    with pytest.raises(
        DataError,
        match=r"^no sample is left: all 1 are rejected. See data/rejected.json, with pictures in reports/data.html.$",
    ):
        tree.run("validate")


@pytest.mark.parametrize("limit", [-0.1, 5.0])
def test_a_limit_that_is_no_fraction_is_refused(small_data, limit: float) -> None:
    small_data.run("ingest")
    small_data.write_recipe(validate={"max_rejected_fraction": limit})
    with pytest.raises(RecipeError, match=r"validate\.max_rejected_fraction"):
        small_data.run("validate")


def test_overlapping_classes_are_read_plane_by_plane(tree) -> None:
    save(tree.source / "images" / "a.png", np.zeros((8, 8), dtype=np.uint8))
    for name, columns in (("ring", 4), ("plus", 6)):
        plane = np.zeros((8, 8), dtype=np.uint8)
        plane[:, :columns] = 255
        save(tree.source / "masks" / name / "a.png", plane)
    masks = {"kind": "multilabel", "classes": {"ring": 255, "plus": 255}, "background": None}
    tree.write_recipe(masks=masks)
    tree.record()
    tree.run("ingest", "validate")
    assert read_json(METRICS)["class_fraction"] == {"ring": 0.5, "plus": 0.75}


def test_rgb_images_are_read_as_the_recipe_says(tree) -> None:
    tree.add_pair("a")
    save(tree.source / "images" / "a.png", np.zeros((12, 16, 3), dtype=np.uint8))
    for channels in (1, 3):
        tree.write_recipe(images={"channels": channels})
        tree.record()
        tree.run("ingest", "validate")


def test_equal_data_give_equal_bytes(small_data) -> None:
    small_data.run("ingest", "validate")
    results = (ACCEPTED, REJECTED, METRICS, EXAMPLES, Path("data/duplicates.csv"), Path("reports/data.html"))
    first = [path.read_bytes() for path in results]
    small_data.run("validate")
    assert [path.read_bytes() for path in results] == first


def test_a_file_that_changes_after_ingest_fails_the_stage_and_is_no_rejected_sample(small_data) -> None:
    small_data.write_recipe(validate={"max_rejected_fraction": 1.0})
    small_data.run("ingest")
    small_data.turn_file("masks", "s03")
    with pytest.raises(DataError, match=r"^a recorded sample has changed: s03: images/s03.png or its mask is not what"):
        small_data.run("validate")
