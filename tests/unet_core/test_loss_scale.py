from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from unet_core.loss_scale import GROWTH_STEPS, LARGEST, LossScale


def test_an_overflow_halves_the_scale_and_forgets_the_good_steps() -> None:
    assert LossScale(scale=8.0, good_steps=5).after_step(is_finite=False) == LossScale(scale=4.0, good_steps=0)


def test_many_good_steps_double_the_scale() -> None:
    almost = LossScale(scale=8.0, good_steps=GROWTH_STEPS - 2)
    assert almost.after_step(is_finite=True) == LossScale(scale=8.0, good_steps=GROWTH_STEPS - 1)
    assert almost.after_step(is_finite=True).after_step(is_finite=True) == LossScale(scale=16.0)


def test_the_scale_has_an_end() -> None:
    assert LossScale(scale=LARGEST, good_steps=GROWTH_STEPS).after_step(is_finite=True).scale == LARGEST
    assert LossScale(scale=1.0).is_smallest
    assert not LossScale(scale=2.0).is_smallest


@given(st.lists(st.booleans(), max_size=16))
def test_the_scale_is_always_a_power_of_two(steps: list[bool]) -> None:
    found = reduce(lambda scale, is_finite: scale.after_step(is_finite=is_finite), steps, LossScale())
    assert found.scale == 2.0**16 / 2 ** steps.count(False)
