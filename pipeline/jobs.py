"""Jobs on a running Ray cluster, through its dashboard's HTTP: the one door to Ray's Jobs API."""

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from pipeline.placement import read_ray_token
from pipeline.public_text import public
from unet_core.errors import StorageError

log = logging.getLogger(__name__)
# They set their own level, and tell of each upload.
for _chatty in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
    logging.getLogger(_chatty).setLevel(logging.ERROR)

#: What a job's metadata tell of it, to all who may list jobs.
COMMAND_TAG, COMMIT_TAG, TREE_TAG = "unet.command", "git.commit", "git.tree"
#: A cluster that does not answer is an error after so long: to connect, and to answer.
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 60.0
#: While a job is followed, a cluster may be away so long.
PATIENCE_SECONDS = 600.0
#: So long without a word the connection may be a dead one, and another is made.
SILENCE_SECONDS = 45.0
RETRY_SECONDS = 1.0
#: Resources that are shown, and of how many hosts.
COUNTED, MAX_NODES = ("CPU", "GPU"), 10_000
#: What a gateway says in the place of a server that starts again, as Ray's client words it.
AWAY = re.compile(r"status(?: code)? 50[234]\b")
#: How often the log of a job that has ended is asked for, once its host is gone.
LAST_TRIES = 3


