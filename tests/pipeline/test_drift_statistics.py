import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.drift_statistics import (
    EMBEDDING,
    Comparison,
    DriftConfig,
    Finding,
    compare,
    recent_quantities,
    training_quantities,
)
from unet_core.errors import RecipeError
from unet_core.traits import Traits

CONFIG = DriftConfig()
PLAIN = Traits(
    height=512, width=512, means=(0.5,), deviations=(0.1,), channel_range=None, shares={"ring": 0.2}, embedding=()
)

DIRECTIONS = {f"feature direction {number}" for number in (1, 2, 3)}


def draw(count: int, seed: int, *, brighter: float = 0.0, away: float = 0.0, ring: float = 0.2) -> list[Traits]:
    """Images of one kind: brightness 0.5 +- 0.05, share of ring +- 0.02, eight features +- 1."""
    rng = np.random.default_rng(seed)
    return [
        replace(
            PLAIN,
            means=(float(rng.normal(0.5 + brighter, 0.05)),),
            deviations=(float(rng.normal(0.1, 0.01)),),
            shares={"ring": float(rng.normal(ring, 0.02))},
            embedding=tuple(rng.normal(away, 1, size=8).tolist()),
        )
        for _ in range(count)
    ]


def ask(recent: Sequence[Traits], training: Sequence[Traits], config: DriftConfig = CONFIG) -> Comparison:
    return compare(recent_quantities(recent, training), training_quantities(training), config)


def by_name(comparison: Comparison) -> dict[str, Finding]:
    return {finding.name: finding for finding in comparison.findings}


def test_images_of_the_same_kind_are_alike() -> None:
    assert ask(draw(60, 1), draw(300, 0)).decision == "alike"


def test_false_alarms_are_as_rare_as_the_confidence_says() -> None:
    """Small windows, which a limit on the distance alone would often mistake for drift."""
    training = draw(200, 0)
    recent = [draw(20, seed) for seed in range(1, 201)]
    decisions = [ask(images, training).decision for images in recent]
    # 1 in 100 is allowed; quantities that follow from each other make it fewer.
    assert decisions.count("drift") <= 5
    careless = DriftConfig(max_distance=0.2, confidence=0.001)
    assert sum(ask(images, training, careless).decision == "drift" for images in recent) > 60


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"brighter": 0.1}, {"brightness"}),
        ({"away": 3.0}, {EMBEDDING}),
        ({"ring": 0.0}, {"share of ring"}),
        ({"ring": 0.4, "brighter": -0.2}, {"brightness", "share of ring"}),
    ],
)
def test_what_differs_is_named_and_nothing_else(changes, names: set[str]) -> None:
    found = ask(draw(60, 1, **changes), draw(300, 0))
    assert found.decision == "drift"
    drifted = {finding.name for finding in found.drifted}
    if EMBEDDING in names:
        # Features that move far move along some directions too.
        drifted -= DIRECTIONS
    assert drifted == names
    assert found.findings[0].name in names | DIRECTIONS


def test_a_new_size_is_a_drift_though_all_images_have_one_size() -> None:
    found = ask([replace(image, width=1024) for image in draw(30, 1)], draw(300, 0))
    assert [finding.name for finding in found.drifted] == ["width"]
    (width,) = found.drifted
    assert (width.distance, width.unseen) == (1.0, 1.0)
    assert by_name(found)["height"].distance == 0


def test_the_distance_is_that_between_the_shares_below_a_value() -> None:
    """By hand: below 0.5 lie all training images and a quarter of the recent ones."""
    training = [replace(PLAIN, means=(0.4,))] * 40
    recent = [replace(PLAIN, means=(0.4,))] * 10 + [replace(PLAIN, means=(0.6,))] * 30
    found = by_name(ask(recent, training))["brightness"]
    assert found.distance == pytest.approx(0.75)
    assert found.unseen == pytest.approx(0.75)
    assert (found.recent.median, found.training.median, found.recent.images) == (0.6, 0.4, 40)


