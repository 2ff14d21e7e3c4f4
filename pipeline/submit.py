"""`unet submit` and `unet attach`: the pipeline, a stage or a command on a Ray cluster, as if it ran here.

Here the tree is packed and the job followed; job_road.py is what runs there.
"""

import json
import logging
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from pipeline.command import INTERRUPTED, first_names, say
from pipeline.dvc_process import dvcs_reason, run_dvc_with_remote
from pipeline.job_results import ResultReader, note_tree, take_home
from pipeline.job_road import Task, versions
from pipeline.job_screen import Screen
from pipeline.jobs import COMMAND_TAG, TREE_TAG, ClusterAwayError, Job, Jobs
from pipeline.lineage import git_state, source_state
from pipeline.packed_tree import find_contents, hash_tree, read_dvc_config, source_in_tree, write_zip
from pipeline.params import load_section
from pipeline.placement import Placement, passed_on, read_placement
from pipeline.public_text import holds_secret, public
from pipeline.source import IngestConfig
from pipeline.storage import is_url
from unet_core.errors import RecipeError, StorageError, TrainingError

log = logging.getLogger(__name__)

ENTRYPOINT = "python -m pipeline.job_road"
#: New files that are named; the number of the others is said.
MAX_NAMED = 10
#: How a job is stopped: as by Ctrl-C, with time for what runs to end by itself.
STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "50"}
#: Lies in a job's own folder once it was followed to its end, and what came of its results is here.
ENDED_NAME = "ended"


def submit(words: Sequence[str], *, stage: str | None, address: str | None, resume: bool = False) -> int:
    """Run `unet WORDS`, or `dvc repro` up to a stage, on the cluster, and follow it; the job's exit code.

    With `resume`, a job that does the same with this very tree is followed in the place of another one, unless it
    failed or its end was seen here.
    """
    placement = read_placement()
    root = placement.root
    variables = choose_variables(passed_on())
    check_words(words)
    config = load_section("ingest", IngestConfig)
    contents = find_contents(root, source=config.source)
    if contents.data:
        log.info("submit: %d files are data and stay here: %s ...", len(contents.data), contents.data[0])
    has_remote = check_remote(read_dvc_config(root), needs_remote=not words)
    jobs = Jobs(address or placement.jobs_address)
    here = versions()
    check_ray(here["ray"], jobs.ray_version())
    if contents.new:
        say(f"new files, which git does not track, go along: {first_names(contents.new, MAX_NAMED)}")
    with ThreadPoolExecutor(1) as beside:
        # It imports torch, which takes seconds, as the push does.
        checked = beside.submit(_check_recipe) if not words else None
        if has_remote:
            say("pushing what only this machine has (dvc push)")
            _push_data()
        if checked is not None:
            checked.result()
    task = Task(
        job=f"unet-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        words=tuple(words),
        stage=stage,
        has_remote=has_remote,
        is_source_in_tree=source_in_tree(root, config.source) is not None,
        versions=here,
    )
    tags = {COMMAND_TAG: task.shown, **git_state(root), TREE_TAG: hash_tree(root, contents.names)}
    if resume and (name := find_same_job(placement, jobs.newest(), tags)) is not None:
        _remember(placement, name, jobs.address)
        say(f"job {name} of these very files was submitted before, and is followed")
        return _follow(placement, jobs, name)
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch, "tree.zip")
        write_zip(root, contents.names, package, submitted=_record(root, task))
        note_tree(root, aside=_aside(placement, task.job))
        megabytes = package.stat().st_size / 1e6
        # Before it begins: a lost answer, or a kill, must leave no job that nobody here knows of.
        _remember(placement, task.job, jobs.address)
        try:
            jobs.submit(task.job, package, entrypoint=ENTRYPOINT, variables={**variables, **STOPPING}, metadata=tags)
        except ClusterAwayError as error:
            raise ClusterAwayError(f"{error} {_say_unknown(task.job)}") from error
        except KeyboardInterrupt:
            log.warning("submit: %s", _say_unknown(task.job))
            raise
    say(f"job {task.job} submitted: {task.shown}, {len(contents.names)} files in {megabytes:.1f} MB")
    return _follow(placement, jobs, task.job)


def _say_unknown(job: str) -> str:
    return f"Whether the job began is not known: before you submit again, ask `unet attach {job}`."


