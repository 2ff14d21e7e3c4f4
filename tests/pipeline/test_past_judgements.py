"""Against real SQLite stores."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import tracking
from pipeline.append_log import open_log
from pipeline.past_judgements import SKETCH_SIZE, Judged, count_others, note_judgement, shared_share
from unet_core.errors import RegistryError


def samples(count: int, first: int = 0) -> frozenset[str]:
    return frozenset(hashlib.sha256(str(number).encode()).hexdigest()[:16] for number in range(first, first + count))


def version(number: int) -> tracking.Version:
    return tracking.Version(
        name="unet", number=str(number), run_id=None, model_sha256=f"{number:064d}", weights_sha256="", tags={}
    )


def sketch_of(seen: frozenset[str]) -> frozenset[str]:
    return frozenset(sorted(seen)[:SKETCH_SIZE])


def judge(
    client: tracking.Client, challenger: tracking.Version, champion: tracking.Version | None, seen: frozenset[str]
) -> int:
    now = Judged.of(challenger, champion, seen)
    count = count_others(client, "unet", now)
    note_judgement(client, "unet", now)
    return count


@given(st.integers(1, 200), st.integers(0, 255), st.integers(0, 300))
def test_the_share_of_a_small_test_set_is_exact(today: int, then: int, shift: int) -> None:
    share = shared_share(samples(today), sketch_of(samples(then, shift)))
    assert share == max(0, min(today, shift + then) - shift) / today


@pytest.mark.parametrize("kept", [0.0, 0.25, 0.75, 1.0])
@pytest.mark.parametrize("before", [20_000, 40_000])
def test_the_share_of_a_large_test_set_is_estimated(kept: float, before: int) -> None:
    after = samples(20_000, before - round(20_000 * kept))
    # Four standard deviations of a share of the samples that lie below the sketch's largest.
    known = SKETCH_SIZE * 20_000 / before
    assert shared_share(after, sketch_of(samples(before))) == pytest.approx(kept, abs=4 * 0.5 / known**0.5)


def test_a_few_images_of_a_large_test_set_may_all_have_been_seen() -> None:
    before = samples(100_000)
    assert shared_share({max(before)}, sketch_of(before)) == 1
    assert shared_share(samples(200, 100_000), sketch_of(before)) == 1, "of which too few are known"


@pytest.mark.slow
def test_other_pairs_on_half_of_the_images_count_and_the_same_pair_does_not(client) -> None:
    today = samples(63)
    assert judge(client, version(1), None, today) == 0
    assert judge(client, version(1), None, today) == 0, "asked again"
    assert judge(client, version(2), version(1), today) == 1
    assert judge(client, version(3), version(1), samples(80)) == 2, "the test set grew"
    assert judge(client, version(3), version(1), samples(63, 60)) == 0, "3 and 20 of 63 images"
    assert judge(client, version(3), version(1), samples(79)) == 2, "the same pair, on one image less"
    assert judge(client, version(1), version(3), today) == 3, "the other way round is another look"


@pytest.mark.slow
def test_a_damaged_line_is_an_error(client) -> None:
    open_log(client, "unet judgements").claim("mine", '{"pair": "a"}')
    with pytest.raises(RegistryError) as caught:
        judge(client, version(1), None, samples(3))
    assert str(caught.value) == (
        "the log of judgements is damaged: entry mine: 'sketch'. It was not written by this command; look with "
        "`make ui`."
    )