def test_a_difference_beyond_chance_that_is_small_is_no_drift() -> None:
    found = ask(draw(3000, 1, brighter=0.02), draw(3000, 0))
    assert by_name(found)["brightness"].p_value < 1e-6
    assert found.decision == "alike"


def test_a_large_distance_among_few_images_is_no_drift() -> None:
    training = [replace(PLAIN, means=(number / 100,)) for number in range(100)]
    recent = [replace(PLAIN, means=(number / 20 / 1.6,)) for number in range(20)]
    found = ask(recent, training)
    assert by_name(found)["brightness"].distance > CONFIG.max_distance
    assert found.decision == "alike"


@pytest.mark.parametrize(("recent", "training"), [(19, 100), (100, 19), (0, 100)])
def test_too_few_images_are_too_few_to_tell(recent: int, training: int) -> None:
    found = ask(draw(recent, 1, brighter=0.4), draw(training, 0))
    assert found.decision == "too few to tell"
    assert {finding.distance for finding in found.findings} == {None}
    assert (found.num_recent, found.num_training) == (recent, training)


def test_undefined_values_stay_undefined_and_do_not_count() -> None:
    training, recent = draw(100, 0), draw(40, 1, brighter=0.2)
    blind = [replace(image, shares={}, embedding=(None,) * 8) for image in recent]
    found = ask(blind, training)
    assert [finding.name for finding in found.drifted] == ["brightness"]
    for name in ("share of ring", EMBEDDING):
        finding = by_name(found)[name]
        assert (finding.distance, finding.p_value, finding.recent, finding.unseen) == (None, None, None, None)
        assert finding.training is not None
    # Last, and beside defined ones.
    assert {finding.name for finding in found.findings[-5:]} == {"share of ring", EMBEDDING, *DIRECTIONS}


def test_an_image_of_other_channels_is_undefined_where_it_has_no_value() -> None:
    training = [replace(image, means=image.means * 3, deviations=image.deviations * 3) for image in draw(50, 0)]
    training = [replace(image, channel_range=0.3) for image in training]
    found = by_name(ask(draw(30, 1), training))
    assert found["brightness of channel 1"].distance is not None
    assert found["brightness of channel 3"].distance is None
    assert found["difference of channels"].distance is None


def test_gray_images_that_are_read_as_colour_are_a_drift() -> None:
    training = [replace(image, channel_range=0.3) for image in draw(50, 0)]
    gray = [replace(image, channel_range=0.0) for image in draw(30, 1)]
    assert [finding.name for finding in ask(gray, training).drifted] == ["difference of channels"]


def test_features_without_spread_have_no_distance_and_a_dead_one_does_not_decide_alone() -> None:
    same = [replace(image, embedding=(1.0, 2.0)) for image in draw(30, 0)]
    assert by_name(ask(draw(30, 1), same))[EMBEDDING].distance is None
    assert np.isnan(training_quantities(same)[EMBEDDING]).all()
    rng = np.random.default_rng(0)
    dead = [replace(PLAIN, embedding=(float(rng.normal()), 0.0)) for _ in range(30)]
    (distance,) = recent_quantities([replace(PLAIN, embedding=(0.0, 0.01))], dead)[EMBEDDING]
    assert distance < 1


def test_a_training_image_is_measured_from_the_others() -> None:
    """As if each were a recent image, and the training images all but it."""
    training = draw(12, 0)
    expected = [
        recent_quantities([image], [other for other in training if other is not image])[EMBEDDING][0]
        for image in training
    ]
    # The least spread is that of all, here of no consequence.
    assert training_quantities(training)[EMBEDDING].tolist() == pytest.approx(expected)


@given(
    st.lists(st.floats(-100, 100), min_size=3, max_size=40),
    st.lists(st.floats(-100, 100), min_size=3, max_size=40),
    st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=50)
