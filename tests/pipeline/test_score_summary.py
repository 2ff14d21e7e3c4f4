import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.score_summary import calibration, confusion, ece, summarise
from pipeline.scores import ScoreRow, read_rows, write_rows
from unet_core.calibration import NUM_BINS
from unet_core.errors import DataError
from unet_core.objects import IOU_LIMITS


def row(key: str, name: str, counts: tuple[int, int, int], dice: float | None, **more) -> ScoreRow:
    hit, extra, missed = counts
    scored = more.pop("scored", True)
    return ScoreRow(
        key=key,
        group=more.pop("group", key),
        class_name=name,
        scored=scored,
        true_positive=hit,
        false_positive=extra,
        false_negative=missed,
        dice=dice,
        iou=dice,
        **more,
    )


def summary(rows: list[ScoreRow]) -> dict:
    return summarise(rows, "dice", draws=200, seed=0)


ROWS = [
    row("a", "soil", (6, 0, 2), 0.9, scored=False, confusion=(6, 2), precision=1.0, recall=0.75),
    row("a", "crop", (1, 2, 0), 0.5, confusion=(0, 1), precision=1 / 3, recall=1.0),
    row("b", "soil", (8, 0, 0), 1.0, scored=False, confusion=(8, 0), precision=1.0, recall=1.0),
    row("b", "crop", (1, 0, 0), 1.0, confusion=(0, 1), precision=1.0, recall=1.0),
]


def test_the_summary_is_the_mean_over_images_beside_pooled_scores() -> None:
    body = summary(ROWS)
    assert (body["dice"], body["images"], body["groups"]) == (0.75, 2, 2)
    assert body["class_dice"] == {"soil": 0.95, "crop": 0.75}
    assert body["class_precision"]["crop"] == pytest.approx(2 / 3)
    assert body["class_recall"]["soil"] == pytest.approx(0.875)
    assert body["pooled_dice"]["crop"] == pytest.approx(4 / 6)
    assert (body["pooled_precision"]["crop"], body["pooled_recall"]["crop"]) == (0.5, 1.0)
    assert body["pixel_error"] == pytest.approx(2 / 18)
    assert body["confusion"] == {"soil": {"soil": 14, "crop": 2}, "crop": {"soil": 0, "crop": 2}}
    # Two images say next to nothing of how far another test would give another mean.
    assert body["interval_95"] == [0.0, 1.0]


