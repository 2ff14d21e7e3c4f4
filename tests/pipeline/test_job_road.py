"""What runs on the cluster, here without one: job_road in a packed tree, with a DVC remote in a folder."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from benchmarks.workspace import IN_BACKGROUND, make_workspace, run
from pipeline.job_results import ResultReader, take_home
from pipeline.job_road import Task, _keep, check_versions, parts_of, versions
from pipeline.lineage import git_state, source_state
from pipeline.packed_tree import find_contents, write_zip
from unet_core.errors import RecipeError, StorageError, TrainingError

REPOSITORY = str(Path(__file__).parents[2])


def task(**changes) -> Task:
    given = {"job": "unet-1", "words": (), "stage": None, "has_remote": True, "is_source_in_tree": False}
    return Task(**{**given, "versions": versions(), **changes})


def test_equal_versions_are_accepted() -> None:
    check_versions(versions(), versions())


def test_a_cuda_build_is_no_other_version_of_torch() -> None:
    assert "+" not in versions()["torch"]


def test_other_versions_are_refused_by_name() -> None:
    here = {"Python": "3.11", "ray": "2.60.0", "torch": "2.13.0"}
    with pytest.raises(TrainingError) as caught:
        check_versions(here, {"Python": "3.12", "ray": "2.60.0", "torch": "not installed"})
    assert str(caught.value) == (
        "the cluster has other versions than the machine that submitted: Python 3.12 instead of 3.11, torch not "
        "installed instead of 2.13.0. Install the same on both (constraints.txt), or build the cluster's image anew."
    )


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "dvc repro, unet promote"),
        ({"stage": "train"}, "dvc repro train"),
        ({"words": ("search", "--apply")}, "unet search --apply"),
    ],
)
def test_a_task_says_what_it_does(changes, shown: str) -> None:
    assert task(**changes).shown == shown


def test_each_part_of_the_road_is_safe_before_the_next_begins() -> None:
    assert parts_of("validate") == ["validate"]
    assert parts_of("shard") == ["shard"]
    assert parts_of("train") == ["shard", "train"]
    assert parts_of("evaluate") == ["shard", "train", "evaluate"]
    assert parts_of(None) == ["shard", "train", None]


def test_what_could_not_be_pushed_is_not_told_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    with pytest.raises(StorageError) as caught:
        _keep(task(), lambda: told.append("results"), limit_seconds=None)
    text = re.sub(r"mount point '.*?'", "mount point '...'", str(caught.value))
    assert text == (
        "dvc push failed on the cluster: you are not inside of a DVC repository (checked up to mount point '...'). Let "
        "DVC's remote be reached from there (docs/submit.md), then submit again."
    )
    assert told == []
    _keep(task(has_remote=False), lambda: told.append("results"), limit_seconds=None)
    assert told == ["results"]


def test_a_push_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=r"^dvc push failed on the cluster: DVC ended with -9, without a word\. "):
        _keep(task(), lambda: None, limit_seconds=0.01)


def pack(home: Path, there: Path, what: Task) -> Path:
    """The tree as Ray lays it down on the head."""
    record = {"task": asdict(what), "git": git_state(home), "source": asdict(source_state(home))}
    package = there.with_suffix(".zip")
    names = find_contents(home, source="data/raw/shapes").names
    write_zip(home, names, package, submitted=json.dumps(record).encode())
    with zipfile.ZipFile(package) as packed:
        packed.extractall(there)
    return there


def submit(there: Path, what: Task) -> None:
    """What the head reads of a submission, without git."""
    record = {"task": asdict(what), "git": {}, "source": {"commit": "", "prefix": "", "patch": ""}}
    path = there / ".unet" / "submitted.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record), encoding="ascii")


def make_pipeline(there: Path, remote: Path, validate: str) -> None:
    """A tree of two stages in which `validate` is a command, and a DVC remote in a folder."""
    (there / ".dvc").mkdir(parents=True)
    (there / ".dvc" / "config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {remote}\n")
    (there / "input").write_text("finished")
    (there / "dvc.yaml").write_text(
        "stages:\n"
        "  ingest: {cmd: cp input a, deps: [input], outs: [a]}\n"
        f"  validate: {{cmd: '{validate}', deps: [a], outs: [b]}}\n"
    )


def start_job(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "UNET_", "MLFLOW_"))}
    # As Ray sets it for a job's command.
    given = {**kept, "PYTHONPATH": str(tree), **environment}
    words = [sys.executable, "-m", "pipeline.job_road"]
    return subprocess.run(words, cwd=tree, env=given, capture_output=True, text=True, check=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A working tree with a recorded batch that was pushed, and a source elsewhere."""
    folder = make_workspace(tmp_path / "home", "shapes", {"ingest.source": str(tmp_path / "shapes")})
    run(folder, "unet", "shapes", str(tmp_path / "shapes"), "--count", "12")
    run(folder, "unet", "add")
    run(folder, "dvc", "remote", "add", "--default", "store", str(tmp_path / "remote"))
    run(folder, "dvc", "push")
    return folder


