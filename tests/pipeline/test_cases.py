import json
from pathlib import Path

import numpy as np

from pipeline.cases import INVENTED, MISSED, TAKEN_FOR_OTHER, choose_cases, paint_errors, write_cases
from pipeline.report_page import ERROR_COLOURS
from unet_core.checkpoint import read_model
from unet_core.packing import pack_all
from unet_core.reader import ShardReader
from unet_core.samples import IGNORE_INDEX, ClassMap, Sample
from unet_core.shards import write_shard

INDEXED = ClassMap(kind="multiclass", classes={"soil": 0, "crop": 1, "weed": 2}, ignore=255, background="soil")
PLANES = ClassMap(kind="multilabel", classes={"ring": 255, "plus": 255})
DARK = (50, 50, 50)


def test_cases_are_the_worst_and_those_around_the_median() -> None:
    scores = {f"s{number:02d}": number / 20 for number in range(20)}
    assert choose_cases(scores) == [
        *(("worst", f"s{number:02d}") for number in (0, 1, 2, 3)),
        *(("median", f"s{number:02d}") for number in (8, 9, 10, 11)),
    ]


def test_no_image_is_shown_twice_and_equal_scores_are_ranked_by_key() -> None:
    assert choose_cases(dict.fromkeys(["b", "c", "a", "d", "e"], 0.5)) == [
        *(("worst", key) for key in "abcd"),
        ("median", "e"),
    ]


def test_errors_are_painted_over_the_darkened_image() -> None:
    image = np.full((1, 6, 1), 100, dtype=np.uint8)
    mask = np.array([[0, 1, 0, 1, 2, IGNORE_INDEX]], dtype=np.uint8)
    predicted = np.array([[0, 0, 1, 2, 2, 1]], dtype=np.uint8)
    painted = paint_errors(image, mask, predicted, INDEXED)
    assert [tuple(pixel) for pixel in painted[0].tolist()] == [DARK, MISSED, INVENTED, TAKEN_FOR_OTHER, DARK, DARK]


def test_without_a_background_a_wrong_pixel_was_taken_for_another_class() -> None:
    halves = ClassMap(kind="multiclass", classes={"membrane": 0, "interior": 255})
    painted = paint_errors(np.full((1, 2, 1), 100, np.uint8), np.array([[0, 1]]), np.array([[1, 1]]), halves)
    assert [tuple(pixel) for pixel in painted[0].tolist()] == [TAKEN_FOR_OTHER, DARK]


def test_of_instances_objects_are_missed_or_invented_with_or_without_a_named_background() -> None:
    objects = ClassMap(kind="instances", classes={"background": 0, "cell": 1})
    painted = paint_errors(np.full((1, 2, 1), 100, np.uint8), np.array([[0, 1]]), np.array([[1, 0]]), objects)
    assert [tuple(pixel) for pixel in painted[0].tolist()] == [INVENTED, MISSED]


def test_of_overlapping_classes_some_are_missed_some_invented_or_both() -> None:
    mask = np.array([[[1, 0], [0, 0], [1, 0]]], dtype=np.uint8)
    predicted = np.array([[[0, 0], [0, 1], [0, 1]]], dtype=np.uint8)
    painted = paint_errors(np.full((1, 3, 1), 100, np.uint8), mask, predicted, PLANES)
    assert [tuple(pixel) for pixel in painted[0].tolist()] == [MISSED, INVENTED, TAKEN_FOR_OTHER]


def test_the_page_explains_the_colours_that_are_painted() -> None:
    assert list(ERROR_COLOURS.values()) == ["#" + bytes(rgb).hex() for rgb in (MISSED, INVENTED, TAKEN_FOR_OTHER)]


def test_cases_are_written_with_their_list(tmp_path: Path, write_model_dir) -> None:
    write_model_dir(tmp_path / "model", INDEXED)
    image, mask = np.zeros((4, 4, 1), dtype=np.uint8), np.zeros((4, 4), dtype=np.uint8)
    samples = [Sample(key=f"s{number}", image=image, mask=mask) for number in range(6)]
    shard = write_shard(tmp_path, "test/b0001-00000.tar", "content", pack_all(samples, INDEXED))
    scores = {f"s{number}": number / 10 for number in range(6)}
    paths = write_cases(tmp_path / "cases", scores, ShardReader(tmp_path, [shard]), *read_model(tmp_path / "model"))
    shown = json.loads((tmp_path / "cases" / "cases.json").read_text(encoding="utf-8"))
    assert shown["colours"]["soil"] == "#000000"
    assert shown["cases"][0] == {"kind": "worst", "key": "s0", "score": 0.0, "picture": "00_worst.png"}
    assert [path.name for path in paths] == [case["picture"] for case in shown["cases"]]
    assert all(path.is_file() for path in paths)
