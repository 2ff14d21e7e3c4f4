"""A search in MLflow: one parent run, a child run for each trial."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from pipeline.tracking import Client, registry_errors
from unet_core.errors import RegistryError

log = logging.getLogger(__name__)

SEARCH_TAG = "unet.search"
#: How MLflow's pages know that a run belongs below another.
PARENT_TAG = "mlflow.parentRunId"


class SearchRuns:
    """The runs of a search, found again when it is taken up."""

    def __init__(self, client: Client, search: str) -> None:
        self._client = client
        self._children: dict[int, str] = {}
        self._has_warned = False
        with registry_errors("opening the runs of a search"):
            self._experiment = client.experiment_id()
            found = client.search_runs(
                [self._experiment],
                f"tags.`{SEARCH_TAG}` = '{search}' and attributes.status != 'FINISHED'",
                max_results=1,
            )
            if found:
                self.run_id = str(found[0].info.run_id)
                client.update_run(self.run_id, status="RUNNING")
            else:
                made = client.create_run(self._experiment, run_name=f"search {search[:8]}", tags={SEARCH_TAG: search})
                self.run_id = str(made.info.run_id)

    def log(self, trial: int, changes: Mapping[str, Any], told: Mapping[str, Any]) -> None:
        """Add what a trial told of an epoch to its run."""
        with self._going_on("logging a trial"):
            run_id = self._child(trial, changes)
            if "failure" in told:
                self._client.set_tag(run_id, "unet.failure", told["failure"][:5000])
                return
            scores = {"val_loss": told["loss"], "val_dice": told["dice"]}
            scores |= {f"val_dice_{name}": value for name, value in told["class_dice"].items()}
            for name, value in scores.items():
                if value is not None:
                    # MLflow refuses other characters, and class names are the user's.
                    self._client.log_metric(run_id, re.sub(r"[^\w\-. /]", "_", name), value, step=told["epoch"])

    @contextmanager
    def _going_on(self, doing: str) -> Iterator[None]:
        """Warn once where MLflow is away: the search's journal has all, and hours of trials must not end with it."""
        try:
            with registry_errors(doing):
                yield
        except RegistryError as error:
            if not self._has_warned:
                what = "the search goes on, and its runs lack some values"
                log.warning("search: MLflow does not answer; %s. %s", what, str(error)[:300])
            self._has_warned = True

    def _child(self, trial: int, changes: Mapping[str, Any]) -> str:
        if trial not in self._children:
            made = self._client.create_run(self._experiment, run_name=f"trial {trial}", tags={PARENT_TAG: self.run_id})
            self._children[trial] = str(made.info.run_id)
            for name, value in changes.items():
                self._client.log_param(made.info.run_id, name, value)
        return self._children[trial]

    def end(self, trial: int, *, failed: bool) -> None:
        """Close a trial's run."""
        if trial in self._children:
            with self._going_on("closing a trial"):
                self._client.set_terminated(self._children.pop(trial), "FAILED" if failed else "FINISHED")

    def finish(self, winner: Mapping[str, Any]) -> None:
        """Close the search with what won."""
        with self._going_on("closing a search"):
            for name, value in winner.items():
                self._client.set_tag(self.run_id, f"winner.{name}", str(value))
            self._client.set_terminated(self.run_id)

    def note_version(self, name: str, number: str) -> None:
        """Let the search's page name the version that its winner became."""
        with self._going_on("noting the version of a search's winner"):
            self._client.set_tag(self.run_id, "winner.version", f"models:/{name}/{number}")

    def fail(self) -> None:
        """Close the search, to be taken up again; trials under way will be runs of their own then."""
        # What ended the search is the error to see, also where MLflow is away.
        with suppress(RegistryError), registry_errors("closing a search"):
            for run_id in self._children.values():
                self._client.set_terminated(run_id, "KILLED")
            self._client.set_terminated(self.run_id, "FAILED")
