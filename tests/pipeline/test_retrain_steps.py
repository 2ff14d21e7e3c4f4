"""Real DVC on a pipeline of one line a stage."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.workspace import IN_BACKGROUND
from pipeline.retrain_steps import (
    Status,
    _is_at_work,
    has_remote,
    parse_status,
    pull,
    push,
    read_status,
    reproduce,
    start_status,
)
from unet_core.errors import DataError, StorageError, TrainingError

LOG = Path(".unet/retrain.log")
#: Of Linux: orphans below come to this process.
PR_SET_CHILD_SUBREAPER = 36
#: A stage that has begun, and leaves something where it is interrupted.
INTERRUPTIBLE = """
import time
try:
    open("begun", "w").close()
    time.sleep(60)
except KeyboardInterrupt:
    open("left", "w").write("with a checkpoint")
    raise
"""


def test_what_dvc_says_is_sorted_by_what_it_means() -> None:
    body = {
        "ingest": [{"changed deps": {"raw": "modified", "params.yaml": {"ingest": "modified", "masks": "new"}}}],
        "train": [
            {"changed deps": {"unet_core/a.py": "modified", "params.yaml": "modified"}},
            {"changed outs": {"models/final": "deleted", "metrics/train.json": "modified", "x": "not in cache"}},
            "changed checksum",
        ],
        "arrivals/raw.jsonl.dvc": [{"changed outs": {"arrivals/raw.jsonl": "modified"}}],
    }
    assert parse_status(body) == Status(
        inputs={
            "ingest": ("raw", "params.yaml: ingest", "params.yaml: masks"),
            "train": ("unet_core/a.py", "params.yaml", "dvc.yaml"),
        },
        absent={"train": ("models/final", "x")},
        altered={"train": ("metrics/train.json",), "arrivals/raw.jsonl.dvc": ("arrivals/raw.jsonl",)},
    )
    assert parse_status({}) == Status()


def dvc(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *words], check=True, capture_output=True)


@pytest.fixture
def pipeline(dvc_tree) -> Path:
    """Two stages: `a` copies its input, `b` runs what stands in b.py. Git ignores the results, as the project's does."""
    root: Path = dvc_tree.root
    (root / "input").write_text("1")
    (root / "b.py").write_text("open('b', 'w').write('b')")
    (root / "dvc.yaml").write_text(
        "stages:\n"
        "  a: {cmd: mkdir -p a && cp input a/copy, deps: [input], outs: [a]}\n"
        f"  b: {{cmd: '{sys.executable} b.py', deps: [a, b.py], outs: [b]}}\n"
    )
    (root / ".gitignore").write_text("/a\n/b\n")
    return root


@pytest.mark.slow
def test_stale_stages_run_and_people_read_what_they_say(pipeline: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert set(read_status(start_status()).inputs) == {"a", "b"}
    reproduce(None, LOG)
    assert read_status(start_status()) == Status()
    said = capfd.readouterr().err
    assert "Running stage 'a'" in said
    assert "Running stage 'b'" in said
    assert LOG.read_text() == said
    (pipeline / "input").write_text("2")
    assert read_status(start_status()) == Status(inputs={"a": ("input",)})


@pytest.mark.slow
def test_a_stage_that_fails_keeps_its_code_and_its_sentence(pipeline: Path) -> None:
    program = "import sys; sys.stderr.write('unet validate: a mask is missing: raw/masks/a.png.\\n'); sys.exit(4)"
    (pipeline / "b.py").write_text(program)
    with pytest.raises(DataError) as caught:
        reproduce(None, LOG)
    assert str(caught.value) == "a mask is missing: raw/masks/a.png."
    # By the system, for want of memory; a shell that waits for its command adds 128 to the signal.
    (pipeline / "b.py").write_text("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(TrainingError, match=r"^the pipeline ended with 255: .*exited with (-9|137)"):
        reproduce(None, LOG)
    (pipeline / "b.py").write_text("raise SystemExit(77)")
    with pytest.raises(TrainingError, match=r"^the pipeline ended with 255: .*exited with 77"):
        reproduce(None, LOG)


@pytest.mark.slow
def test_an_interrupted_call_interrupts_the_stage(pipeline: Path) -> None:
    (pipeline / "b.py").write_text(INTERRUPTIBLE)
    call = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from pathlib import Path; from pipeline.retrain_steps import *; reproduce(None, Path('l'))",
        ],
        stderr=subprocess.DEVNULL,
    )
    wait_for(pipeline / "begun")
    below = psutil.Process(call.pid).children(recursive=True)
    call.send_signal(signal.SIGINT)
    call.wait(30)
    assert (pipeline / "left").read_text() == "with a checkpoint"
    assert psutil.wait_procs(below, timeout=10)[1] == []


@pytest.mark.slow
def test_a_stage_is_interrupted_though_a_script_started_all_in_the_background(pipeline: Path) -> None:
    (pipeline / "b.py").write_text(INTERRUPTIBLE)
    script = (
        "from pathlib import Path\n"
        "from pipeline.command import terminated_as_interrupted\n"
        "from pipeline.retrain_steps import reproduce\n"
        "with terminated_as_interrupted(): reproduce(None, Path('l'))\n"
    )
    call = subprocess.Popen(
        [*IN_BACKGROUND, sys.executable, "-c", script],
        stderr=subprocess.DEVNULL,
    )
    wait_for(pipeline / "begun")
    call.terminate()
    call.wait(30)
    assert (pipeline / "left").read_text() == "with a checkpoint"


