"""Near pairs among hashes, random and skewed: seconds and peak memory on one core.

The skewed set has 5 % equal hashes and a fifth in clusters of 20 that differ in a few bits. Compares with nothing: it
is a budget. `python -m benchmarks.duplicates [--quick]` prints one JSON line last.
"""

import argparse
import multiprocessing
import resource
import sys
import time

import numpy as np
import numpy.typing as npt

from benchmarks.workspace import print_result
from unet_core.duplicates import MAX_DISTANCE_BITS, find_candidates, fingerprint
from unet_core.hamming import find_near_pairs


def main() -> None:
    """Search each set in a process of its own, so that its peak is its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the hashes")
    num_hashes = 100_000 if parser.parse_args().quick else 1_000_000
    found = {}
    for kind in ("random", "skewed", "images"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[kind] = pool.apply(_measure, (kind, num_hashes))
        print(f"{kind}: {found[kind]}", flush=True)
    searches = (found["random"], found["skewed"])
    print_result(
        {
            "seconds": max(search["seconds"] for search in searches),
            "peak_mb": max(search["peak_mb"] for search in searches),
            "num_hashes": num_hashes,
            "max_distance_bits": MAX_DISTANCE_BITS,
            "sets": found,
            "compared_with": "nothing: a budget of 60 seconds and 1000 MB for 1,000,000",
        }
    )


def _measure(kind: str, num_hashes: int) -> dict[str, float]:
    if kind == "images":
        return _measure_images()
    hashes = _draw(num_hashes, is_skewed=kind == "skewed")
    begun = time.perf_counter()
    pairs = find_near_pairs(hashes, MAX_DISTANCE_BITS)
    seconds = time.perf_counter() - begun
    return {"seconds": round(seconds, 1), "peak_mb": _peak_mb(), "num_pairs": len(pairs)}


def _measure_images() -> dict[str, float]:
    """A fingerprint of 512 x 512 gray pixels, and the search among 20,000 frames of a still scene."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (512, 512, 1), dtype=np.uint8)
    begun = time.perf_counter()
    for _ in range(50):
        fingerprint(image)
    milliseconds = (time.perf_counter() - begun) * 20
    scene = rng.integers(0, 255, (8, 8, 1), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1) // 2
    prints = [fingerprint(scene + rng.integers(0, 3, (64, 64, 1), dtype=np.uint8)) for _ in range(20_000)]
    begun = time.perf_counter()
    found = find_candidates(prints)
    seconds = time.perf_counter() - begun
    return {
        "fingerprint_milliseconds": round(milliseconds, 2),
        "still_scene_seconds": round(seconds, 1),
        "still_scene_pairs": len(found.pairs),
    }


def _draw(num_hashes: int, *, is_skewed: bool) -> npt.NDArray[np.uint64]:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, num_hashes, dtype=np.uint64)
    if is_skewed:
        hashes[: num_hashes // 20] = 0
        clustered = slice(num_hashes // 20, num_hashes // 4)
        copies = hashes[clustered][::20].repeat(20)[: num_hashes // 4 - num_hashes // 20]
        for _ in range(3):
            copies = copies ^ (np.uint64(1) << rng.integers(0, 64, len(copies)).astype(np.uint64))
        hashes[clustered] = copies
    return rng.permutation(hashes)


def _peak_mb() -> float:
    # Linux counts in kilobytes, macOS in bytes.
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


if __name__ == "__main__":
    main()