def test_neither_order_nor_unit_changes_a_distance(recent, training, random) -> None:
    config = DriftConfig(min_images=3)

    def distance(new: Sequence[float], old: Sequence[float]) -> float | None:
        both = [{"height": np.array(values, dtype=np.float64)} for values in (new, old)]
        return compare(*both, config).findings[0].distance

    found = distance(recent, training)
    assert 0 <= found <= 1
    shuffled = random.sample(recent, len(recent))
    assert distance(shuffled, training) == found
    assert distance(training, recent) == pytest.approx(found)
    # Powers of two lose no digit.
    assert distance([4 * value for value in recent], [4 * value for value in training]) == found
    assert distance(recent, recent) == 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"max_distance": 1.0}, "drift.max_distance: 1.0: must be between 0 and 1."),
        ({"confidence": 0.0}, "drift.confidence: 0.0: must be between 0 and 1."),
        ({"window_days": 0}, "drift.window_days: 0: must be above 0 and at most 36500."),
        ({"window_days": math.nan}, "drift.window_days: nan: must be above 0 and at most 36500."),
        ({"window_days": 1_000_000}, "drift.window_days: 1000000: must be above 0 and at most 36500."),
        ({"min_images": 2}, "drift.min_images: 2: must be at least 3."),
        ({"window_images": 19}, "drift.window_images: 19: fewer than min_images (20) never suffice."),
        ({"training_images": 5}, "drift.training_images: 5: fewer than min_images (20) never suffice."),
    ],
)
def test_limits_that_make_no_sense_are_refused(changes, text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        DriftConfig(**changes)
    assert str(caught.value) == text


def draw_features(count: int, seed: int, *, strengths: Sequence[float], shift: float = 0.0) -> list[Traits]:
    """32 features that follow a few causes, of standard deviation 1, with these strengths; `shift` moves the first."""
    ways = np.random.default_rng(99).normal(size=(len(strengths), 32)) * np.array(strengths)[:, None]
    rng = np.random.default_rng(seed)
    causes = rng.normal(size=(count, len(strengths)))
    causes[:, 0] += shift
    return [
        replace(PLAIN, embedding=tuple(row)) for row in (causes @ ways + rng.normal(size=(count, 32)) / 10).tolist()
    ]


def test_features_that_move_to_one_side_by_their_usual_spread_are_a_drift_of_a_direction() -> None:
    """A distance from the mean, which has no sign, hardly sees it."""
    strengths = (2, 1, 1, 1)
    training = draw_features(300, 0, strengths=strengths)
    found = ask(draw_features(60, 1, strengths=strengths, shift=1.0), training)
    assert {finding.name for finding in found.drifted} == {"feature direction 1"}
    assert ask(draw_features(60, 2, strengths=strengths), training).decision == "alike"


def test_directions_found_among_few_images_raise_no_false_alarm() -> None:
    """Many features without order: the images that tell a direction lie along it as no others do."""

    def images(count: int, seed: int) -> list[Traits]:
        rows = np.random.default_rng(seed).normal(size=(count, 1024))
        return [replace(PLAIN, embedding=tuple(row)) for row in rows.tolist()]

    training = images(80, 0)
    strict = DriftConfig(max_distance=0.1)
    looks = [ask(images(200, seed), training, strict) for seed in range(1, 6)]
    assert all("feature direction 1" in by_name(look) for look in looks)
    drifted = {finding.name for look in looks for finding in look.drifted}
    assert not drifted & DIRECTIONS


def test_directions_need_training_images_beside_those_that_tell_them() -> None:
    training = draw_features(39, 0, strengths=(1, 1))
    found = by_name(ask(draw_features(30, 1, strengths=(1, 1), shift=9), training))
    assert found["feature direction 1"].distance is None
    assert found[EMBEDDING].distance is not None


def test_there_are_as_many_directions_as_training_images_differ_in() -> None:
    image = replace(PLAIN, embedding=(1.0, 2.0, 3.0, 4.0))
    training = [replace(image, embedding=(float(number), 2.0, 3.0, 4.0)) for number in range(50)]
    names = by_name(ask(training, training))
    assert {name for name in names if name.startswith("feature direction")} == {"feature direction 1"}
    assert "feature direction 1" not in by_name(ask([image] * 30, [image] * 50))