def attach(name: str | None, *, address: str | None) -> int:
    """Follow a job (by default the last one submitted from this tree) to its end; the job's exit code."""
    placement = read_placement()
    known = _find_job(placement, name) or {}
    job = name or known.get("job")
    if job is None:
        raise StorageError("no job was submitted from this tree. Name one of those that `unet status` lists.")
    return _follow(placement, Jobs(address or known.get("address", placement.jobs_address)), job)


def choose_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Placement that the job is to have; StorageError for a secret, which all who list jobs could read."""
    chosen = {}
    for name, value in variables.items():
        if holds_secret(value):
            raise RecipeError(
                f"environment variable {name} holds a password or a signature, and a job's variables can be read by "
                "all who may list jobs. Take it out of the address, and give it to the cluster's own environment "
                "(MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, AWS_...)."
            )
        if _is_of_this_machine(name, value):
            log.info("submit: %s stays here, as it names this machine; the cluster's own is used", name)
            continue
        chosen[name] = value
    return chosen


def _is_of_this_machine(name: str, value: str) -> bool:
    if value.startswith(("sqlite:", "file:")) or (name == "MLFLOW_TRACKING_URI" and not is_url(value)):
        # MLflow takes a folder too.
        return True
    host = urlsplit(value).hostname or "" if is_url(value) else ""
    return host in ("localhost", "::1") or host.startswith("127.")


def check_words(words: Sequence[str]) -> None:
    """The command stands in the job's metadata, so it must hold no secret."""
    for word in words:
        if holds_secret(word):
            raise RecipeError(
                f"a word of the command holds a password or a signature, which all who list jobs could read: "
                f"{public(word)}. Give it to the cluster's own environment."
            )


def check_ray(here: str, there: str) -> None:
    """TrainingError where the cluster has another Ray; all else is compared by the job itself."""
    if here != there:
        raise TrainingError(
            f"the cluster has Ray {there}, this machine {here}. Install the same on both (constraints.txt), or build "
            "the cluster's image anew."
        )


def check_remote(dvc_config: Mapping[str, Mapping[str, str]], *, needs_remote: bool) -> bool:
    """Whether DVC has a default remote that the cluster can reach; StorageError where it has none and needs one."""
    name = dvc_config.get("core", {}).get("remote")
    url = dvc_config.get(f'remote "{name}"', {}).get("url") if name else None
    if url is None:
        if needs_remote:
            raise StorageError(
                "no default DVC remote in .dvc/config, from which the cluster could get data: "
                "`dvc remote add --default store s3://bucket/dvc`."
            )
        return False
    if not is_url(url) and not PurePosixPath(url).is_absolute():
        raise StorageError(
            f"DVC's remote {name} is a folder of this tree, which the cluster can't see: {url}. Give the address of a "
            "bucket, or the absolute path of a folder that the cluster shares."
        )
    return True


def _check_recipe() -> None:
    """A typo in the last stage's section would be found after those before it have run."""
    from pipeline.recipe_check import check_recipe

    check_recipe()


def _push_data() -> None:
    """What only this machine has (a new batch in the ledger, say) must be where the cluster can get it."""
    done = run_dvc_with_remote("push", lock=None)
    if done.returncode:
        why = dvcs_reason(done.stderr, done.returncode)
        raise StorageError(f"data can't be pushed for the cluster: {why}. Mend it, so that `dvc push` works.")


def _record(root: Path, task: Task) -> bytes:
    """What the job must know: its task, and where its tree comes from, since .git stays here."""
    body = {"task": asdict(task), "git": git_state(root), "source": asdict(source_state(root))}
    # ASCII: a patch may hold bytes that are no UTF-8, which stand there as lone surrogates.
    return json.dumps(body, indent=1).encode("ascii")


def _remember(placement: Placement, job: str, address: str) -> None:
    path = _jobs_file(placement)
    path.parent.mkdir(parents=True, exist_ok=True)
    # An address may hold a password, of a proxy before the cluster.
    path.touch()
    path.chmod(0o600)
    with path.open("ab+") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, end - 1))
        # A full disk may have cut the last line, which must not swallow this one.
        lead = "\n" if stream.read(1) not in (b"", b"\n") else ""
        stream.write(f"{lead}{json.dumps({'job': job, 'address': address})}\n".encode())


