"""Worker groups: the door to Ray. What runs in its controller is in elastic.py."""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

# What makes Ray Train start seconds earlier; none of it changes a result.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# How long Ray Train waits for room on hosts that may be gone, and for the answer of a worker that hangs.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "12")
os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "60")

import ray
import ray.train
from ray._private import ray_constants
from ray.train import CheckpointConsistencyMode, FailureConfig, RunConfig, ScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig

from pipeline.elastic import ElasticTrainer, HostLeavesError, Journal, leaving_hosts
from pipeline.placement import Placement, Workers, with_variable
from unet_core.errors import TrainingError

log = logging.getLogger(__name__)

#: Seconds until a worker gives up waiting for another one in a sum. The last resort: deaths and errors are seen at
#: once by Ray's controller, which then ends all; but validation may keep one worker longer than another.
COLLECTIVE_SECONDS = 300
#: So long without a report is told.
SILENCE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Group:
    """The workers of a training: between the two numbers, as many as there is room for."""

    least: int
    most: int
    threads: int
    use_gpu: bool


@contextmanager
def cluster(placement: Placement, needed_cpus: int) -> Iterator[Callable[[], None]]:
    """Ray for the length of a training: the running cluster that the placement names, or one on this machine.

    It starts in the background; the function that is given waits until it is there, and raises TrainingError if it
    can't be.
    """
    with (
        _listening(on_loopback=not placement.ray_address),
        ThreadPoolExecutor(1, thread_name_prefix="ray-start") as pool,
    ):
        started = pool.submit(_start, placement.ray_address, needed_cpus)

        def wait() -> None:
            try:
                started.result()
            except (OSError, RuntimeError, ValueError) as error:
                raise TrainingError(
                    f"Ray cluster can't be reached: {placement.ray_address}: {str(error).splitlines()[0]} "
                    "Start it, correct RAY_ADDRESS, or unset it to train on this machine."
                ) from error

        try:
            yield wait
        finally:
            # Also what is still starting must be ended.
            started.exception()
            ray.shutdown()


def _start(address: str | None, needed_cpus: int) -> None:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    _knock(address)
    # Its paragraphs on a lost worker; the journal has a sentence on it.
    ray._private.worker._worker_logs_enabled = False
    if address:
        ray.init(address=address, **quiet)
    else:
        # More workers than cores is allowed when the user asks for it, as in tests.
        ray.init(address="local", num_cpus=max(needed_cpus, os.cpu_count() or 1), include_dashboard=False, **quiet)


@contextmanager
def _listening(*, on_loopback: bool) -> Iterator[None]:
    """Inside, a Ray that is started listens on loopback alone, if that is asked for.

    By itself it takes the address by which the network knows the machine, and lets the network in to all its ports.
    This is Ray's own switch, for firewalls that ask people about each port (macOS, Windows).
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    with with_variable(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0" if on_loopback else "1"):
        # Ray has read the variable already; the processes that it starts will.
        ray_constants.ENABLE_RAY_CLUSTER = not on_loopback
        try:
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before


def _knock(address: str | None) -> None:
    """Fail within seconds where nothing listens; Ray itself tries for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


@contextmanager
def joblib_backend(placement: Placement) -> Iterator[tuple[str, int, tuple[type[Exception], ...]]]:
    """The running cluster for joblib: its backend's name, its cores, and what a worker's death raises."""
    from ray.util.joblib import register_ray

    with cluster(placement, 1) as wait:
        wait()
        register_ray()
        yield "ray", int(ray.cluster_resources().get("CPU", 1)), (ray.exceptions.RayActorError,)


def say_size(least: int, most: int, threads: int) -> str:
    """How large a group is, for people."""
    workers = f"{least} to {most}" if least < most else str(least)
    group = "1 worker" if workers == "1" else f"{workers} workers"
    return f"{group} with {threads} {'thread' if threads == 1 else 'threads'}"


