"""`unet retrain` is killed at random moments with all that it started: nothing breaks, and a last call completes.

CHAOS_SEED repeats a run's choices (not its moments: processes are never equally fast), CHAOS_KILLS says how many kills.
"""

import contextlib
import json
import os
import random
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.retraining import CALL, Place, make_place
from benchmarks.workspace import start, weights_of
from pipeline import tracking
from pipeline.history import history

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
#: Pictures in the source, one number after another.
BATCHES = (60, 72)
KILLS = int(os.environ.get("CHAOS_KILLS") or 12)


def call_and_kill(place: Place, rng: random.Random, longest_seconds: float) -> int | None:
    """Start a call and kill it at a random moment, mostly with its whole family; its exit code if it ended before."""
    process = start(place.tree, *CALL)
    deadline = time.monotonic() + rng.uniform(0.2, longest_seconds)
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if process.poll() is not None:
        return process.returncode
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    if rng.random() < 0.7:
        kill_all(family)
        # What was started in between.
        kill_all([found for found in psutil.process_iter(["cwd"]) if found.info["cwd"] == str(place.tree)])
    return None


def kill_all(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=30)


def check_nothing_is_broken(place: Place) -> None:
    place.git("fsck", "--no-dangling")
    ledger = place.tree / "arrivals" / "shapes.jsonl"
    if ledger.exists():
        keys = [json.loads(line)["key"] for line in ledger.read_text().splitlines()]
        assert len(keys) == len(set(keys))
    client = place.client()
    champion = tracking.version_by_alias(client, "unet", tracking.CHAMPION)
    entries = history(client, "unet")
    if champion is not None:
        assert champion.number in {entry.version for entry in entries}


@pytest.mark.timeout(600 + 75 * KILLS)
def test_kills_at_random_moments_break_nothing_and_a_last_call_completes(tmp_path: Path) -> None:
    print(f"\nCHAOS_SEED={SEED} CHAOS_KILLS={KILLS}", flush=True)
    rng = random.Random(SEED)
    place = make_place(tmp_path / "place", count=BATCHES[0])
    undisturbed = place.copy_to(tmp_path / "undisturbed")
    started = time.monotonic()
    for count in BATCHES:
        undisturbed.add_shapes(count)
        code, said = undisturbed.call()
        assert code == 10, said
    whole_call = (time.monotonic() - started) / len(BATCHES)
    num_killed, waiting = 0, list(BATCHES[1:])
    while num_killed < KILLS:
        # Early moments are many, or no call would come far.
        code_or_none = call_and_kill(place, rng, whole_call * rng.choice([0.2, 0.5, 1.0]))
        check_nothing_is_broken(place)
        if code_or_none is None:
            num_killed += 1
            print(f"kill {num_killed}", flush=True)
        else:
            # 12: what an earlier kill left is still at work.
            assert code_or_none in (0, 10, 12), (place.tree / "start.log").read_text()
            if code_or_none != 12 and waiting:
                place.add_shapes(waiting.pop(0))
    for count in [0, *waiting]:
        if count:
            place.add_shapes(count)
        code, said = place.call(*CALL, "--wait")
        # What a call did that was killed after all its work, the next one need not do.
        assert code in (0, 10), said
    place.check_all_done()
    assert weights_of(place.tree) == weights_of(undisturbed.tree)
    moves = [[(entry.action, entry.version) for entry in history(one.client(), "unet")] for one in (place, undisturbed)]
    assert moves[0] == moves[1]