@pytest.mark.slow
def test_stages_run_in_the_packed_tree_and_their_results_come_home(home: Path, tmp_path: Path) -> None:
    there = pack(home, tmp_path / "there", task(stage="split"))
    packed = {path for path in there.rglob("*") if path.is_file()}
    done = start_job(there)
    assert done.returncode == 0, done.stdout + done.stderr
    commit = git_state(home)["git.commit"][:12]
    assert done.stdout.startswith(f"job unet-1: dvc repro split; commit {commit}")
    reader = ResultReader()
    reader.read(done.stdout)
    assert reader.results is not None
    names = take_home(home, reader.results, aside=home / ".unet" / "aside")
    assert {"dvc.lock", "metrics/ingest.json", "metrics/validate.json", "metrics/split.json"} <= set(names)
    # Data came by the remote, and nothing of them stays on the head's disk.
    assert {path for path in there.rglob("*") if path.is_file()} == packed
    run(home, "dvc", "pull", "--allow-missing")
    assert (home / "data" / "splits.csv").exists()
    assert "Running stage" not in run(home, "dvc", "repro", "split")


@pytest.mark.slow
def test_what_a_failed_job_had_finished_comes_home(home: Path, tmp_path: Path) -> None:
    there = pack(home, tmp_path / "there", task(stage="split"))
    recipe = there / "params.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("test_fraction", "test_fracton"), encoding="utf-8")
    done = start_job(there)
    # The stage's own, not DVC's 255.
    assert done.returncode == RecipeError.exit_code
    assert "unet split: unknown key: params.yaml: split: test_fracton. Did you mean test_fraction?" in done.stdout
    reader = ResultReader()
    reader.read(done.stdout)
    assert reader.results is not None
    assert "metrics/validate.json" in take_home(home, reader.results, aside=home / ".unet" / "aside")
    shutil.rmtree(home / ".dvc" / "cache", ignore_errors=True)
    run(home, "dvc", "pull", "--allow-missing", "validate")


@pytest.mark.slow
def test_a_store_that_cannot_be_reached_ends_the_job_with_dvcs_reason(home: Path, tmp_path: Path) -> None:
    run(home, "dvc", "remote", "add", "--default", "--force", "store", "s3://bucket/dvc")
    there = pack(home, tmp_path / "there", task(stage="split"))
    away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "12345"}
    done = start_job(there, **away, AWS_MAX_ATTEMPTS="1")
    assert done.returncode == 7
    assert done.stdout.splitlines()[1:] == ["job: dvc pull", "::result end"]
    assert done.stderr == (
        "unet job: dvc pull failed on the cluster: failed to connect to s3 (bucket/dvc/files/md5) - Could not connect to "
        'the endpoint URL: "http://127.0.0.1:9/bucket"; failed to pull data from the cloud - 1 files failed to download. Let DVC\'s '
        "remote be reached from there (docs/submit.md), then submit again.\n"
    )


