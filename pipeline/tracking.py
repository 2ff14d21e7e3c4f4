"""Model versions, aliases, and what lies with runs: the door to MLflow.

Beside it stand training_run.py (the run of a training), registration.py (a model directory becomes a version),
fetched_model.py (the way back) and append_log.py (a log that nobody rewrites).
"""

import contextlib
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# A server that is away is an error after seconds, not after minutes of silent retries.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
# Nobody is told what is done here.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException

from pipeline.public_text import public, public_address
from unet_core.errors import RegistryError

CHAMPION, CHALLENGER = "champion", "challenger"
#: Tags of runs and versions. A model is known by the hash of weights and description together.
MODEL_TAG = "unet.model_sha256"
WEIGHTS_TAG = "unet.weights_sha256"
#: Tag of training runs: how many workers, from which step on.
WORKERS_TAG = "train.workers"


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version in the model registry."""

    name: str
    number: str
    run_id: str | None
    model_sha256: str
    """Of weights and description; empty if this project did not register it."""
    weights_sha256: str
    tags: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, for a list."""

    name: str
    status: str
    began: float
    """Seconds since 1970."""
    ended: float | None
    metrics: Mapping[str, float]


class Client(MlflowClient):  # type: ignore[misc]
    """MLflow's client, and the experiment that our runs belong to."""

    def __init__(self, uri: str, experiment: str) -> None:
        super().__init__(uri)
        self.experiment = experiment
        # Beside the store's file: MLflow would choose the working directory, and a queued experiment's is deleted.
        database = uri.removeprefix("sqlite:///")
        self.artifacts = (Path(database).resolve().parent / "mlruns").as_uri() if database != uri else None

    def experiment_id(self) -> str:
        """The experiment's id; it is made if there is none."""
        found = self.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        return str(self.create_experiment(self.experiment, artifact_location=self.artifacts))


def connect(uri: str, experiment: str = "unet") -> Client:
    """A client of the tracking store; RegistryError within seconds where nothing answers."""
    shown = public_address(uri)
    try:
        address = urlsplit(uri)
        port = address.port or (443 if address.scheme == "https" else 80)
    except ValueError as error:
        raise RegistryError(f"not an address: {shown}: {error}. Correct MLFLOW_TRACKING_URI.") from error
    if address.scheme in ("http", "https"):
        try:
            socket.create_connection((address.hostname or "", port), timeout=5).close()
        except OSError as error:
            shown = f"{address.scheme}://{address.hostname}:{port}"
            raise RegistryError(
                f"tracking server can't be reached: {shown}: {error}. Start it, correct MLFLOW_TRACKING_URI, "
                "or unset it to use the working tree's own store."
            ) from error
    try:
        _make_store(uri)
        mlflow.set_tracking_uri(uri)
        client = Client(uri, experiment)
        client.search_experiments(max_results=1)
    except Exception as error:  # SQLAlchemy's drivers raise errors of their own, each another
        if _is_timeout(error):
            raise RegistryError(
                f"tracking server does not answer within {_patience_seconds()} s: {shown}. Try again later, look "
                "whether its host has too much to do, or correct MLFLOW_TRACKING_URI."
            ) from error
        text = first_line(error)
        raise RegistryError(f"not a tracking store: {shown}: {text}. Correct MLFLOW_TRACKING_URI.") from error
    return client


@contextlib.contextmanager
def asked_once(answer_seconds: int) -> Iterator[None]:
    """Inside, a tracking server gets so long for an answer and is asked for it once: for who only has a look."""
    limits = (MLFLOW_HTTP_REQUEST_TIMEOUT, answer_seconds), (MLFLOW_HTTP_REQUEST_MAX_RETRIES, 0)
    before = [(variable, variable.get()) for variable, _ in limits]
    try:
        for variable, value in limits:
            variable.set(value)
        yield
    finally:
        for variable, value in before:
            variable.set(value)


def _patience_seconds() -> int:
    """How long a server is waited for, in all tries together."""
    return (int(MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()) + 1) * int(MLFLOW_HTTP_REQUEST_TIMEOUT.get())


