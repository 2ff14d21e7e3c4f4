"""Processes of trainings are killed at random moments: every training ends with the weights of an undisturbed one.

CHAOS_SEED repeats a run's choices (not its moments: processes are never equally fast), CHAOS_KILLS says how many kills.
"""

import contextlib
import csv
import json
import os
import random
import shutil
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from benchmarks.workspace import TRAIN, change_recipe, make_workspace, run, start, weights_of, words_of
from pipeline.worker import hash_keys
from unet_core.index import read_index
from unet_core.plan import plan_epoch
from unet_core.reader import ShardReader

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
KILLS = int(os.environ.get("CHAOS_KILLS") or 20)
#: Ends a training that no longer moves.
PATIENCE_SECONDS = 150
KILLS_PER_TRAINING = 7
TINY = {
    "model.width": 4,
    "model.depth": 2,
    "train.epochs": 14,
    "train.lanes": 4,
    "train.samples_per_lane": 1,
    "train.validate_every_epochs": 2,
    "train.checkpoint_every_steps": 4,
    "shard.target_mb": 2.0,
}
#: What is killed -> a word of its command line, and how often of ten.
VICTIMS = {
    "worker": ("RayTrainWorker", 5),
    "driver": ("", 2),
    "controller": ("TrainController", 1),
    "raylet": ("raylet/raylet", 1),
    "head": ("gcs_server", 1),
}
#: Ray's processes wait a minute for a head that is gone; here it does not come back.
HURRY = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3", "UNET_WORKERS": "2"}


