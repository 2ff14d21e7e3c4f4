from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import skew

from pipeline import bootstrap
from pipeline.bootstrap import Bootstrap, bootstrap_means


def drawn(*columns: list[float], groups: list[int] | None = None, draws: int = 500, seed: int = 0) -> Bootstrap:
    values = np.array(columns, dtype=np.float64).T
    numbers = np.arange(len(values)) if groups is None else np.array(groups)
    return bootstrap_means(values, numbers, draws=draws, seed=seed)


def test_means_are_over_images_and_errors_over_groups() -> None:
    found = drawn([0.1, 0.3, 0.8], groups=[0, 0, 1])
    assert found.means[0] == pytest.approx(0.4)
    assert found.num_groups[0] == 2
    # Rests of the groups: 0.4 - 2 * 0.4 and 0.8 - 0.4; sqrt(2 / 1 * (0.16 + 0.16)) / 3.
    assert found.errors[0] == pytest.approx(0.64**0.5 / 3)


def test_one_image_a_group_has_the_usual_standard_error() -> None:
    values = [0.1, 0.5, 0.2, 0.9]
    assert drawn(values).errors[0] == pytest.approx(np.std(values, ddof=1) / 2)


def test_undefined_values_are_left_out_and_their_column_says_how_many_groups_it_has() -> None:
    nan = float("nan")
    found = drawn([0.2, nan, 0.4], [nan, nan, nan], groups=[0, 1, 2])
    assert found.means[0] == pytest.approx(0.3)
    assert found.num_groups.tolist() == [2, 0]
    assert np.isnan(found.means[1])
    assert found.interval(1) is None


def test_equal_differences_are_a_point_and_sure() -> None:
    found = drawn([0.25] * 6)
    assert found.interval(0) == (pytest.approx(0.25), pytest.approx(0.25))
    assert found.confidence_above(0, 0.2, 0.95) == 1
    assert found.confidence_above(0, 0.25, 0.95) == 0


def test_a_group_is_drawn_as_one() -> None:
    """Ten copies of each of four images are four pieces of evidence, not forty."""
    values = [0.3, -0.1, 0.2, -0.2]
    alone = drawn(values, draws=2000)
    copied = drawn(values * 10, groups=[0, 1, 2, 3] * 10, draws=2000)
    assert copied.interval(0) == pytest.approx(alone.interval(0))
    assert copied.errors[0] == pytest.approx(alone.errors[0])


def test_the_interval_is_at_least_that_of_the_t_distribution_for_normal_values() -> None:
    values = np.random.default_rng(0).normal(0.1, 0.05, 12)
    low, high = drawn(list(values), draws=4000).interval(0) or (0.0, 0.0)
    half = 2.201 * values.std(ddof=1) / 12**0.5  # t quantile, 11 degrees of freedom
    assert low < values.mean() - 0.95 * half
    assert high > values.mean() + 0.95 * half


def test_a_long_tail_widens_the_interval_on_its_own_side_by_its_skewness() -> None:
    values = [*np.linspace(0.0, 0.2, 24), -0.2]
    found = drawn(values)
    assert found.skewness[0] == pytest.approx(skew(values))
    without = replace(found, skewness=np.zeros(1))
    (low, high), (plain_low, plain_high) = found.interval(0) or (0, 0), without.interval(0) or (0, 0)
    assert low == pytest.approx(plain_low + skew(values) * 20 / 25 * found.errors[0])
    assert high == plain_high
    assert found.confidence_above(0, 0.05, 0.95) < without.confidence_above(0, 0.05, 0.95)


def test_few_groups_add_a_whole_skewness_and_not_more() -> None:
    found = drawn([0.1, 0.12, 0.14, -0.1, 0.11])
    plain_low, _ = replace(found, skewness=np.zeros(1)).interval(0) or (0, 0)
    low, _ = found.interval(0) or (0, 0)
    assert low == pytest.approx(max(-1, plain_low + found.skewness[0] * found.errors[0]))


def test_scores_end_at_one() -> None:
    low, high = drawn([-1.0, 1.0, -1.0]).interval(0) or (0.0, 0.0)
    assert (low, high) == (-1.0, 1.0)


def test_draws_follow_their_seed_alone() -> None:
    values = [0.1, 0.4, -0.2, 0.3, 0.0]
    assert drawn(values, seed=3).interval(0) == drawn(values, seed=3).interval(0)
    assert drawn(values, seed=3).interval(0) != drawn(values, seed=4).interval(0)


def test_very_many_groups_in_bundles_have_nearly_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = list(np.random.default_rng(1).exponential(0.1, 4000) - 0.09)
    whole = drawn(values, draws=1000).interval(0)
    monkeypatch.setattr(bootstrap, "MAX_UNITS", 500)
    bundled = drawn(values, draws=1000)
    assert bundled.num_groups[0] == 4000
    assert bundled.interval(0) == pytest.approx(whole, abs=4e-4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=2, max_size=12), st.integers(1, 3))
def test_the_interval_holds_the_mean_and_confidence_falls_with_the_limit(values: list[float], num_groups: int) -> None:
    found = drawn(values, groups=[number % (num_groups + 1) for number in range(len(values))], draws=100)
    low, high = found.interval(0) or (-1.0, 1.0)
    assert low <= found.means[0] + 1e-9
    assert high >= found.means[0] - 1e-9
    confidences = [found.confidence_above(0, limit, 0.95) for limit in (-0.5, 0.0, 0.5)]
    assert confidences == sorted(confidences, reverse=True)