def choose_group(placement: Placement, *, lanes: int, threads: int) -> Group:
    """How many workers train in the running cluster: as the placement says, else one per GPU, else as the cores allow.

    In a cluster that the placement names, the group grows and shrinks with it. Cores that stay idle are named.
    """
    resources = ray.cluster_resources()
    gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    room = min(gpus or max(1, cores // threads), lanes)
    by_default = Workers(least=1, most=lanes) if placement.ray_address else Workers(least=room, most=room)
    chosen = placement.workers or by_default
    if chosen.least * threads > cores or (gpus and chosen.least > gpus):
        raise TrainingError(
            f"{say_size(chosen.least, chosen.least, threads)} would need more than the cluster has: {cores} cores, "
            f"{gpus} GPUs. Lower UNET_WORKERS or train.threads_per_worker, or start a larger cluster."
        )
    idle = cores - min(chosen.most, room) * threads
    if not gpus and idle > 0:
        log.info(
            "%d of %d cores stay idle: more workers need a larger train.lanes (%d) or UNET_WORKERS", idle, cores, lanes
        )
    return Group(least=chosen.least, most=chosen.most, threads=threads, use_gpu=gpus > 0)


def train_group(
    worker: Callable[[dict[str, Any]], None],
    config: Mapping[str, Any],
    group: Group,
    *,
    work_dir: Path,
    on_report: Callable[[dict[str, Any]], None],
) -> None:
    """Run `worker(config)` on every worker to the end.

    Lost workers are replaced, or done without where the group allows it; all then run `worker(config)` anew, which goes
    on from its last checkpoint. `on_report` sees every report once in each driver, also those of the time before an
    interruption, as far as they stand in the journal of `work_dir`, a folder on this machine.
    """
    journal = work_dir / "journal.jsonl"
    work_dir.mkdir(parents=True, exist_ok=True)
    _end_at_line(journal)
    trainer = ElasticTrainer(
        worker,
        train_loop_config=dict(config),
        torch_config=TorchConfig(backend="nccl" if group.use_gpu else "gloo", timeout_s=COLLECTIVE_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=group.most if group.least == group.most else (group.least, group.most),
            use_gpu=group.use_gpu,
            resources_per_worker={"CPU": group.threads},
            # elastic.py chooses the moments.
            elastic_resize_monitor_interval_s=0,
        ),
        run_config=RunConfig(
            name="workers",
            storage_path=str(work_dir),
            # Journal counts them, and ends the training.
            failure_config=FailureConfig(max_failures=-1),
            callbacks=[Journal(journal)],
        ),
    )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    with _follow(journal, on_report, partial(_tell_of_silence, group)):
        try:
            trainer.fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            raise TrainingError(
                f"training failed: {_last_line(error)} The next `dvc repro` goes on from the last checkpoint."
            ) from error


def report(metrics: dict[str, Any]) -> None:
    """Report from a worker; all workers must call it equally often."""
    ray.train.report(metrics)


def wait_until_told() -> None:
    """In a worker: wait until the journal has all that was reported so far, some tenths of a second."""
    ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)


def host_leaves() -> bool:
    """In a worker: whether its host was told to go."""
    return ray.get_runtime_context().get_node_id() in leaving_hosts()


def leave() -> NoReturn:
    """In a worker: end the group, once rank 0 calls it too. All go on without the hosts that were told to go."""
    from_rank_zero(None)
    raise HostLeavesError


def from_rank_zero(value: str | None) -> str | None:
    """In a worker: what rank 0 gives here; all workers must call it."""
    return broadcast_from_rank_zero(value)


def rank_and_size() -> tuple[int, int]:
    """In a worker: its rank and the number of workers."""
    context = ray.train.get_context()
    return context.get_world_rank(), context.get_world_size()


@contextmanager
def _follow(
    journal: Path, on_report: Callable[[dict[str, Any]], None], on_silence: Callable[[], None]
) -> Iterator[None]:
    """Hand the journal's lines to `on_report` while training runs, and the rest at its end; tell of a silence once."""
    stop = threading.Event()

    failed: list[Exception] = []

    def follow() -> None:
        try:
            read_lines()
        except Exception as error:
            failed.append(error)

    def read_lines() -> None:
        with journal.open(encoding="utf-8", errors="replace") as stream:
            rest = ""
            silent_at: float | None = time.monotonic() + SILENCE_SECONDS
            while True:
                ending = stop.is_set()
                rest += stream.read()
                *lines, rest = rest.split("\n")
                if lines:
                    silent_at = time.monotonic() + SILENCE_SECONDS
                elif silent_at is not None and time.monotonic() > silent_at:
                    silent_at = None
                    on_silence()
                for line in lines:
                    if _is_whole(line):
                        on_report(json.loads(line))
                    else:
                        log.warning("a damaged line of the journal is passed over: %s", journal)
                if ending:
                    return
                stop.wait(0.5)

    thread = threading.Thread(target=follow, name="journal", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


def _tell_of_silence(group: Group) -> None:
    """A worker for which there is no room is waited for: say so."""
    try:
        free = ray.available_resources()
    except (ray.exceptions.RayError, ConnectionError) as error:
        log.warning("train: no report for %.0f s, and Ray does not answer: %s", SILENCE_SECONDS, error)
        return
    log.warning(
        "train: no report for %.0f s. In the cluster %d cores and %d GPUs are free; %s will start as soon as there is "
        "room.",
        SILENCE_SECONDS, free.get("CPU", 0), free.get("GPU", 0), say_size(group.least, group.least, group.threads),
    )  # fmt: skip


#: How lines of the journal begin that are no reports.
TROUBLE = (b'{"failure"', b'{"lost"')


def _end_at_line(journal: Path) -> None:
    """Drop what a killed controller left unfinished (its report is made again), and earlier tries' troubles.

    Also what a power cut left damaged: the last checkpoint has the scores of those steps.
    """
    text = journal.read_bytes() if journal.exists() else b""
    lines = text[: text.rfind(b"\n") + 1].splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if _is_whole(line) and not line.startswith(TROUBLE)))


def _is_whole(line: str | bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
