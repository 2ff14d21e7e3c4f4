"""The one MLflow run of a training: part of the door to MLflow."""

import contextlib
import logging
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from pipeline.registration import log_model
from pipeline.tracking import Client, registry_errors
from unet_core.errors import RegistryError

log = logging.getLogger(__name__)

TRAINING_TAG = "unet.training"
#: How long the end of a training waits for a server that is away; while it trains, there is no limit.
PATIENCE_SECONDS = 300.0
#: Between two tries to reach a server that is away: each may take a while itself.
RETRY_SECONDS = 10.0
#: What MLflow takes in one call.
BATCH = 1000


class TrainingRun:
    """The one run of a training, found again when the training is resumed."""

    def __init__(self, client: Client, *, training: str, params: Mapping[str, Any]) -> None:
        self._client = client
        #: Name of a metric -> its steps that were sent, or wait.
        self._known: defaultdict[str, set[int]] = defaultdict(set)
        with registry_errors("opening a run"):
            experiment_id = client.experiment_id()
            old = client.search_runs(
                [experiment_id],
                f"tags.`{TRAINING_TAG}` = '{training}' and attributes.status != 'FINISHED'",
                max_results=1,
            )
            if old:
                self.run_id = old[0].info.run_id
                client.update_run(self.run_id, status="RUNNING")
                for name in old[0].data.metrics:
                    if not name.startswith("system/"):
                        history = client.get_metric_history(self.run_id, name)
                        self._known[name] = {metric.step for metric in history}
            else:
                self.run_id = client.create_run(experiment_id, run_name=f"train {training[:8]}").info.run_id
                client.log_batch(
                    self.run_id,
                    params=[Param(key, str(value)[:6000]) for key, value in params.items()],
                    tags=[RunTag(TRAINING_TAG, training)],
                )
        self._waiting: list[Metric] = []
        self._next_try: float | None = None
        self._monitor = self._start_monitor()

    def log_step(self, step: int, metrics: Mapping[str, float], time_ms: int) -> None:
        """Keep the metrics of a step for the next `flush`; what was logged before is left out."""
        for name, value in metrics.items():
            # MLflow refuses other characters, and class names are the user's.
            allowed = re.sub(r"[^\w\-. /]", "_", name)
            if step not in self._known[allowed]:
                self._known[allowed].add(step)
                self._waiting.append(Metric(allowed, value, time_ms, step))

    def flush(self) -> None:
        """Send what waits. Where the server is away it goes on waiting, and is tried again some seconds later."""
        if self._waiting and time.monotonic() >= (self._next_try or 0):
            try:
                self._send()
            except MlflowException as error:
                if self._next_try is None:
                    why = str(error).splitlines()[0][:200]
                    log.warning("MLflow takes no metrics; they are kept and sent later. It says: %s", why)
                self._next_try = time.monotonic() + RETRY_SECONDS
            else:
                self._recover()

    def _send(self) -> None:
        while self._waiting:
            self._client.log_batch(self.run_id, metrics=self._waiting[:BATCH])
            del self._waiting[:BATCH]

    def _recover(self) -> None:
        if self._next_try is not None:
            log.info("MLflow answers again; all metrics were sent")
            self._next_try = None
            # It ends at the first failure.
            self._monitor.finish()
            self._monitor = self._start_monitor()

    def _start_monitor(self) -> SystemMetricsMonitor:
        monitor = SystemMetricsMonitor(
            self.run_id, sampling_interval=5, resume_logging=True, tracking_uri=mlflow.get_tracking_uri()
        )
        monitor.start()
        return monitor

    def log_files(self, paths: Sequence[Path], folder: str | None = None) -> None:
        """Store files with the run."""
        self._wait_for_server()
        with registry_errors("storing files of the run"):
            for path in paths:
                self._client.log_artifact(self.run_id, str(path), folder)

    def finish(self, model_dir: Path, tags: Mapping[str, str]) -> None:
        """Log the model and close the run."""
        self._wait_for_server()
        self._monitor.finish()
        with registry_errors("sending metrics"):
            self._send()
        with registry_errors("logging the model"):
            with mlflow.start_run(run_id=self.run_id):
                log_model(self._client, self.run_id, model_dir)
            self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _wait_for_server(self) -> None:
        """Until it answers, as long as there is patience; what is done next then tells the error."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                self._client.get_run(self.run_id)
            except MlflowException:
                time.sleep(min(1.0, RETRY_SECONDS))
            else:
                return

    def fail(self) -> None:
        """Close the run as failed; a later training with the same recipe, data and code takes it up again."""
        self._monitor.finish()
        with contextlib.suppress(MlflowException, RegistryError):
            self.flush()
            self._client.set_terminated(self.run_id, "FAILED")