@pytest.mark.slow
def test_where_dvc_fails_by_itself_that_is_no_error_of_a_training(pipeline: Path) -> None:
    (pipeline / ".dvc" / "config").write_text("[cache]\n    dir = /proc/nowhere\n")
    with pytest.raises(StorageError, match=r"^the pipeline ended with 255: .*/proc/nowhere"):
        reproduce(None, LOG)


@pytest.mark.slow
def test_when_dvc_is_killed_its_stage_is_ended_too(pipeline: Path) -> None:
    (pipeline / "b.py").write_text("import os, time\nopen('begun', 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    script = (
        "import os, signal, threading, time\n"
        "from pathlib import Path\n"
        "import psutil\n"
        "def kill():\n"
        "    while not Path('begun').exists() or not Path('begun').read_text(): time.sleep(0.05)\n"
        "    psutil.Process().children()[0].kill()\n"
        "threading.Thread(target=kill).start()\n"
        "from pipeline.retrain_steps import reproduce\n"
        "reproduce(None, Path('l'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert "TrainingError: the pipeline ended with -9" in done.stderr
    assert not psutil.pid_exists(int((pipeline / "begun").read_text()))


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_what_a_killed_stage_left_stays_and_what_is_not_here_comes(pipeline: Path) -> None:
    assert not has_remote(None)
    dvc("remote", "add", "--default", "store", str(pipeline / "store"))
    assert has_remote(None)
    reproduce(None, LOG)
    push(None)
    (pipeline / "b").unlink()
    (pipeline / "a" / "half").write_text("of a result")
    status = read_status(start_status())
    assert status == Status(inputs={"b": ("a",)}, absent={"b": ("b",)}, altered={"a": ("a",)})
    # Not only from the cache of this machine.
    subprocess.run(["rm", "-rf", ".dvc/cache"], check=True)
    pull(read_status(start_status()), None)
    # `b` is back, and of `a`, half of which is here, nothing was lost.
    assert (pipeline / "b").read_text() == "b"
    assert (pipeline / "a" / "half").exists()
    # Where the stage has run elsewhere since, nothing goes on from there; what people track themselves stays theirs.
    (pipeline / "notes").write_text("old")
    dvc("add", "notes")
    (pipeline / "notes").write_text("new, and nowhere else")
    pull(read_status(start_status()), None, may_replace=True)
    assert not (pipeline / "a" / "half").exists()
    assert (pipeline / "notes").read_text() == "new, and nowhere else"
    assert read_status(start_status()) == Status(altered={"notes.dvc": ("notes",)})


@pytest.mark.slow
def test_who_stops_reading_does_not_stop_the_pipeline(pipeline: Path) -> None:
    (pipeline / "b.py").write_text("print(*range(100_000), sep='\\n'); open('b', 'w').write('b')")
    code = "from pathlib import Path; from pipeline.retrain_steps import reproduce; reproduce(None, Path('.unet/log'))"
    # As in `unet retrain 2>&1 | head`.
    reads, writes = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], stderr=writes)
    os.close(writes)
    os.close(reads)
    assert process.wait(timeout=120) == 0
    assert (pipeline / "b").read_text() == "b"


def test_a_process_that_nobody_collects_is_not_waited_for() -> None:
    # So it is below a container's first process, if that is no init: here this process is the one that gets orphans.
    subreaper = ctypes.CDLL(None).prctl
    assert subreaper(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        words = [sys.executable, "-c", "import subprocess; subprocess.Popen(['cat'])"]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
        process.wait()
        assert _is_at_work(process.pid)
        (orphan,) = (each for each in psutil.Process().children() if os.getpgid(each.pid) == process.pid)
        assert process.stdin is not None
        process.stdin.close()
        while orphan.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        os.killpg(process.pid, 0)
        assert not _is_at_work(process.pid)
        os.waitpid(orphan.pid, 0)
    finally:
        subreaper(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.mark.slow
def test_a_remote_that_is_away_is_named_without_its_secrets(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dvc("remote", "add", "--default", "store", "http://me:secret@127.0.0.1:9/store")
    reproduce(None, LOG)
    with pytest.raises(StorageError, match=r"^DVC can't push the results: ") as caught:
        push(None)
    assert "secret" not in str(caught.value)
    dvc("remote", "modify", "store", "url", "s3://me:secret@bucket/x")
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    subprocess.run(["rm", "-rf", ".dvc/cache", "b"], check=True)
    with pytest.raises(StorageError, match=r"^DVC can't fetch what is recorded: ") as caught:
        pull(read_status(start_status()), None)
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_a_lock_file_that_is_cut_off_is_told_by_its_name(pipeline: Path) -> None:
    reproduce(None, LOG)
    (pipeline / "dvc.lock").write_text((pipeline / "dvc.lock").read_text()[:150] + "  :")
    with pytest.raises(StorageError, match=r"^DVC can't tell what is stale: .*dvc\.lock"):
        read_status(start_status())


@pytest.mark.slow
def test_stages_find_this_interpreters_commands_under_a_schedulers_path(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("UNET_WEBHOOK", "https://hooks.example.org/secret")
    (pipeline / "dvc.yaml").write_text("stages:\n  a: {cmd: 'command -v python > a; env > b', outs: [a, b]}\n")
    reproduce(None, LOG)
    assert Path((pipeline / "a").read_text().strip()).parent == Path(sys.executable).parent
    assert "hooks.example.org" not in (pipeline / "b").read_text()
    assert os.environ["PATH"] == "/usr/bin:/bin"
