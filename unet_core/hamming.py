"""Near pairs among 64-bit hashes: exact, in a minute for a million of them.

Multi-index hashing (Norouzi, Punjani and Fleet 2012): hashes that differ in at most D bits differ in at most D // 4
bits in one of four bands, so only those with like bands need to be compared.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import numpy.typing as npt

from unet_core.errors import DataError

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

#: More pairs would fill the memory, and no data set of different images has them.
MAX_PAIRS = 20_000_000

_NUM_BANDS, _BAND_BITS = 4, 16
#: Comparisons at a time: some megabytes.
_CHUNK = 2**18


def find_near_pairs(hashes: Hashes, max_distance: int) -> Indices:
    """All pairs (n, 2) of places, first < second, sorted, whose hashes differ in at most `max_distance` bits (0 to 11).

    Equal hashes are collapsed: each place is paired with the first of the same hash, and only these firsts with others;
    all other pairs follow from these. Otherwise 100,000 equal hashes would make five billion pairs.

    DataError if more than `MAX_PAIRS` remain.
    """
    assert 0 <= max_distance < 3 * _NUM_BANDS, "beyond that every band would be compared with most others"
    _, firsts, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    first_of_place = firsts[inverse]
    again = np.flatnonzero(first_of_place != np.arange(len(hashes)))
    # A pair as one whole number, which takes half the room and is sorted in place.
    packed = np.concatenate(
        [first_of_place[again] << 32 | again, _distinct_pairs(hashes[firsts], firsts, max_distance)]
    )
    packed.sort()
    return np.stack([packed >> 32, packed & 0xFFFFFFFF], axis=1)


def _distinct_pairs(hashes: Hashes, places: Indices, max_distance: int) -> Indices:
    """Near pairs of different hashes, each as smaller place << 32 | larger place."""
    bands = _split_into_bands(hashes)
    # Were the first `extra` + 1 bands to differ in more than `radius` bits each and the others in at least `radius`,
    # they would differ in more than `max_distance` together: every near pair is found in one band or another.
    radius, extra = divmod(max_distance, _NUM_BANDS)
    radii = [radius if number <= extra else radius - 1 for number in range(_NUM_BANDS)]
    found: list[Indices] = [np.empty(0, dtype=np.int64)]
    num_found = 0
    for number, allowed in enumerate(radii):
        for pairs in _pairs_by_band(hashes, bands[number], allowed, max_distance):
            # A pair that an earlier band brought together is there already.
            new = np.ones(len(pairs), dtype=bool)
            for earlier in range(number):
                differing = bands[earlier][pairs[:, 0]] ^ bands[earlier][pairs[:, 1]]
                new &= np.bitwise_count(differing).astype(np.int64) > radii[earlier]
            smaller, larger = np.sort(places[pairs[new]], axis=1).T
            found.append(smaller << 32 | larger)
            num_found += len(smaller)
            if num_found > MAX_PAIRS:
                raise DataError(
                    f"too many near duplicates: {len(hashes)} different hashes make more than {MAX_PAIRS:,} near "
                    "pairs. Thin out the source (frames of a still scene?) before adding it."
                )
    return np.concatenate(found)


def _split_into_bands(hashes: Hashes) -> npt.NDArray[np.uint16]:
    """(4, n): every fourth bit, since neighbouring bits (frequencies) are alike in many images."""
    bands = np.zeros((_NUM_BANDS, len(hashes)), dtype=np.uint16)
    for bit in range(64):
        bands[bit % _NUM_BANDS] |= ((hashes >> np.uint64(bit)) & np.uint64(1)).astype(np.uint16) << (bit // _NUM_BANDS)
    return bands


def _pairs_by_band(
    hashes: Hashes, band: npt.NDArray[np.uint16], radius: int, max_distance: int
) -> Iterator[npt.NDArray[np.int32]]:
    """Pairs that differ in at most `radius` bits of the band and `max_distance` of all, chunk by chunk."""
    order = np.argsort(band, kind="stable").astype(np.int32)
    keys, ordered = band[order].astype(np.int32), hashes[order]
    bounds = np.searchsorted(keys, np.arange(2**_BAND_BITS + 1)).astype(np.int32)
    places = np.arange(len(keys), dtype=np.int32)
    for mask in _masks(radius):
        # Each pair of buckets once: from the smaller key to the larger, and within a bucket from left to right.
        rows = places if mask == 0 else places[keys < keys ^ mask]
        partners = keys[rows] ^ mask
        starts = rows + 1 if mask == 0 else bounds[partners]
        counts = bounds[partners + 1] - starts
        for begin, end in _chunks(counts):
            yield order[_compare(ordered, rows[begin:end], starts[begin:end], counts[begin:end], max_distance)]


def _masks(radius: int) -> Iterator[int]:
    """Every way in which up to `radius` bits of a band can differ; none for a negative radius."""
    for num_bits in range(radius + 1):
        for bits in combinations(range(_BAND_BITS), num_bits):
            yield sum(1 << bit for bit in bits)


def _chunks(counts: npt.NDArray[np.int32]) -> Iterator[tuple[int, int]]:
    """Ranges of rows that have about `_CHUNK` comparisons together; a row is never divided."""
    totals = np.cumsum(counts, dtype=np.int64)
    begin = 0
    while begin < len(counts):
        before = totals[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(totals, before + _CHUNK, side="right")))
        yield begin, end
        begin = end


def _compare(
    hashes: Hashes,
    rows: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int32],
    counts: npt.NDArray[np.int32],
    max_distance: int,
) -> npt.NDArray[np.int32]:
    """Compare each row with the `counts` places from its `starts` on; places of the near ones (n, 2)."""
    offsets = starts - (np.cumsum(counts, dtype=np.int32) - counts)
    others = np.repeat(offsets, counts) + np.arange(counts.sum(), dtype=np.int32)
    near = np.flatnonzero(np.bitwise_count(np.repeat(hashes[rows], counts) ^ hashes[others]) <= max_distance)
    lefts = rows[np.searchsorted(np.cumsum(counts), near, side="right")]
    return np.stack([lefts, others[near]], axis=1)
