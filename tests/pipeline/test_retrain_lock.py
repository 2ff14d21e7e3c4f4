"""Real processes, some of them killed."""

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.retrain_lock import alone, held, holder
from unet_core.errors import StorageError

#: Takes the lock at argv[1], says so, and waits for its end.
HOLD = """
import sys, time
from pathlib import Path
from pipeline.retrain_lock import held
with held(Path(sys.argv[1]), wait=False) as lock:
    print("held" if lock is not None else "busy", flush=True)
    time.sleep(60)
"""


def start_holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_one_is_told_who_holds_it_and_leaves(tmp_path: Path) -> None:
    path = tmp_path / ".unet" / "retrain.lock"
    with held(path, wait=False) as first:
        assert first is not None
        with held(path, wait=False) as second:
            assert second is None
        assert holder(path).startswith(f"process {os.getpid()} on ")
    assert path.read_text() == ""
    with held(path, wait=False) as third:
        assert third is not None


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "retrain.lock"
    process = start_holder(path)
    with held(path, wait=False) as lock:
        assert lock is None
    assert holder(path).startswith(f"process {process.pid} on ")
    process.kill()
    process.wait()
    with held(path, wait=False) as lock:
        assert lock is not None
        assert holder(path).startswith(f"process {os.getpid()} on ")


def test_who_waits_gets_it_when_the_other_one_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "retrain.lock"
    process = start_holder(path)
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {process.pid}"])
    with caplog.at_level("INFO"), held(path, wait=True) as lock:
        assert lock is not None
        assert process.wait(10) == -9
    killer.wait()
    assert "(it was killed" not in caplog.text
    assert f"waiting for another retraining: process {process.pid} on " in caplog.text


def test_a_killed_holder_whose_child_works_on_is_not_taken_for_alive(tmp_path: Path) -> None:
    path = tmp_path / "retrain.lock"
    path.write_text(f"process 99999999 on {platform.node()}, since 2026-11-02T03:00:00+00:00\n")
    text = path.read_text().strip()
    assert holder(path) == f"{text} (it was killed; what it started, such as `dvc repro`, still works)"
    path.write_text("process 99999999 on elsewhere, since 2026-11-02T03:00:00+00:00\n")
    assert holder(path) == path.read_text().strip()


def test_what_a_holder_started_keeps_the_lock_after_it(tmp_path: Path) -> None:
    path = tmp_path / "retrain.lock"
    with held(path, wait=False) as lock:
        assert lock is not None
        child = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    with held(path, wait=False) as lock:
        assert lock is None
    child.kill()
    child.wait()
    with held(path, wait=False) as lock:
        assert lock is not None


def test_a_full_disk_keeps_nobody_from_the_lock(small_disk: Path) -> None:
    path = small_disk / "retrain.lock"
    path.touch()
    fill(small_disk)
    with held(path, wait=False) as lock:
        assert lock is not None
        with held(path, wait=False) as second:
            assert second is None
        assert holder(path) == "a process that has not said who it is"
    with held(path, wait=False) as lock:
        assert lock is not None


def fill(disk: Path) -> None:
    with (disk / "rest").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))


def put_a_folder(path: Path) -> None:
    path.mkdir(parents=True)


def put_a_file_above(path: Path) -> None:
    path.parent.write_text("in the way")


@pytest.mark.parametrize(
    ("put_in_the_way", "reason"), [(put_a_folder, "Is a directory"), (put_a_file_above, "File exists")]
)
def test_a_file_that_can_not_be_opened_is_told_and_is_no_reason_to_refuse_a_stage(
    tmp_path: Path, put_in_the_way: Callable[[Path], None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / ".unet" / "split.lock"
    put_in_the_way(path)
    sentence = (
        f"a lock's file can't be opened: {path}: {reason}. Make room on its disk, take away what is in the way, or "
        "let this user write there."
    )
    with pytest.raises(StorageError) as caught, held(path, wait=False):
        pass
    assert str(caught.value) == sentence
    with alone("split", path.parent):
        assert caplog.messages == [f"unet stage split: nothing keeps a second one away: {sentence}"]


def test_a_stage_that_outlives_its_dvc_keeps_a_second_one_waiting(tree) -> None:
    first = start_holder(Path(".unet/split.lock"))
    paths = ("accepted", "duplicates", "splits", "quarantined", "leaks", "metrics")
    words = [word for name in paths for word in (f"--{name}", f"none/{name}")]
    command = [sys.executable, "-m", "pipeline.cli", "stage", "split", *words]
    second = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    assert second.stderr.readline().startswith(
        f"waiting for another process that runs stage split here: process {first.pid} on "
    )
    assert second.poll() is None
    first.kill()
    first.wait()
    # On it goes; there is nothing to split here.
    assert second.wait(60) == 3
    assert "params.yaml" in second.stderr.read()