def _find_job(placement: Placement, name: str | None) -> dict[str, str] | None:
    """The newest line of a job of that name, or of any; None where none was submitted from this tree."""
    path = _jobs_file(placement)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in reversed(lines):
        # A full disk may have cut one.
        with suppress(json.JSONDecodeError):
            found: dict[str, str] = json.loads(line)
            if name in (None, found["job"]):
                return found
    return None


def find_same_job(placement: Placement, newest_first: Iterable[Job], tags: Mapping[str, str]) -> str | None:
    """The newest job that does the same with the same files and whose end was not seen here; failed ones are named."""
    for job in newest_first:
        is_same = all(job.metadata.get(tag) == tags[tag] for tag in (COMMAND_TAG, TREE_TAG))
        is_seen = (_aside(placement, job.name) / ENDED_NAME).exists()
        if not is_same or is_seen:
            continue
        if job.status not in ("FAILED", "STOPPED"):
            return job.name
        say(f"job {job.name} did the same and {job.status.lower()}: `unet attach {job.name}` shows its log")
    return None


def _jobs_file(placement: Placement) -> Path:
    return placement.state_dir / "jobs.jsonl"


def _aside(placement: Placement, job: str) -> Path:
    """The job's own folder here."""
    return placement.state_dir / "jobs" / job


def _follow(placement: Placement, jobs: Jobs, name: str) -> int:
    """Show the job's log to its end, and take its results home; the job's exit code."""
    screen = Screen(sys.stdout)
    while True:
        try:
            job = jobs.follow(name, screen.show)
            break
        except KeyboardInterrupt:
            if not _is_to_be_stopped(name):
                screen.close()
                say(f"job {name} goes on. To see it again: unet attach {name}")
                return INTERRUPTED
            _stop(jobs, name)
        except ClusterAwayError:
            # The job may go on: with half of its results this tree would be another one than it was submitted from.
            screen.close()
            raise
        except StorageError:
            # Also where a new head knows nothing of the job: what the old one told is whole.
            screen.close()
            _take_home(placement, screen.reader, name)
            raise
    screen.close()
    _tell_of_end(job)
    _take_home(placement, screen.reader, name)
    aside = _aside(placement, name)
    aside.mkdir(parents=True, exist_ok=True)
    (aside / ENDED_NAME).touch()
    # What others than `unet submit` have submitted has no last line of ours.
    is_whole = screen.reader.has_ended or COMMAND_TAG not in job.metadata
    if job.exit_code == 0 and (screen.reader.is_cut or not is_whole):
        raise StorageError(
            f"the job's log, by which its results come, did not come whole: {name}. Try `unet attach {name}`; where "
            "the cluster has lost the log, submit again."
        )
    return INTERRUPTED if job.status == "STOPPED" else job.exit_code if job.exit_code is not None else 1


def _stop(jobs: Jobs, name: str) -> None:
    try:
        jobs.stop(name)
        log.info("submit: the job was asked to stop")
    except ClusterAwayError as error:
        log.warning("submit: the job could not be asked to stop, and goes on: %s", error)


def _take_home(placement: Placement, reader: ResultReader, name: str) -> None:
    if reader.is_cut:
        log.warning("submit: the job's last results did not come whole: those before them are taken, if there are any")
    if reader.results:
        taken = take_home(placement.root, reader.results, aside=_aside(placement, name))
        say(f"taken home: {', '.join(taken)}" if taken else "all results are here already")
        say("`dvc pull` gets the rest; then commit")


def _is_to_be_stopped(name: str) -> bool:
    """Ask the user; without a terminal, or interrupted again, the job goes on."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    sys.stderr.write(f"\nStop job {name}? [y/N, Enter: it goes on without you] ")
    sys.stderr.flush()
    with suppress(KeyboardInterrupt):
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    return False


def _tell_of_end(job: Job) -> None:
    seconds = (job.ended or time.time()) - job.began
    # Ray's own words on a command that failed are the end of its log, which has been shown.
    why = f": {job.message.splitlines()[0]}" if job.exit_code is None and job.message else ""
    code = f", exit code {job.exit_code}" if job.exit_code else ""
    say(f"job {job.name} {job.status.lower()} after {seconds:.0f} s{code}{why}")
