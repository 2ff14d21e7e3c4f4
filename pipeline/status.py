"""`unet status`: where things stand on the cluster and in the registry. A server that is away costs its part only."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.command import say
from pipeline.params import load_section
from pipeline.placement import Placement, read_placement
from pipeline.public_text import public
from unet_core.errors import UnetError

if TYPE_CHECKING:
    from pipeline.jobs import Jobs, Node
    from pipeline.tracking import Client

Server = TypeVar("Server")

NUM_SHOWN = 5
#: So long a server may think about an answer: who asks how things stand does not want to wait.
ANSWER_SECONDS = 5


def status(*, address: str | None) -> None:
    """Print cluster, jobs, runs and champion, each a few lines."""
    placement = read_placement()
    where = address or placement.jobs_address
    _show_parts(
        lambda: _reach_cluster(where),
        {"cluster": describe_cluster, "jobs": lambda jobs: describe_jobs(jobs, now=time.time())},
    )
    if _has_no_store(placement):
        # To look must not make one.
        _show("runs", ["none yet: MLFLOW_TRACKING_URI is not set, and this tree has no store of its own"])
        _show("champion", ["none yet"])
        return
    from pipeline import tracking

    with tracking.asked_once(ANSWER_SECONDS):
        _show_parts(
            lambda: tracking.connect(placement.tracking_uri, placement.experiment),
            {"runs": describe_runs, "champion": describe_champion},
        )


def _show_parts(reach: Callable[[], Server], parts: Mapping[str, Callable[[Server], Sequence[str]]]) -> None:
    """What one server tells; where it can't be reached, that is found out and told once."""
    titles = iter(parts)
    try:
        server = reach()
    except UnetError as error:
        _show(next(titles), [str(error)])
        for title in titles:
            _show(title, ["not known, for the same reason"])
        return
    for title in titles:
        try:
            _show(title, parts[title](server))
        except UnetError as error:
            _show(title, [str(error)])


def _show(title: str, lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        say(f"{title if number == 0 else '':10}{line}")


def _reach_cluster(address: str) -> "Jobs":
    # Importing Ray takes a second.
    from pipeline.jobs import Jobs

    return Jobs(address, answer_seconds=ANSWER_SECONDS)


def describe_cluster(jobs: "Jobs") -> list[str]:
    """A line on the whole, and one on each host."""
    nodes = jobs.nodes()
    lines = [f"{node.address}{' (head)' if node.is_head else ''}: {_resources(node)}" for node in nodes]
    return [f"Ray {jobs.ray_version()} at {public(jobs.address)}: {len(nodes)} host{'s' * (len(nodes) != 1)}", *lines]


def describe_jobs(jobs: "Jobs", *, now: float) -> list[str]:
    """The last few jobs: state, since when, command."""
    from pipeline.jobs import COMMAND_TAG, COMMIT_TAG

    lines = []
    for job in jobs.newest()[:NUM_SHOWN]:
        about = job.metadata.get(COMMAND_TAG, "another's")
        commit = job.metadata.get(COMMIT_TAG, "")[:12]
        lines.append(f"{job.name}  {job.status.lower()} since {age(now - (job.ended or job.began))}  {about}  {commit}")
    return lines or ["none yet"]


def describe_runs(client: "Client") -> list[str]:
    """The last few runs of the tracking server."""
    from pipeline import tracking

    now = time.time()
    lines = []
    for run in tracking.newest_runs(client, NUM_SHOWN):
        scores = "  ".join(
            f"{name} {run.metrics[name]:.3f}" for name in ("val_loss", "val_dice") if name in run.metrics
        )
        lines.append(f"{run.name}  {run.status.lower()} since {age(now - (run.ended or run.began))}  {scores}".rstrip())
    return lines or [f"none yet in experiment {client.experiment}"]


def describe_champion(client: "Client") -> list[str]:
    """Which version people use."""
    from pipeline import tracking
    from pipeline.stages.register import RegisterConfig

    name = load_section("register", RegisterConfig).model
    lines = []
    for alias in (tracking.CHAMPION, tracking.CHALLENGER):
        version = tracking.version_by_alias(client, name, alias)
        if version is not None:
            commit = version.tags.get("git.commit", "")[:12]
            lines.append(f"{name} version {version.number} is {alias}, weights {version.weights_sha256[:12]}  {commit}")
    return lines or [f"none yet: the registry has no model {name} with an alias"]


def _has_no_store(placement: Placement) -> bool:
    path = placement.tracking_uri.removeprefix("sqlite:///")
    return path != placement.tracking_uri and not Path(path).exists()


def _resources(node: "Node") -> str:
    parts = []
    for name, word in (("CPU", "cores"), ("GPU", "GPUs")):
        total = node.total[name]
        free = "" if node.used is None else f"{total - node.used.get(name, 0):g} of "
        if total:
            parts.append(f"{free}{total:g} {word}{' free' if free else ''}")
    return ", ".join(parts) or "no cores for work"


def age(seconds: float) -> str:
    """How long, as people say it."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