class Training:
    """A training that is killed again and again, and started again where it does not go on by itself."""

    def __init__(self, tree: Path, rng: random.Random) -> None:
        self._tree = tree
        self._rng = rng
        self._journal = tree / "kept_journal.jsonl"
        self._process = self._start()
        self.killed: list[str] = []

    def _start(self) -> subprocess.Popen[str]:
        return start(self._tree, *TRAIN, env=HURRY)

    def told(self) -> list[dict[str, Any]]:
        """The whole journal: a link keeps it when the training has ended and cleaned up."""
        for journal in self._tree.glob(".unet/training/*/journal.jsonl"):
            if not self._journal.exists():
                with contextlib.suppress(OSError):
                    os.link(journal, self._journal)
        if not self._journal.exists():
            return []
        return [json.loads(line) for line in self._journal.read_text().split("\n")[:-1]]

    def kill_one(self, kind: str) -> bool:
        """Wait for a random moment after a new report and kill such a process; False if the training ended before."""
        if not self._wait_for_a_new_report():
            return False
        time.sleep(self._rng.uniform(0, 3))
        family = self._family()
        victims = [self._process] if kind == "driver" else [p for p in family if VICTIMS[kind][0] in words_of(p)]
        if not victims:
            # Only the last seconds of a training are without one.
            self._process.wait(timeout=PATIENCE_SECONDS)
        if self._process.poll() is not None:
            return False
        self._rng.choice(victims).kill()
        self.killed.append(kind)
        print(f"kill {kind} after step {self._last_step()}", flush=True)
        if kind != "worker":
            # Nobody else stands up for these: the training ends, and is started again.
            self._process.wait(timeout=PATIENCE_SECONDS)
            _end(family)
            if self._process.returncode == 0:
                # Killed when all was done.
                return False
            self._process = self._start()
        return True

    def end(self) -> None:
        """Let it end undisturbed."""
        assert self._process.wait(timeout=300) == 0, (self._tree / "start.log").read_text()

    def _wait_for_a_new_report(self) -> bool:
        before = len(self.told())
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if any("steps" in told for told in self.told()[before:]):
                return True
            if self._process.poll() is not None:
                assert self._process.returncode == 0, (self._tree / "start.log").read_text()
                return False
            time.sleep(0.1)
        raise AssertionError(f"no step for {PATIENCE_SECONDS} s\n{(self._tree / 'start.log').read_text()}")

    def _family(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _last_step(self) -> int:
        return max((record["step"] for told in self.told() for record in told.get("steps", ())), default=-1)


def choose_kinds(rng: random.Random) -> list[str]:
    """What is killed one after another: each kind once, as far as there are kills, and then by chance."""
    each = rng.sample(list(VICTIMS), k=len(VICTIMS))
    more = rng.choices(list(VICTIMS), [weight for _, weight in VICTIMS.values()], k=KILLS)
    return [*each, *more][:KILLS]


def _end(family: list[psutil.Process]) -> None:
    """Ray's processes end when their driver is gone; a few seconds later, nothing must be left."""
    _, left = psutil.wait_procs(family, timeout=15)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def planned_samples(tree: Path) -> list[list[str]]:
    """What the plan says of every step of the training: a hash of the keys of each lane."""
    recipe = yaml.safe_load((tree / "params.yaml").read_text())["train"]
    shards = tree / "data" / "shards"
    index = read_index(shards)
    reader = ShardReader(shards, index.of_split("train"))
    keys = [reader.read(number).key for number in range(len(reader))]
    steps = []
    for epoch in range(recipe["epochs"]):
        plan = plan_epoch(
            [shard.num_samples for shard in index.of_split("train")],
            epoch=epoch,
            **{name: recipe[name] for name in ("seed", "lanes", "samples_per_lane", "block_shards")},
        )
        numbers = plan.lanes.ravel()
        assert len(numbers) == len(set(numbers.tolist())) == len(keys) - plan.num_resting
        steps += [
            [hash_keys([keys[number] for number in lane]) for lane in plan.step(step)] for step in range(plan.num_steps)
        ]
    return steps


def check_record(tree: Path, told: list[dict[str, Any]]) -> None:
    """No step is lost, none counts twice, a repeated one is the same one, and each saw the plan's samples."""
    losses, samples = defaultdict(set), defaultdict(list)
    for line in told:
        for step, seen in zip(line.get("steps", ()), line.get("samples", ()), strict=True):
            losses[step["step"]].add(step["loss"])
            samples[step["step"]].append(seen)
    planned = planned_samples(tree)
    assert sorted(losses) == list(range(len(planned)))
    assert {step for step, seen in losses.items() if len(seen) > 1} == set()
    assert all(seen == planned[step] for step, times in samples.items() for seen in times)
    with (tree / "plots" / "curves.csv").open(newline="") as stream:
        assert [int(row["step"]) for row in csv.DictReader(stream)] == list(range(len(planned)))
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tree / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    # A driver may be killed between the end of its run and its own: the next one trains anew, in another run.
    finished = [run.info.run_id for run in runs if run.info.status == "FINISHED"]
    assert finished
    for run_id in finished:
        logged = [metric.step for metric in client.get_metric_history(run_id, "train_loss")]
        assert sorted(logged) == list(range(len(planned)))


@pytest.mark.timeout(1500)
def test_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    print(f"\nCHAOS_SEED={SEED} CHAOS_KILLS={KILLS}", flush=True)
    rng = random.Random(SEED)
    sharded = make_workspace(tmp_path / "sharded", "shapes", TINY)
    run(sharded, "unet", "shapes", "data/raw/shapes", "--count", "60")
    run(sharded, "unet", "add")
    run(sharded, "dvc", "repro", "shard")
    undisturbed = shutil.copytree(sharded, tmp_path / "undisturbed")
    run(undisturbed, *TRAIN, env={"UNET_WORKERS": "1"})
    expected = weights_of(undisturbed)
    kinds = choose_kinds(rng)
    num_killed = 0
    while num_killed < KILLS:
        tree = shutil.copytree(sharded, tmp_path / f"training_{num_killed}")
        training = Training(tree, rng)
        try:
            for kind in kinds[num_killed : num_killed + KILLS_PER_TRAINING]:
                if not training.kill_one(kind):
                    break
            training.end()
        except BaseException:
            training._process.kill()
            raise
        assert training.killed, "the training ended before anything was killed: it is too short"
        num_killed += len(training.killed)
        assert weights_of(tree) == expected
        check_record(tree, training.told())
        print(f"{num_killed} kills so far, the same weights", flush=True)
    # The comparison can fail: another seed gives other weights.
    change_recipe(sharded, None, {"train.seed": 1, "train.epochs": 1})
    run(sharded, *TRAIN, env={"UNET_WORKERS": "1"})
    assert weights_of(sharded) != expected
