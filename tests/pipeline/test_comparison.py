import numpy as np
import pytest

from pipeline.comparison import MIN_PART_GROUPS, PairedScores, compare, fill_right, image_means

NAN = float("nan")


def paired(challenger, champion, *, slices=None, groups=None) -> PairedScores:
    new, old = np.array(challenger, dtype=float), np.array(champion, dtype=float)
    names = ["ring", "plus"][: new.shape[1]]
    return PairedScores(
        groups=groups or [f"g{number}" for number in range(len(new))],
        classes=names,
        challenger=new,
        champion=old,
        slices=slices or {},
    )


def test_an_images_score_is_the_mean_of_its_defined_classes() -> None:
    means = image_means(np.array([[0.5, 0.7], [NAN, 0.4], [NAN, NAN]]))
    assert means[:2].tolist() == [pytest.approx(0.6), pytest.approx(0.4)]
    assert np.isnan(means[2])


def test_rightly_predicting_nothing_counts_as_one_beside_a_hallucination() -> None:
    scores, others = np.array([[NAN, NAN, 0.3]]), np.array([[0.0, NAN, NAN]])
    assert fill_right(scores, others)[0].tolist() == [1.0, pytest.approx(NAN, nan_ok=True), pytest.approx(0.3)]


def test_classes_and_slices_are_compared_on_their_own_images() -> None:
    new = [[0.9, 0.5], [0.8, NAN], [0.7, 0.4], [0.6, NAN]]
    old = [[0.8, 0.6], [0.8, NAN], [0.6, 0.6], [0.6, NAN]]
    words = ["pink", "pink", "blue", None]
    found = compare(paired(new, old, slices={"stain": words}), draws=50, seed=0)
    assert found.whole.images == found.whole.groups == 4
    assert found.whole.difference == pytest.approx((0.0 + 0.0 - 0.05 + 0.0) / 4)
    ring, plus = found.classes
    assert (ring.name, ring.images, ring.difference) == ("ring", 4, pytest.approx(0.05))
    assert (plus.name, plus.images, plus.challenger, plus.champion) == (
        "plus",
        2,
        pytest.approx(0.45),
        pytest.approx(0.6),
    )
    blue, pink = found.slices
    assert (blue.name, blue.column, blue.images, blue.difference) == ("blue", "stain", 1, pytest.approx(-0.05))
    assert (pink.name, pink.images, pink.difference) == ("pink", 2, pytest.approx(0.0))


def test_small_parts_have_no_interval() -> None:
    values = np.linspace(0.5, 0.9, 12)[:, None]
    words = ["rare"] * (MIN_PART_GROUPS - 1) + ["often"] * (13 - MIN_PART_GROUPS)
    often, rare = compare(paired(values, values - 0.1, slices={"site": words}), draws=50, seed=0).slices
    assert rare.interval_95 is None
    assert often.interval_95 == (pytest.approx(0.1), pytest.approx(0.1))


def test_a_class_that_never_occurs_is_left_out() -> None:
    found = compare(paired([[0.9, NAN], [0.8, NAN]], [[0.9, NAN], [0.7, NAN]]), draws=50, seed=0)
    assert [part.name for part in found.classes] == ["ring"]