@settings(deadline=None, derandomize=True, database=None, max_examples=40)
@given(data=st.data())
def test_tables_of_parts_put_together_in_any_order_have_the_summary_of_the_whole(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 12), "images")
    rng = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
    images = []
    for number in range(count):
        hit, extra, missed = (int(value) for value in rng.integers(0, 9, 3))
        dice = 2 * hit / (2 * hit + extra + missed) if hit + extra + missed else None
        about = {"group": str(number // 2), "slices": {"site": "ab"[number % 2]}}
        bins = [tuple(int(value) for value in rng.integers(0, 9, NUM_BINS)) for _ in range(2)]
        measured = {"decisions": bins[0], "right": bins[1], "confidence": tuple(rng.random(NUM_BINS).tolist())}
        images.append(
            [
                row(
                    str(number),
                    "soil",
                    (8 - hit, missed, extra),
                    0.5,
                    scored=False,
                    confusion=(8 - hit, extra),
                    **about,
                ),
                row(str(number), "crop", (hit, extra, missed), dice, confusion=(missed, hit), **measured, **about),
            ]
        )
    assume(any(rows[1].dice is not None for rows in images))
    whole = summary([row for rows in images for row in rows])
    order = data.draw(st.permutations(images), "order")
    cut = data.draw(st.integers(0, count), "cut")
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for number, part in enumerate((order[:cut], order[cut:])):
            path = Path(folder, f"{number}.parquet")
            write_rows(path, [row for rows in part for row in rows])
            parts += read_rows(path)
    assert flat(summary(parts)) == pytest.approx(flat(whole), rel=1e-9, nan_ok=True)


def flat(body, name: str = "") -> dict[str, float]:
    """Each number by its place; NaN where it is undefined."""
    if isinstance(body, dict | list):
        parts = body.items() if isinstance(body, dict) else enumerate(body)
        return {place: value for key, part in parts for place, value in flat(part, f"{name}/{key}").items()}
    return {name: math.nan if body is None else body}


def test_the_interval_holds_the_mean_and_narrows_with_more_images_not_with_copies() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.3, 0.9, 200)

    def interval(values, groups) -> float:
        rows = [
            row(str(n), "crop", (1, 1, 1), v, group=str(g)) for n, (v, g) in enumerate(zip(values, groups, strict=True))
        ]
        body = summary(rows)
        low, high = body["interval_95"]
        assert low < body["dice"] < high
        return high - low

    few, many = interval(scores[:10], range(10)), interval(scores, range(200))
    assert many < few / 3
    assert interval(np.tile(scores[:10], 20), np.tile(np.arange(10), 20)) == pytest.approx(few)


def test_one_group_has_no_interval() -> None:
    body = summary([row("a", "crop", (1, 1, 1), 0.5, group="p"), row("b", "crop", (1, 1, 1), 0.7, group="p")])
    assert (body["dice"], body["interval_95"], body["groups"]) == (pytest.approx(0.6), None, 1)


def test_undefined_scores_stay_undefined_and_are_counted() -> None:
    nowhere = row("a", "plus", (0, 0, 0), None)
    body = summary([row("a", "crop", (2, 0, 0), 1.0, hausdorff95_px=0.0), nowhere])
    assert (body["class_dice"]["plus"], body["pooled_dice"]["plus"]) == (None, None)
    assert body["images_without_dice"] == {"crop": 0, "plus": 1}
    assert body["images_without_hausdorff95"] == {"crop": 0, "plus": 1}
    assert body["ece"] is None


def test_without_any_defined_score_the_summary_says_why() -> None:
    rows = [row("a", "soil", (4, 0, 0), 1.0, scored=False), row("a", "crop", (0, 0, 0), None)]
    with pytest.raises(DataError) as caught:
        summary(rows)
    assert str(caught.value) == (
        "no score is defined: no scored class occurs in the test images or predictions. "
        "Check masks.classes and the test split."
    )


def test_overlapping_classes_have_neither_pixel_error_nor_confusion() -> None:
    assert not {"pixel_error", "confusion", "objects", "slices"} & set(summary([row("a", "ring", (1, 0, 0), 1.0)]))


def test_slices_are_scored_apart_each_image_in_one_of_every_column() -> None:
    words = [{"stain": "pink"}] * 6 + [{"stain": "blue"}, {}]
    rows = [row(str(n), "crop", (1, 1, 1), n / 10, slices=word) for n, word in enumerate(words)]
    slices = summary(rows)["slices"]
    assert list(slices) == ["stain"]
    assert slices["stain"]["pink"] | {"interval_95": ()} == {"dice": 0.25, "interval_95": (), "images": 6, "groups": 6}
    low, high = slices["stain"]["pink"]["interval_95"]
    assert 0 <= low < 0.25 < high
    assert slices["stain"]["blue"] == {"dice": 0.6, "interval_95": None, "images": 1, "groups": 1}


def test_surface_scores_are_pooled_by_points() -> None:
    rows = [
        row("a", "crop", (1, 0, 0), 1.0, surface_points=10, surface_hits=5, surface_dice=0.5, hausdorff95_px=3.0),
        row("b", "crop", (1, 0, 0), 1.0, surface_points=30, surface_hits=30, surface_dice=1.0, hausdorff95_px=1.0),
    ]
    body = summary(rows)
    assert (body["class_surface_dice"], body["pooled_surface_dice"]) == ({"crop": 0.75}, {"crop": 0.875})
    assert body["class_hausdorff95_px"] == {"crop": 2.0}


def test_histograms_of_confidence_add_up() -> None:
    rows = [
        row("a", "soil", (1, 0, 0), 1.0, decisions=(0, 4), right=(0, 3), confidence=(0.0, 3.6)),
        row("b", "soil", (1, 0, 0), 1.0, decisions=(2, 4), right=(1, 3), confidence=(1.2, 3.6)),
    ]
    decisions, right, _ = calibration(rows)
    assert (decisions.tolist(), right.tolist()) == ([2, 8], [1, 6])
    # Gaps of 0.2 in two decisions, and of 1.2 in eight.
    assert ece(rows) == pytest.approx((0.2 + 1.2) / 10)
    assert confusion([row("a", "x", (3, 0, 0), 1.0, confusion=(3,))]) == {"x": {"x": 3}}


def test_objects_have_the_mean_over_images_and_over_all_objects() -> None:
    def nuclei(key: str, true: int, predicted: int, matched: int, precision: float) -> ScoreRow:
        return row(
            key,
            "nucleus",
            (1, 1, 1),
            0.5,
            true_objects=true,
            predicted_objects=predicted,
            matched_objects=(matched,) * len(IOU_LIMITS),
            average_precision=precision,
        )

    rows = [nuclei("a", 4, 2, 2, 0.5), nuclei("b", 1, 3, 1, 1 / 3)]
    objects = summary(rows)["objects"]
    assert objects["average_precision"] == pytest.approx((0.5 + 1 / 3) / 2)
    assert objects["average_precision_at"]["0.75"] == pytest.approx((0.5 + 1 / 3) / 2)
    assert objects["pooled_average_precision"] == pytest.approx(3 / 7)
    assert (objects["true"], objects["predicted"]) == (5, 5)
    assert (objects["mean_count_error"], objects["mean_absolute_count_error"]) == (0.0, 2.0)
