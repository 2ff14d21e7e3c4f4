"""Seconds from `unet`'s start to the first training step, and from a death to the next step: of a worker, of a host.

Beside it, a trainer of two workers that train nothing, with Ray as it comes: it tells how fast the machine is just now.
The host dies in a cluster of three in network namespaces (as root, on Linux).
`python -m benchmarks.recovery [--local]` prints one JSON line last.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.hosts import ray_hosts, why_not
from benchmarks.workspace import (
    TRAIN,
    make_workspace,
    print_result,
    read_journal,
    run,
    start,
    training_workers,
    wait_for,
    wait_for_step,
)

#: Every step is reported and kept, so that the first report is the first step.
SMALL = {
    "model.width": 4,
    "model.depth": 2,
    "train.epochs": 30,
    "train.lanes": 4,
    "train.samples_per_lane": 1,
    "train.validate_every_epochs": 10,
    "train.checkpoint_every_steps": 1,
    "shard.target_mb": 2.0,
}
#: When the death comes: the workers have found their pace.
DEATH_AFTER_STEP = 12


#: Prints when its workers are there.
TRIVIAL = """
import time
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
TorchTrainer(lambda: print("there", time.time(), flush=True), scaling_config=ScalingConfig(num_workers=2)).fit()
"""


def main() -> None:
    """Train in working trees of their own, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--local", action="store_true", help="leave out the cluster of three hosts")
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        sharded = make_workspace(Path(scratch) / "sharded", "shapes", SMALL)
        run(sharded, "unet", "shapes", "data/raw/shapes", "--count", "60")
        run(sharded, "unet", "add")
        run(sharded, "dvc", "repro", "shard")
        result["trivial_start_seconds"] = measure_trivial(Path(scratch))
        result |= measure_local(shutil.copytree(sharded, Path(scratch) / "local"))
        reason = why_not()
        if arguments.local or reason:
            result["host_not_measured"] = reason or "--local"
        else:
            result |= measure_host(shutil.copytree(sharded, Path(scratch) / "hosts"))
    print_result({**result, "compared_with": "goals: 20 s, 15 s, 30 s"})


def measure_trivial(folder: Path) -> float:
    """Seconds until a trainer of two workers that do nothing has started them."""
    begun = time.time()
    command = [sys.executable, "-c", TRIVIAL]
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=300).stdout
    there = [float(line.split("there ")[1].split()[0]) for line in told.splitlines() if "there " in line]
    return round(max(there) - begun, 1)


def measure_local(folder: Path) -> dict[str, float]:
    """Two workers on this machine; one dies."""
    begun = time.time()
    process = start(folder, *TRAIN, env={"UNET_WORKERS": "2"})
    try:
        first = wait_for(folder, process, lambda told: bool(told.get("steps")))
        wait_for_step(folder, process, DEATH_AFTER_STEP)
        victim = training_workers(process)[0]
        seconds = until_next_step(folder, lambda: victim.send_signal(signal.SIGKILL))
    finally:
        process.kill()
        process.wait()
    return {
        "start_to_first_step_seconds": round(first["time_ms"] / 1000 - begun, 1),
        "worker_death_to_next_step_seconds": round(seconds, 1),
    }


def measure_host(folder: Path) -> dict[str, float]:
    """Three hosts with a worker each; the third dies and does not return."""
    with ray_hosts(3) as hosts:
        begun = time.time()
        process = start(folder, *hosts.hosts[0].inside(*TRAIN), env=hosts.environment)
        try:
            first = wait_for(folder, process, lambda told: told.get("workers") == 3)
            wait_for_step(folder, process, DEATH_AFTER_STEP)
            seconds = until_next_step(folder, hosts.hosts[2].kill)
        finally:
            process.kill()
            process.wait()
    return {
        "cluster_start_to_first_step_seconds": round(first["time_ms"] / 1000 - begun, 1),
        "host_death_to_next_step_seconds": round(seconds, 1),
    }


def until_next_step(folder: Path, kill: Callable[[], None]) -> float:
    """Seconds from a death to the first step after it. Steps that were on their way are told before the loss."""
    before = len(read_journal(folder))
    died = time.time()
    kill()
    deadline = died + 120
    while time.time() < deadline:
        since = read_journal(folder)[before:]
        lost = next((number for number, told in enumerate(since) if "lost" in told), len(since))
        found = next((told for told in since[lost:] if told.get("steps")), None)
        if found is not None:
            return float(found["time_ms"] / 1000 - died)
        time.sleep(0.1)
    raise RuntimeError((folder / "start.log").read_text())


if __name__ == "__main__":
    main()
