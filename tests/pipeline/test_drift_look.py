"""A look at a log: lines as `unet predict --log` writes them, real shards, a real model, sentences."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.drift_look import DriftQuestion, Found, look_for_drift, say_drift, say_number
from pipeline.drift_reference import find_reference
from pipeline.drift_statistics import Comparison, Decision, DriftConfig, Finding, Spread
from pipeline.placement import read_placement
from pipeline.prediction_log import FORMAT_VERSION
from unet_core.errors import DataError
from unet_core.traits import Traits

SHARDS, LOG = Path("data/shards"), Path(".unet/predictions")
SINCE = datetime(2026, 11, 1, tzinfo=UTC)
FEW = DriftConfig(min_images=3)
PLAIN = Traits(height=12, width=16, means=(0.5,), deviations=(0.1,), channel_range=None, shares={}, embedding=())


@pytest.fixture
def one_process(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting others would take longer than the few training images do."""
    monkeypatch.setenv("UNET_PROCESSES", "1")


def write_log(images: Sequence[Traits], *, first: datetime = SINCE, model: str = "m", name: str = "new") -> None:
    """A line an image, a minute apart."""
    LOG.mkdir(parents=True, exist_ok=True)
    for number, traits in enumerate(images):
        time = first + timedelta(minutes=number)
        line = {
            "format": FORMAT_VERSION,
            "time": time.isoformat(),
            "image": f"{name}/{number}.png",
            "version": "v",
            "model_sha256": model,
            **asdict(traits),
            "copy": None,
        }
        with (LOG / f"{time:%Y-%m-%d}.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def look(config: DriftConfig = FEW, *, since: datetime | None = SINCE, most: int | None = None) -> Found:
    ask = DriftQuestion(model="model", model_sha256="m", shards=SHARDS, config=config, since=since, most=most)
    return look_for_drift(ask, read_placement())


def test_one_image_is_too_few_and_needs_neither_model_nor_shards(tree) -> None:
    write_log([PLAIN])
    write_log([PLAIN] * 2, model="other", name="others")
    with (LOG / "2026-11-01.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"format": 1, "ti\n')
    before = {path: path.read_bytes() for path in LOG.iterdir()}
    found = look()
    assert found.sentence == "too few to tell: 1 image since 2026-11-01 in .unet/predictions, 3 needed"
    assert (found.comparison.decision, found.comparison.num_recent, found.comparison.num_training) == (
        "too few to tell", 1, None,
    )  # fmt: skip
    assert (found.reference, found.log.num_of_others, found.log.num_damaged) == (None, 2, 1)
    # A look changes nothing.
    assert {path: path.read_bytes() for path in LOG.iterdir()} == before
    assert [path.name for path in Path(".unet").iterdir()] == ["predictions"]


def test_without_shards_there_is_nothing_to_compare_with(tree) -> None:
    write_log([PLAIN] * 3)
    with pytest.raises(DataError) as caught:
        look()
    assert str(caught.value) == "no shards: data/shards/index.json is missing. Run `dvc repro shard`."


def test_training_images_are_like_the_training_images_in_whatever_order_they_came(
    sharded, write_model_dir, one_process
) -> None:
    write_model_dir(Path("model"))
    reference = find_reference(
        "model", model_sha256="m", shards=SHARDS, most=1000, placement=read_placement(), may_store=True
    )
    write_log(reference.images)
    found = look()
    assert found.comparison.decision == "alike"
    assert found.reference == reference
    count = len(reference.images)
    assert (found.comparison.num_recent, found.comparison.num_training) == (count, count)
    measured = {finding.name: finding.distance for finding in found.comparison.findings}
    assert {measured[name] for name in ("brightness", "contrast", "height", "width", "share of cell")} == {0}
    for path in LOG.iterdir():
        path.unlink()
    write_log(reference.images[::-1])
    again = look()
    assert again.comparison == found.comparison
    assert again.sentence == found.sentence
    # Darker ones beside them: the newest alone count where so many are asked for.
    dark = [replace(image, means=(0.0,), deviations=(0.0,)) for image in reference.images]
    write_log(dark, first=SINCE + timedelta(days=1), name="dark")
    assert look().comparison.num_recent == 2 * count
    assert look(most=count).recent["brightness"].tolist() == [0.0] * count
    assert look(replace(FEW, window_images=count)).recent["brightness"].tolist() == [0.0] * count


def test_without_a_time_as_many_days_count_as_the_recipe_says(tree) -> None:
    now = datetime.now(UTC)
    write_log([PLAIN], first=now - timedelta(days=2, hours=1), name="old")
    write_log([PLAIN], first=now - timedelta(days=1, hours=23), name="new")
    found = look(replace(FEW, window_days=2), since=None)
    assert [entry.image for entry in found.log.entries] == ["new/0.png"]
    assert now <= found.since + timedelta(days=2) <= datetime.now(UTC)


def test_a_century_is_no_window_too_long(tree) -> None:
    assert look(replace(FEW, window_days=36_500), since=None).comparison.num_recent == 0


def finding(
    name: str, recent: float | None, training: float | None, *, distance: float | None = 0.5, is_drift: bool = True
) -> Finding:
    new, old = (
        None if median is None else Spread(images=30, low=0, median=median, high=2000) for median in (recent, training)
    )
    return Finding(
        name=name, distance=distance, p_value=0.01, is_drift=is_drift, recent=new, training=old, unseen=None
    )  # fmt: skip


def say(decision: Decision, *findings: Finding, recent: int = 30, training: int = 40) -> str:
    comparison = Comparison(decision=decision, num_recent=recent, num_training=training, findings=findings)
    return say_drift(comparison, DriftConfig(), SINCE)


COUNTS = "30 images since 2026-11-01, compared with 40 of the training"


def test_a_drift_names_three_quantities_and_counts_the_others() -> None:
    drifted = [finding(name, 0.5, 0.25) for name in ("brightness", "contrast", "share of cell", "share of ring")]
    told = finding("width", 5, 6, is_drift=False)
    head = "recent inputs differ from the training data: brightness 0.5 (training 0.25)"
    assert say("drift", drifted[0], told) == f"{head}; {COUNTS}"
    three = f"{head}, contrast 0.5 (training 0.25), share of cell 0.5 (training 0.25)"
    assert say("drift", *drifted[:3], told) == f"{three}; {COUNTS}"
    assert say("drift", *drifted, told) == f"{three} and 1 more; {COUNTS}"


def test_where_medians_read_the_same_the_distance_is_told() -> None:
    assert f": contrast (distance 0.50); {COUNTS}" in say("drift", finding("contrast", 0.12345, 0.12346))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.012345, "0.0123"),
        (999.4, "999"),
        (999.5, "1000"),
        (1024.0, "1024"),
        (1536.5, "1536"),
        (-1234.0, "-1234"),
        (999_999.0, "999999"),
        (1e30, "1e+30"),
    ],
)
def test_numbers_are_short_and_sizes_of_images_whole(value: float, text: str) -> None:
    assert say_number(value) == text


def test_images_that_are_alike_are_told_with_the_largest_distance() -> None:
    start = f"recent inputs look like the training data: {COUNTS}; the largest distance is "
    small = finding("width", 1, 1, distance=0.3, is_drift=False)
    assert say("alike", small) == f"{start}0.30 (width), 0.3 allowed"
    by_chance = replace(small, distance=0.31)
    assert say("alike", by_chance) == f"{start}0.31 (width), which chance may give among so few; 0.3 allowed"


@pytest.mark.parametrize(
    ("recent", "training", "end"),
    [
        (1, 40, "1 image since 2026-11-01, compared with 40 of the training, 20 needed"),
        (30, 19, "30 images since 2026-11-01, compared with 19 of the training, 20 needed"),
        (20, 20, "20 images since 2026-11-01, compared with 20 of the training, nothing is defined for enough of them"),
    ],
)
def test_too_few_to_tell_says_of_what(recent: int, training: int, end: str) -> None:
    nothing = finding("width", None, None, distance=None, is_drift=False)
    assert say("too few to tell", nothing, recent=recent, training=training) == f"too few to tell: {end}"
