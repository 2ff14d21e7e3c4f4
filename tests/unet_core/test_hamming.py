import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_core import hamming
from unet_core.errors import DataError
from unet_core.hamming import find_near_pairs


def draw_hashes(seed: int, count: int, num_sources: int) -> np.ndarray:
    """Hashes in clusters: each is one of a few with some bits changed."""
    rng = np.random.default_rng(seed)
    hashes = rng.choice(rng.integers(0, 2**64, num_sources, dtype=np.uint64), count)
    for _ in range(8):
        bits = np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64)
        hashes = np.where(rng.random(count) < 0.7, hashes ^ bits, hashes)
    return hashes


def all_pairs(hashes: np.ndarray, max_distance: int) -> list[tuple[int, int]]:
    """What is promised, by comparing everything with everything."""
    firsts: dict[int, int] = {}
    pairs = []
    for number, value in enumerate(hashes.tolist()):
        if value in firsts:
            pairs.append((firsts[value], number))
            continue
        pairs += [(place, number) for other, place in firsts.items() if (other ^ value).bit_count() <= max_distance]
        firsts[value] = number
    return sorted(pairs)


@pytest.mark.parametrize("max_distance", range(12))
def test_every_near_pair_is_found_once(max_distance: int) -> None:
    hashes = draw_hashes(max_distance, 400, 40)
    hashes[[3, 50, 399]] = hashes[7]
    found = find_near_pairs(hashes, max_distance)
    assert [tuple(pair) for pair in found.tolist()] == all_pairs(hashes, max_distance)
    assert len(found) > 2


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.integers(0, 11))
def test_any_hashes_are_compared(values: list[int], max_distance: int) -> None:
    hashes = np.array(values, dtype=np.uint64)
    assert [tuple(pair) for pair in find_near_pairs(hashes, max_distance).tolist()] == all_pairs(hashes, max_distance)


def test_bits_that_differ_may_lie_anywhere() -> None:
    for bits in ([0, 4, 8, 12, 16, 20, 24, 28], [0, 1, 2, 3, 60, 61, 62, 63], [3, 7, 11, 15, 19, 23, 1, 2]):
        other = sum(1 << bit for bit in bits)
        assert find_near_pairs(np.array([0, other], dtype=np.uint64), 8).tolist() == [[0, 1]]
        assert find_near_pairs(np.array([0, other], dtype=np.uint64), 7).tolist() == []


def test_equal_hashes_are_paired_with_their_first_only() -> None:
    found = find_near_pairs(np.zeros(100_000, dtype=np.uint64), 8)
    assert len(found) == 99_999
    assert not found[:, 0].any()


def test_too_many_near_hashes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "MAX_PAIRS", 10)
    with pytest.raises(DataError) as caught:
        find_near_pairs(np.arange(16, dtype=np.uint64), 8)
    assert str(caught.value) == (
        "too many near duplicates: 16 different hashes make more than 10 near pairs. "
        "Thin out the source (frames of a still scene?) before adding it."
    )