class ClusterAwayError(StorageError):
    """Nobody answers; perhaps later."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the cluster tells of it."""

    name: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    exit_code: int | None
    message: str
    began: float
    """Seconds since 1970."""
    ended: float | None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A host of the cluster."""

    address: str
    is_head: bool
    total: Mapping[str, float]
    """CPU and GPU."""
    used: Mapping[str, float] | None
    """Of these; None where that is not known yet."""


class _Client(JobSubmissionClient):  # type: ignore[misc]
    def __init__(self, address: str, *, headers: Mapping[str, str] | None, answer_seconds: float) -> None:
        self._timeout = (CONNECT_SECONDS, answer_seconds)
        super().__init__(address, headers=headers)

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        # Ray's own client waits for ever.
        answer: requests.Response = super()._do_request(method, endpoint, timeout=self._timeout, **options)
        return answer


class Jobs:
    """The jobs of one cluster; StorageError in one sentence where it does not answer or refuses."""

    def __init__(self, address: str, *, answer_seconds: float = ANSWER_SECONDS) -> None:
        self.address = address if "://" in address else f"http://{address}"
        if not self.address.startswith(("http://", "https://")):
            raise StorageError(
                f"not an address of Ray's Jobs API: {self.address}. Give that of the dashboard: http://HOST:8265."
            )
        # Ray's client takes these before what it is given.
        os.environ.update(RAY_API_SERVER_ADDRESS=self.address)
        # By itself it sends the token only where RAY_AUTH_MODE says so, which all would have to set.
        token = _read_token()
        headers = {"Authorization": f"Bearer {token}"} if token else None
        self._answer_seconds = answer_seconds
        with self._foreseen():
            self._client = _Client(self.address, headers=headers, answer_seconds=answer_seconds)
        #: Characters of each followed job's log that were handed over.
        self._seen: dict[str, int] = {}

    def ray_version(self) -> str:
        """The cluster's version of Ray."""
        return str(self._get("/api/version")["ray_version"])

    def submit(
        self, name: str, package: Path, *, entrypoint: str, variables: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        """Start a job in the package's files. Variables and metadata can be read by all who may list jobs."""
        with self._foreseen():
            self._client.submit_job(
                submission_id=name,
                entrypoint=entrypoint,
                runtime_env={"working_dir": str(package), "env_vars": dict(variables)},
                metadata=dict(metadata),
            )

    def find(self, name: str) -> Job:
        """One job; StorageError where the cluster knows none of this name."""
        with self._foreseen(job=name):
            about = self._client.get_job_info(name)
            if not about.submission_id:
                # A program that was started by hand, and has no log that could be followed.
                raise self._no_such_job(name)
            return _job(about)

    def newest(self) -> list[Job]:
        """All jobs that were submitted, the newest first."""
        with self._foreseen():
            found = [_job(about) for about in self._client.list_jobs() if about.submission_id]
        return sorted(found, key=lambda job: job.began, reverse=True)

    def stop(self, name: str) -> None:
        """Ask a job to end; it is over some time later."""
        with self._foreseen(job=name):
            self._client.stop_job(name)

    def follow(self, name: str, on_text: Callable[[str], None]) -> Job:
        """Hand over the job's log as it grows, until the job is over; a lost connection is taken up again.

        Interrupted and called again, it goes on where it was. ClusterAwayError once the cluster was away for too long.
        """
        away_since: float | None = None
        tries = 0
        while True:
            try:
                # Ray's dashboard writes the token into its own log where the log of an unknown job is asked for.
                self.find(name)
                is_whole = asyncio.run(self._tail(name, on_text))
                job = self.find(name)
            except ClusterAwayError:
                now = time.monotonic()
                if away_since is None:
                    away_since = now
                    log.warning("the cluster does not answer; the job goes on, and is asked for again")
                if now - away_since > PATIENCE_SECONDS:
                    raise
            else:
                if away_since is not None:
                    log.info("the cluster answers again")
                away_since = None
                tries += job.is_over
                if job.is_over and (is_whole or tries > LAST_TRIES):
                    return job
            time.sleep(RETRY_SECONDS)

    async def _tail(self, name: str, on_text: Callable[[str], None]) -> bool:
        """The log from its beginning, of which only what is new is handed over; whether the server came to its end."""
        position = 0
        async with aclosing(self._client.tail_job_logs(name)) as stream:
            while True:
                try:
                    text = await asyncio.wait_for(anext(stream), SILENCE_SECONDS)
                except StopAsyncIteration:
                    return True
                except (OSError, RuntimeError, aiohttp.ClientError):
                    # Also asyncio's time-out. Whether the cluster is away, the next question tells.
                    return False
                known = max(0, self._seen.get(name, 0) - position)
                position += len(text)
                if len(text) > known:
                    self._seen[name] = position
                    on_text(text[known:])

    def nodes(self) -> list[Node]:
        """The hosts that are alive, the head first."""
        hosts = self._get(f"/api/v0/nodes?limit={MAX_NODES}")["data"]["result"]["result"]
        # Known some seconds after the cluster's start.
        in_use: Mapping[str, str] = self._get("/nodes?view=summary")["data"].get("nodeLogicalResources") or {}
        found = [
            Node(
                address=host["node_ip"],
                is_head=bool(host["is_head_node"]),
                total={name: host["resources_total"].get(name, 0.0) for name in COUNTED},
                used=parse_used(in_use[host["node_id"]]) if host["node_id"] in in_use else None,
            )
            for host in hosts
            if host["state"] == "ALIVE"
        ]
        return sorted(found, key=lambda node: (not node.is_head, node.address))

    def _get(self, path: str) -> dict[str, Any]:
        with self._foreseen():
            answer = self._client._do_request("GET", path)
            if answer.status_code != requests.codes.ok:
                raise RuntimeError(f"{path}: status {answer.status_code}")
            told: dict[str, Any] = answer.json()
        return told

    def _no_such_job(self, name: str) -> StorageError:
        return StorageError(f"no such job: {public(self.address)}: {name}. `unet status` lists them.")

    @contextmanager
    def _foreseen(self, *, job: str | None = None) -> Iterator[None]:
        shown = public(self.address)
        try:
            yield
        except AuthenticationError as error:
            raise StorageError(
                f"the cluster refuses the token, or wants one: {shown}. Set RAY_AUTH_TOKEN to the cluster's token, or "
                "write it to ~/.ray/auth_token."
            ) from error
        except requests.ReadTimeout as error:
            raise ClusterAwayError(
                f"Ray's Jobs API does not answer within {self._answer_seconds:g} s: {shown}. Try again later, look "
                "whether its host has too much to do, or correct RAY_API_SERVER_ADDRESS."
            ) from error
        except (ConnectionError, requests.RequestException) as error:
            raise ClusterAwayError(
                f"Ray's Jobs API can't be reached: {shown}. Start the cluster (with `ray[default]`), forward its port "
                "8265, or correct RAY_API_SERVER_ADDRESS."
            ) from error
        except RuntimeError as error:
            if job is not None and re.search(r"status code 404\b", str(error)):
                raise self._no_such_job(job) from error
            if found := AWAY.search(str(error)):
                raise ClusterAwayError(
                    f"Ray's Jobs API is away: {shown}: a gateway answers with {found[0]}. Try again when the cluster "
                    "has started."
                ) from error
            raise StorageError(f"Ray's Jobs API refused: {shown}: {_last_line(error)}") from error


def _read_token() -> str | None:
    """The cluster's token; StorageError for one that can't be sent, which would look like a cluster that is away."""
    try:
        token = read_ray_token()
        is_fit = token is None or (token.isascii() and token.isprintable())
    except UnicodeDecodeError:
        # Raised below, without this cause: it holds the token.
        is_fit = False
    if not is_fit:
        raise StorageError(
            "the cluster's token holds a line break or another character that can't be sent (it is not shown). Copy it "
            "anew into RAY_AUTH_TOKEN, or into the file ~/.ray/auth_token."
        )
    return token


def parse_used(text: str) -> dict[str, float]:
    """What is in use, from Ray's lines such as `0.5/4.0 CPU` and `0B/2.00GiB memory`."""
    found = re.findall(r"^\s*([\d.]+)/[\d.]+ (\w+)", text, re.MULTILINE)
    return {name: float(used) for used, name in found if name in COUNTED}


def _job(about: Any) -> Job:
    return Job(
        name=str(about.submission_id),
        status=str(about.status.value),
        exit_code=about.driver_exit_code,
        message=about.message or "",
        began=(about.start_time or 0) / 1000,
        ended=about.end_time / 1000 if about.end_time else None,
        metadata=about.metadata or {},
    )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
