"""What runs beside the driver in Ray's controller: the journal, what follows a failure, how many workers train.

The second half of the door to Ray: cluster.py starts what stands here.
"""

import json
import logging
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Read in the controller, which imports this module. A group is torn down after one of its workers is gone, and the
# others can't say goodbye to it.
os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "2")

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ScalingDecision
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.callback import UserCallback

from unet_core.errors import TrainingError, UnetError

log = logging.getLogger(__name__)

#: How often in a row a training goes on after a failure without a new checkpoint.
MAX_FAILURES = 3
#: A host whose daemon does not take a connection within this time is taken for dead.
ANSWER_SECONDS = 2.0
#: What libraries' messages on ended connections have in common.
OF_CONNECTIONS = ("gloo", "NCCL", "Connection", "connection")
#: Between two looks at a cluster that has too few workers' worth of cores.
WAIT_SECONDS = 0.5


class HostLeavesError(Exception):
    """A worker's host was told to go: the training is kept, and goes on without it."""


class Journal(UserCallback):  # type: ignore[misc]
    """Writes every report of rank 0, with the samples of all, and every failure to a file; ends what can't go on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failures = 0
        self._kept = -1
        # What the disk had no room for yet; it may begin inside a line.
        self._unwritten = bytearray()

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        """Called by Ray when all workers have reported. Ray itself knows of no checkpoints: `kept` tells of them."""
        kept = metrics[0].get("kept")
        if kept is not None and kept > self._kept:
            self._failures, self._kept = 0, kept
        # Ranks carry neighbouring lanes in their order, so that this is all lanes of each step.
        of_ranks = [rank.get("samples", []) for rank in metrics]
        samples = [[lane for rank in step for lane in rank] for step in zip(*of_ranks, strict=True)]
        # Each once, whoever tells it.
        warnings = list(dict.fromkeys(warning for rank in metrics for warning in rank.get("warnings", ())))
        self._write({**metrics[0], "samples": samples, "warnings": warnings})

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Called by Ray when workers died or raised; what is raised here ends the training, else Ray starts anew.

        A mistake that we foresaw would only come again. It may be one worker's alone, and the others fail of it.
        """
        errors = [worker_exceptions[rank] for rank in sorted(worker_exceptions)]
        foreseen = next((error for error in errors if isinstance(error, UnetError)), None)
        if foreseen is not None:
            self._write({"failure": str(foreseen)})
            raise foreseen
        if any(isinstance(error, HostLeavesError) for error in errors):
            self._write({"lost": "a host was told to go."})
            return
        self._failures += 1
        why = _first_cause(errors)
        if self._failures > MAX_FAILURES:
            text = (
                f"training failed {self._failures} times without a new checkpoint: {why} "
                "The next `dvc repro` goes on from the last checkpoint."
            )
            self._write({"failure": text})
            raise TrainingError(text)
        self._write({"lost": why})

    def _write(self, told: dict[str, Any]) -> None:
        """Append a line, after those that are still to be written; a full disk ends no training.

        Should there be no room to the end, nothing of the result is lost: the last checkpoint has all steps' scores.
        """
        self._unwritten += (json.dumps({**told, "time_ms": int(time.time() * 1000)}) + "\n").encode()
        try:
            # Without a buffer, so that each write says how much of it is in the file: the next goes on from there.
            with self._path.open("ab", buffering=0) as stream:
                while self._unwritten:
                    del self._unwritten[: stream.write(self._unwritten)]
        except OSError as error:
            log.warning("the journal can't be written, the next report tries again: %s: %s", self._path, error.strerror)


class ElasticTrainer(TorchTrainer):  # type: ignore[misc]
    """TorchTrainer whose group's size follows the hosts that answer, and that starts nothing of Ray Data."""

    def _create_default_callbacks(self) -> list[Any]:
        # A process and imports that cost seconds at every start; shards come by the loader.
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, DatasetsCallback)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = GroupSize(self.scaling_config)
        return super()._initialize_and_run_controller(**parts)


class GroupSize(ElasticScalingPolicy):  # type: ignore[misc]
    """As many workers as the hosts that answer can carry, within the group's limits.

    Ray's own policy looks at the cluster every 20 s and asks a host that died meanwhile for its workers, again and
    again. And it changes the size at any time, which throws away all steps since the last checkpoint.
    """

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Before a start, also after a failure."""
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            # Ray asks again at once, and would keep a core busy.
            time.sleep(WAIT_SECONDS)
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """While all is well: right after a checkpoint, so that a change of size loses no steps."""
        self._maybe_send_resource_request()
        reports = [status.training_report for status in worker_group_status.worker_statuses.values()]
        if not any(told and told.metrics.get("kept") is not None for told in reports):
            return NoopDecision()
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        # Workers that are well are never taken away: a host that is slow to answer is no dead one.
        return decision if getattr(decision, "num_workers", 0) > worker_group_state.num_workers else NoopDecision()

    def _get_reserved_resources(self) -> dict[str, dict[str, float]] | None:
        """Resources of the cluster's hosts for this training, as they are now; None if nobody can say."""
        try:
            reserved = ray.get(
                self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True),
                timeout=5,
            )
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            log.warning("the cluster's resources can't be read: %s", error)
            return None
        hosts = answering_hosts() - leaving_hosts()
        return {host: resources for host, resources in reserved.items() if host in hosts}


def answering_hosts() -> set[str]:
    """Ids of the hosts whose Ray daemon takes a connection. The head notices a death only after some health checks."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(max(1, len(alive))) as pool:
        answers = pool.map(lambda node: _answers(node["NodeManagerAddress"], node["NodeManagerPort"]), alive)
        return {node["NodeID"] for node, answer in zip(alive, answers, strict=True) if answer}


def leaving_hosts() -> set[str]:
    """Ids of the hosts that were told to go, such as spot machines that are taken back (`ray drain-node`)."""
    return set(ray._private.state.state.get_draining_nodes())


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def _first_cause(errors: list[Exception]) -> str:
    """One sentence on why workers failed. That of the others is mostly that a connection ended: no cause."""
    told = [str(error).strip() for error in errors]
    own = [
        text
        for error, text in zip(errors, told, strict=True)
        if text and not hasattr(error, "health_check_failure") and not any(word in text for word in OF_CONNECTIONS)
    ]
    return f"a worker failed: {own[0].splitlines()[-1].strip()}" if own else "a worker was lost, or its host."