def _is_timeout(error: BaseException | None) -> bool:
    """Whether silence is at the root of an error, which MLflow tells in its text only."""
    while error is not None:
        if isinstance(error, TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _make_store(uri: str) -> None:
    """Let a new SQLite store appear whole: MLflow makes it in many steps, and a kill between two left one for ever."""
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.exists() or not path.parent.is_dir():
        return
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    MlflowClient(f"sqlite:///{partial}").search_experiments(max_results=1)
    with contextlib.suppress(FileExistsError):
        # Of several processes one gives the name, and none takes away what another one has written since.
        path.hardlink_to(partial)
    partial.unlink()


@contextlib.contextmanager
def registry_errors(doing: str) -> Iterator[None]:
    """Turn MLflow's errors into one sentence, and those of requests, which its artifact stores let through."""
    try:
        yield
    except (MlflowException, OSError) as error:
        raise RegistryError(f"MLflow refused: {doing}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error says first, without the user and password of an address."""
    return public((str(error).splitlines() or [repr(error)])[0])


def find_version(client: Client, name: str, model_sha256: str) -> Version | None:
    """The version of this model, the first if several hosts made one at the same time; or None."""
    found = _versions_tagged(client, name, MODEL_TAG, model_sha256)
    return found[0] if found else None


def find_twins(client: Client, version: Version) -> list[Version]:
    """Other versions with the same weights: their descriptions (names of classes, say) differ."""
    found = _versions_tagged(client, version.name, WEIGHTS_TAG, version.weights_sha256)
    return [other for other in found if other.number != version.number]


def find_weights(client: Client, weights_sha256: str) -> list[Version]:
    """Versions with these weights, of whatever registered model."""
    return _search_versions(client, f"tag.`{WEIGHTS_TAG}` = '{weights_sha256}'")


def _versions_tagged(client: Client, name: str, tag: str, value: str) -> list[Version]:
    """All versions that carry a tag, in their order."""
    found = _search_versions(client, f"name = '{name}' and tag.`{tag}` = '{value}'")
    return sorted(found, key=lambda version: int(version.number))


def _search_versions(client: Client, wanted: str) -> list[Version]:
    with registry_errors("searching the registry"):
        return list(map(_version, client.search_model_versions(wanted)))


def version_by_number(client: Client, name: str, number: str) -> Version | None:
    """A version by its number, or None where it was deleted or never made."""
    return _found(f"reading version {number}", lambda: client.get_model_version(name, number))


def version_by_alias(client: Client, name: str, alias: str) -> Version | None:
    """The version that an alias names, or None where model or alias does not exist."""
    return _found(f"reading alias {alias}", lambda: client.get_model_version_by_alias(name, alias))


def age_days(client: Client, version: Version) -> float:
    """Days since a version was made."""
    with registry_errors(f"reading version {version.number}"):
        made_ms = client.get_model_version(version.name, version.number).creation_timestamp
    return (time.time() - made_ms / 1000) / 86400


def _found(doing: str, get: Callable[[], Any]) -> Version | None:
    try:
        return _version(get())
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise RegistryError(f"MLflow refused: {doing}: {first_line(error)}") from error


def find_run(client: Client, name: str) -> str:
    """The training run that `name` means: a run's id, `models:/unet@champion`, `models:/unet/3` or `unet@champion`."""
    model = re.fullmatch(
        r"(?:models:/)?(?P<name>[^/@]+)@(?P<alias>[^/@]+)|models:/(?P<of>[^/@]+)/(?P<number>\d+)", name
    )
    hint = "Look with `make ui`."
    try:
        if model is None:
            return str(client.get_run(name).info.run_id)
        if model["alias"]:
            found = client.get_model_version_by_alias(model["name"], model["alias"])
        else:
            found = client.get_model_version(model["of"], model["number"])
    except MlflowException as error:
        text = first_line(error).rstrip(".")
        raise RegistryError(f"no such run or model: {name}: {text}. {hint}") from error
    if not found.run_id:
        raise RegistryError(f"model version without a run: {name}. {hint}")
    return str(found.run_id)


def newest_runs(client: Client, count: int) -> list[Run]:
    """The last runs of the client's experiment, the newest first; none where there is no such experiment."""
    with registry_errors("listing runs"):
        experiment = client.get_experiment_by_name(client.experiment)
        if experiment is None:
            return []
        order = ["attributes.start_time DESC"]
        found = client.search_runs([experiment.experiment_id], max_results=count, order_by=order)
    return [
        Run(
            name=run.info.run_name,
            status=run.info.status,
            began=run.info.start_time / 1000,
            ended=run.info.end_time / 1000 if run.info.end_time else None,
            metrics=dict(run.data.metrics),
        )
        for run in found
    ]


def fetch_run_file(client: Client, run_id: str, name: str, directory: Path) -> Path:
    """Download a file of a run; RegistryError where the run has none of this name."""
    try:
        return Path(client.download_artifacts(run_id, name, str(directory)))
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"the run has no {name}: {run_id}: it was not trained by this version of the project, or elsewhere. "
            "Name the training run itself, or train again."
        ) from error


def list_run_files(client: Client, run_id: str, folder: str | None = None) -> list[str]:
    """Paths of files and folders at the top of a run, or in one of its folders; none where there is no such folder."""
    with registry_errors("listing files of a run"):
        return [entry.path for entry in client.list_artifacts(run_id, folder)]


def log_run_file(client: Client, run_id: str, path: Path) -> None:
    """Store a file with a run, under its own name."""
    with registry_errors(f"storing {path.name} with a run"):
        client.log_artifact(run_id, str(path))


def run_tags(client: Client, run_id: str) -> dict[str, str]:
    """All tags of a run."""
    with registry_errors("reading a run"):
        return dict(client.get_run(run_id).data.tags)


def run_metrics(client: Client, run_id: str) -> dict[str, float]:
    """The last values of a run's metrics."""
    with registry_errors("reading scores"):
        return dict(client.get_run(run_id).data.metrics)


def set_alias(client: Client, version: Version, alias: str) -> None:
    """Let an alias name this version."""
    with registry_errors(f"setting alias {alias}"):
        client.set_registered_model_alias(version.name, alias, version.number)


def set_version_tags(client: Client, version: Version, tags: Mapping[str, str]) -> None:
    """Add tags to a version."""
    with registry_errors("tagging a version"):
        for key, value in tags.items():
            client.set_model_version_tag(version.name, version.number, key, value)


def log_to_run(client: Client, run_id: str, *, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
    """Add scores and files to a run that has ended."""
    with registry_errors("logging scores"):
        client.log_batch(
            run_id, metrics=[Metric(name, value, int(time.time() * 1000), 0) for name, value in metrics.items()]
        )
        for path in files:
            client.log_artifact(run_id, str(path), "evaluation")


def _version(entity: Any) -> Version:
    return Version(
        name=entity.name,
        number=str(entity.version),
        run_id=entity.run_id or None,
        model_sha256=entity.tags.get(MODEL_TAG, ""),
        weights_sha256=entity.tags.get(WEIGHTS_TAG, ""),
        tags=dict(entity.tags),
    )
