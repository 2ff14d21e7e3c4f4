"""What the gate is worth: time and memory on a large test set, and how often it promotes by chance and by merit.

`python -m benchmarks.gate [--quick]` prints one JSON line last. `false_promotion_rate` is the largest of all `cases`,
at a nominal 5 %: 20, 63 and 500 groups, models that are equal (or worse by just the margin), differences that are
normal or have a long tail of losses, of which few groups show too little. `true_promotion_rate` is for 63 images and a
gain of 0.015 whose differences scatter by 0.0365, so that its 95 % interval is 0.006 to 0.024. Compares with nothing:
it is a budget.
"""

import argparse
import time
from dataclasses import replace

import numpy as np

from benchmarks.workspace import peak_mb, print_result
from pipeline.bootstrap import Floats
from pipeline.comparison import PairedScores
from pipeline.gate import GateConfig, Measured, judge

CONFIG = GateConfig(min_score=0.5, confidence=0.95, min_groups=20, bootstrap_draws=1000, seed=0)
MARGIN = 0.005
GAIN, SCATTER = 0.015, 0.0365
#: Groups and trials.
SIZES = {20: 2000, 63: 1500, 500: 400}
#: Kinds of differences: normal; at the margin's boundary; groups of five images that share their luck; long tails.
KINDS = ("normal", "margin", "groups", "exponential losses", "lognormal losses")


def main() -> None:
    """Simulate, then time the large case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of images and trials")
    share = 10 if parser.parse_args().quick else 1
    cases: dict[str, float] = {}
    largest: dict[int, float] = {}
    for size, trials in SIZES.items():
        found = {kind: _promotion_rate(kind, size, trials // share) for kind in KINDS}
        cases |= {f"{kind}, {size}": rate for kind, rate in found.items()}
        largest[size] = max(found.values())
        print(size, found, flush=True)
    seconds = _time_large(100_000 // share)
    print_result(
        {
            "seconds": round(seconds, 2),
            "peak_mb": round(peak_mb(), 1),
            "false_promotion_rate": max(largest.values()),
            "false_promotion_rates": largest,
            "true_promotion_rate": _promotion_rate("normal", 63, 1000 // share, gain=GAIN),
            "nominal": round(1 - CONFIG.confidence, 6),
            "binomial_bound": {
                size: round(0.05 + 3 * (0.05 * 0.95 / (trials // share)) ** 0.5, 4) for size, trials in SIZES.items()
            },
            "cases": cases,
            "images": 100_000 // share,
            "classes": 20,
            "draws": 10_000,
            "compared_with": "nothing: a budget of 20 seconds and 2000 MB",
        }
    )


def _promotion_rate(kind: str, size: int, trials: int, *, gain: float = 0.0) -> float:
    rng = np.random.default_rng([size, KINDS.index(kind)])
    margin = MARGIN if kind == "margin" else 0.0
    config = replace(CONFIG, margin=margin)
    promoted = 0
    for seed in range(trials):
        images, difference = _draw(rng, kind, size)
        difficulty = np.full(images, 0.8)
        scores = _pair(difficulty + difference + gain - margin, difficulty, num_groups=size)
        verdict = judge(scores, replace(config, seed=seed), score="Dice", measured=Measured())
        promoted += verdict.decision == "promoted"
    return round(promoted / trials, 4)


def _draw(rng: np.random.Generator, kind: str, size: int) -> tuple[int, Floats]:
    """Differences whose mean is zero, of standard deviation SCATTER."""
    if kind == "exponential losses":
        return size, SCATTER * (1 - rng.exponential(size=size))
    if kind == "lognormal losses":
        # Skewness 6: one image in a hundred loses more than three standard deviations.
        spread = ((np.e - 1) * np.e) ** 0.5
        return size, SCATTER * (np.exp(0.5) - rng.lognormal(size=size)) / spread
    if kind == "groups":
        return 5 * size, rng.normal(0, SCATTER, size).repeat(5) + rng.normal(0, SCATTER / 3, 5 * size)
    return size, rng.normal(0, SCATTER, size)


def _pair(challenger: Floats, champion: Floats, *, num_groups: int) -> PairedScores:
    each = len(challenger) // num_groups
    return PairedScores(
        groups=[str(number // each) for number in range(len(challenger))],
        classes=["class"],
        challenger=challenger[:, None],
        champion=champion[:, None],
        slices={},
    )


def _time_large(num_images: int) -> float:
    """Twenty classes, of which an image has two thirds, and four slices."""
    rng = np.random.default_rng(0)
    champion = rng.beta(8, 2, size=(num_images, 20))
    champion[rng.random(champion.shape) < 1 / 3] = np.nan
    scores = PairedScores(
        groups=[f"image {number}" for number in range(num_images)],
        classes=[f"class {number}" for number in range(20)],
        challenger=champion + rng.normal(0.002, 0.05, size=champion.shape),
        champion=champion,
        slices={"site": [f"site {number % 4}" for number in range(num_images)]},
    )
    config = replace(CONFIG, bootstrap_draws=10_000, max_class_drop=0.01, max_slice_drop=0.01)
    begun = time.perf_counter()
    judge(scores, config, score="Dice", measured=Measured())
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
