"""A log that nobody rewrites, in the tracking store: part of the door to MLflow.

Its lines are the parameters of one run. MLflow lets nobody change a parameter: of several processes, on whatever hosts,
that log one key at the same time, the database's unique constraint lets one through.
"""

import uuid
from dataclasses import dataclass

from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from pipeline.tracking import Client, first_line, registry_errors
from unet_core.errors import RegistryError

#: MLflow cuts off what is longer.
MAX_CHARACTERS = 6000


@dataclass(frozen=True)
class AppendLog:
    """An open log."""

    client: Client
    run_id: str

    def read(self) -> dict[str, str]:
        """All lines, by key."""
        with registry_errors("reading a log"):
            return dict(self.client.get_run(self.run_id).data.params)

    def claim(self, key: str, value: str) -> bool:
        """Write a line, whole and once; False if the key holds another value already.

        To claim a key again with the same value is no error: an answer that got lost can be asked for again.
        """
        assert len(value) <= MAX_CHARACTERS
        try:
            self.client.log_param(self.run_id, key, value, synchronous=True)
        except MlflowException as error:
            # MLflow says the same of a run that was deleted; who then tried again would do so for ever.
            if error.error_code == "INVALID_PARAMETER_VALUE" and key in self.read():
                return False
            raise RegistryError(f"MLflow refused: writing a log: {first_line(error)}") from error
        return True


def find_log(client: Client, title: str) -> AppendLog | None:
    """The log of this title, or None; RegistryError where it was deleted."""
    with registry_errors("looking for a log"):
        experiment = client.get_experiment_by_name(title)
        if experiment is None:
            return None
        runs = client.search_runs(
            [experiment.experiment_id], run_view_type=ViewType.ALL, order_by=["attributes.start_time"], max_results=1
        )
    if experiment.lifecycle_stage != "active" or not runs or runs[0].info.lifecycle_stage != "active":
        raise RegistryError(
            f"a log was deleted in MLflow: experiment {title!r} (id {experiment.experiment_id}). Restore it there "
            "(`mlflow experiments restore`, `mlflow runs restore`)."
        )
    return AppendLog(client, runs[0].info.run_id)


def open_log(client: Client, title: str) -> AppendLog:
    """The log of this title; it is made if there is none.

    An experiment's name is unique. So it is prepared, with its one run, under a name of its own, and then renamed: of
    several processes one gets the title, and nobody sees half a log.
    """
    found = find_log(client, title)
    if found is not None:
        return found
    with registry_errors("making a log"):
        prepared = client.create_experiment(f"{title} {uuid.uuid4().hex}", artifact_location=client.artifacts)
        # Ended at once: it has no work, and MLflow would show it as running for ever. Not `set_terminated`, which says
        # where it can be seen, as if people had asked for it.
        client.update_run(client.create_run(prepared, run_name=title).info.run_id, status="FINISHED")
        try:
            client.rename_experiment(prepared, title)
        except MlflowException:
            client.delete_experiment(prepared)
            if client.get_experiment_by_name(title) is None:
                raise
    log = find_log(client, title)
    assert log is not None
    return log
