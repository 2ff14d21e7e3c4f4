"""Against real SQLite stores."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import tracking
from pipeline.append_log import open_log
from pipeline.past_judgements import SKETCH_SIZE, note_judgement, shared_share
from unet_core.errors import RegistryError


def samples(count: int, first: int = 0) -> frozenset[str]:
    return frozenset(hashlib.sha256(str(number).encode()).hexdigest()[:16] for number in range(first, first + count))


def version(number: int) -> tracking.Version:
    return tracking.Version(
        name="unet", number=str(number), run_id=None, model_sha256=f"{number:064d}", weights_sha256="", tags={}
    )


def sketch_of(seen: frozenset[str]) -> frozenset[str]:
    return frozenset(sorted(seen)[:SKETCH_SIZE])


@given(st.integers(1, 200), st.integers(0, 255), st.integers(0, 300))
def test_the_share_of_a_small_test_set_is_exact(today: int, then: int, shift: int) -> None:
    share = shared_share(samples(today), sketch_of(samples(then, shift)))
    assert share == max(0, min(today, shift + then) - shift) / today


@pytest.mark.parametrize("kept", [0.0, 0.25, 0.75, 1.0])
def test_the_share_of_a_large_test_set_is_estimated(kept: float) -> None:
    before = samples(20_000)
    after = samples(20_000, round(20_000 * (1 - kept)))
    # Four standard deviations of a share of 256.
    assert shared_share(after, sketch_of(before)) == pytest.approx(kept, abs=4 * 0.5 / SKETCH_SIZE**0.5)


def test_a_few_images_of_a_large_test_set_may_all_have_been_seen() -> None:
    before = samples(100_000)
    assert shared_share({max(before)}, sketch_of(before)) == 1


@pytest.mark.slow
def test_other_pairs_on_half_of_the_images_count_and_the_same_pair_does_not(client) -> None:
    today = samples(63)
    assert note_judgement(client, version(1), None, today) == 0
    assert note_judgement(client, version(1), None, today) == 0, "asked again"
    assert note_judgement(client, version(2), version(1), today) == 1
    assert note_judgement(client, version(3), version(1), samples(80)) == 2, "the test set grew"
    assert note_judgement(client, version(3), version(1), samples(63, 60)) == 0, "3 and 20 of 63 images"
    assert note_judgement(client, version(3), version(1), samples(80)) == 2
    assert note_judgement(client, version(1), version(3), today) == 3, "the other way round is another look"


@pytest.mark.slow
def test_a_damaged_line_is_an_error(client) -> None:
    open_log(client, "unet judgements").claim("mine", "{}")
    with pytest.raises(RegistryError) as caught:
        note_judgement(client, version(1), None, samples(3))
    assert str(caught.value) == (
        "the log of judgements is damaged: entry mine: 'sketch'. It was not written by this command; look with "
        "`make ui`."
    )