@pytest.mark.slow
def test_a_stages_own_error_counts_more_than_that_of_the_push_after_it(tmp_path: Path) -> None:
    there = tmp_path / "there"
    (tmp_path / "remote").touch()
    make_pipeline(there, tmp_path / "remote", "exit 4")
    for stage, code in (("validate", 4), ("ingest", 7)):
        submit(there, task(stage=stage))
        done = start_job(there, PYTHONPATH=REPOSITORY)
        assert done.returncode == code, done.stdout + done.stderr
        start = "job: " if code == 4 else "unet job: "
        assert f"{start}dvc push failed on the cluster: unexpected error - " in done.stderr
        assert "::result 1" not in done.stdout


@pytest.mark.slow
def test_a_command_runs_with_its_own_exit_code(home: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "shapes")
    there = pack(home, tmp_path / "there", task(words=("add",)))
    done = start_job(there)
    assert done.returncode == 4
    assert "unet add: " in done.stdout
    # So a log that is not whole is known as one.
    assert done.stdout.endswith("\n::result end\n")


@pytest.mark.slow
def test_what_is_no_utf_8_is_told_in_utf_8_since_rays_head_reads_nothing_else(tmp_path: Path) -> None:
    there = tmp_path / "there"
    make_pipeline(there, tmp_path / "remote", f"{sys.executable} say.py")
    text = "import os\nos.write(1, b'caf\\xe9.png \\xc3\\xa9\\n')\nopen('b', 'w').close()\n"
    (there / "say.py").write_text(text)
    submit(there, task(stage="validate"))
    # Strict about UTF-8, too.
    done = start_job(there, PYTHONPATH=REPOSITORY, LC_ALL="C")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\ncaf\\xe9.png é\n" in done.stdout


@pytest.mark.parametrize(
    ("words", "shown"),
    [((), "dvc repro, unet promote"), (("rollback",), "unet rollback")],
)
def test_without_a_tracking_server_nothing_is_trained_or_moved(tmp_path: Path, words, shown: str) -> None:
    there = tmp_path / "there"
    submit(there, task(words=words))
    done = start_job(there, PYTHONPATH=REPOSITORY)
    assert done.returncode == 7
    assert done.stdout.startswith(f"job unet-1: {shown}; outside git; Python 3.")
    assert done.stderr == (
        "unet job: the cluster has no MLFLOW_TRACKING_URI: runs and models would be lost with the job. Set it in the "
        "environment of the cluster's Ray processes, or where you submit.\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "before", [(), IN_BACKGROUND], ids=["", "below a head that a script started in the background"]
)
def test_what_a_stopped_job_had_finished_is_pushed_before_it_is_told_home(
    tmp_path: Path, before: tuple[str, ...]
) -> None:
    there = tmp_path / "there"
    remote = tmp_path / "remote"
    make_pipeline(there, remote, f"{sys.executable} slow.py")
    (there / "slow.py").write_text("import time\nopen('begun', 'w').close()\ntime.sleep(60)\n")
    submit(there, task(stage="validate"))
    environment = {**os.environ, "PYTHONPATH": REPOSITORY}
    words = [*before, sys.executable, "-m", "pipeline.job_road"]
    job = subprocess.Popen(words, cwd=there, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (there / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process = psutil.Process(job.pid)
    # As Ray stops a job.
    for each in [process, *process.children(recursive=True)]:
        each.send_signal(signal.SIGINT)
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 130
    reader = ResultReader()
    reader.read(output)
    assert reader.results is not None
    assert [result.name for result in reader.results] == ["dvc.lock"]
    assert [path.read_text() for path in remote.rglob("*") if path.is_file()] == ["finished"]
