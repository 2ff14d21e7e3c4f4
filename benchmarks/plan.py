"""One epoch's plan over a huge index: 100,000 shards of 1,000 samples.

`python -m benchmarks.plan [--quick]` prints one JSON line: seconds to plan and to jump to steps all over the epoch, and
the peak of the process's memory. Compares with nothing: it is a budget.
"""

import argparse
import time

import numpy as np

from benchmarks.workspace import peak_mb, print_result
from unet_core.plan import plan_epoch


def main() -> None:
    """Plan an epoch, take steps from its whole length, and one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the shards")
    arguments = parser.parse_args()
    sizes = [1000] * (10_000 if arguments.quick else 100_000)
    before = peak_mb()
    started = time.perf_counter()
    plan = plan_epoch(sizes, seed=0, epoch=3, lanes=8, samples_per_lane=2, block_shards=16)
    planned = time.perf_counter() - started
    for number in np.linspace(0, plan.num_steps - 1, 1000).astype(int):
        plan.step(int(number))
    jumped = time.perf_counter() - started - planned
    for number in range(10_000):
        plan.step(number)
    seconds = time.perf_counter() - started
    print_result(
        {
            "shards": len(sizes),
            "samples": sum(sizes),
            "seconds": round(seconds, 3),
            "plan_seconds": round(planned, 3),
            "jumps_per_second": round(1000 / jumped),
            "steps_per_second": round(10_000 / (seconds - planned - jumped)),
            "peak_mb": round(peak_mb(), 1),
            "above_start_mb": round(peak_mb() - before, 1),
            "compared_with": "nothing: a budget",
        }
    )


if __name__ == "__main__":
    main()
