"""infra/schedules and the workflows: each scheduler calls `unet retrain` as it is, at the same time of the week."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.cli import _parser
from pipeline.retrain_steps import GRACE_SECONDS

ROOT = Path(__file__).parents[2]
SCHEDULES = ROOT / "infra" / "schedules"


def read_unit(name: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read_string((SCHEDULES / name).read_text(encoding="utf-8"))
    return unit


def crontab_line() -> tuple[list[str], str]:
    """The five fields of time, and the command."""
    lines = (SCHEDULES / "crontab").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if re.match(r"[\d*]", line))
    *fields, command = line.split(maxsplit=5)
    return fields, command


def assert_ends_before_the_next(words: list[str]) -> None:
    """Else a remote that never answers would keep the lock, and each Monday's call would leave."""
    parsed = _parser().parse_args(words)
    assert parsed.branch == "retrain"
    assert 24 < parsed.time_limit < 7 * 24


def test_cron_calls_it_in_the_tree() -> None:
    fields, command = crontab_line()
    assert fields == ["0", "3", "*", "*", "1"]
    # A percent sign means a new line to cron.
    assert "%" not in command
    there, _, call = command.partition(" && ")
    assert there == "cd /srv/unet"
    program, *words = shlex.split(call)
    assert program == ".venv/bin/unet"
    assert_ends_before_the_next(words)


def test_crons_command_needs_no_more_than_its_bare_environment(tmp_path: Path) -> None:
    program = tmp_path / ".venv" / "bin" / "unet"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$PWD" "$@" > called\n')
    program.chmod(0o755)
    command = crontab_line()[1].replace("/srv/unet", str(tmp_path))
    bare = {"PATH": "/usr/bin:/bin", "HOME": "/nowhere", "SHELL": "/bin/sh", "LOGNAME": "unet"}
    subprocess.run(["/bin/sh", "-c", command], check=True, cwd="/", env=bare)
    assert (tmp_path / "called").read_text() == f"{tmp_path} retrain --branch retrain --time-limit 144\n"


def test_systemd_calls_it_in_the_tree_and_stops_it_gently() -> None:
    service = read_unit("unet-retrain.service")["Service"]
    assert service["WorkingDirectory"] == "/srv/unet"
    program, *words = shlex.split(service["ExecStart"])
    assert program == "/srv/unet/.venv/bin/unet"
    assert_ends_before_the_next(words)
    # Only the command itself hears SIGTERM; it has twice GRACE_SECONDS to end what it started.
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) > 2 * GRACE_SECONDS
    # A driver meets the Ray of its machine by sockets below /tmp.
    assert "PrivateTmp" not in service


def test_all_schedules_are_of_the_same_moment() -> None:
    cron = " ".join(crontab_line()[0])
    for name in ("cronjob", "raycronjob"):
        manifest = yaml.safe_load((ROOT / "infra" / "kubernetes" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert manifest["spec"]["schedule"] == cron
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "retrain.yaml").read_text(encoding="utf-8"))
    # YAML 1.1 takes the key `on` for true.
    assert workflow[True]["schedule"] == [{"cron": cron}]
    assert read_unit("unet-retrain.timer")["Timer"]["OnCalendar"] == "Mon *-*-* 03:00:00 UTC"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_both_units(tmp_path: Path) -> None:
    for name in ("unet-retrain.service", "unet-retrain.timer"):
        text = (SCHEDULES / name).read_text(encoding="utf-8")
        # What a program's path and a user's name are is the machine's.
        text = re.sub("^ExecStart=.*", "ExecStart=/bin/true", text, flags=re.MULTILINE).replace(
            "User=unet", "User=root"
        )
        (tmp_path / name).write_text(text, encoding="utf-8")
        done = subprocess.run(
            ["systemd-analyze", "verify", str(tmp_path / name)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    calendar = read_unit("unet-retrain.timer")["Timer"]["OnCalendar"]
    subprocess.run(["systemd-analyze", "calendar", calendar], check=True, capture_output=True)


def test_the_workflows_call_what_is_there() -> None:
    folder = ROOT / ".github" / "workflows"
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.yaml")}
    steps = [step for text in texts.values() for job in yaml.safe_load(text)["jobs"].values() for step in job["steps"]]
    words = [word for step in steps for word in step.get("run", "").split()]
    targets = {words[i + 1] for i, word in enumerate(words) if word == "make"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == {"check", "test-fast", "install"}
    assert all(f"\n{target}:" in makefile for target in targets)
    scripts = {word for word in words if word.startswith(".ci/")}
    assert scripts == {".ci/run"}
    assert all((ROOT / script).stat().st_mode & 0o100 for script in scripts)
    # A tag can be moved to other code; a commit can't.
    assert all(len(step["uses"].split("@")[1]) == 40 for step in steps if "uses" in step)


def test_the_retraining_workflow_gives_the_command_words_and_variables_that_it_knows() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "retrain.yaml").read_text(encoding="utf-8"))
    (step,) = (step for step in workflow["jobs"]["retrain"]["steps"] if "unet retrain" in step.get("run", ""))
    shell, program, *words = shlex.split(step["run"])
    assert (shell, program) == ("exec", ".venv/bin/unet")
    parsed = _parser().parse_args(words)
    assert parsed.branch.startswith("retrain-runs/")
    # The install before it takes minutes, too, and a training that is stopped.
    minutes = parsed.time_limit * 60 + 2 * GRACE_SECONDS / 60 + 10
    assert minutes < workflow["jobs"]["retrain"]["timeout-minutes"]
    placement = (ROOT / "pipeline" / "placement.py").read_text(encoding="utf-8")
    assert all(f'"{name}"' in placement for name in step["env"] if name.startswith("UNET_"))
    # Without a server, runs and champion go away with the runner.
    steps = workflow["jobs"]["retrain"]["steps"]
    before = steps[steps.index(step) - 1]
    for given, code in (("", 1), ("http://mlflow.example", 0)):
        command = ["bash", "-e", "-c", before["run"]]
        assert subprocess.run(command, env={"MLFLOW_TRACKING_URI": given}, check=False).returncode == code
    # Two at a time would train the same twice.
    assert workflow["concurrency"] == {"group": "retrain", "cancel-in-progress": False}
