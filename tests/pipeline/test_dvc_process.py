"""DVC as a process: a real one, in a folder of its own."""

import os
import sys
from pathlib import Path

import pytest

from pipeline.dvc_process import MAX_REASON, STAGE_ENDED, dvcs_reason, run_dvc, run_dvc_with_remote


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "DVC ended with 255, without a word"),
        ("\nHaving any troubles? Hit us up at https://dvc.org/support, we are happy to help!\n", "DVC ended with 255, without a word"),
        ("WARNING: gone:\nx\nERROR: failed to connect to s3 (b/x) - no route\nERROR: 2 files failed\n", "failed to connect to s3 (b/x) - no route; 2 files failed"),
        ("ERROR: unexpected error - https://me:12345@host/x?key=12345: refused.\n\nHaving any troubles? https://dvc.org/support", "unexpected error - https://***@host/x refused"),
        ("ERROR: Unable to acquire lock. Most likely another DVC process is running. Check <https://dvc.org/doc/x>.\n", "Unable to acquire lock. Most likely another DVC process is running. Check <https://dvc.org/doc/x>"),
        ("x" * 999 + "\n" + "\n".join(["a long story"] * 30) + "\nKilled\n", "; ".join(["a long story"] * 30 + ["Killed"])[-MAX_REASON:]),
        ("ERROR: first\n" + "ERROR: another\n" * 99, "first;" + " another;" * 43 + " ..."),
    ],
)  # fmt: skip
def test_dvcs_reason_is_its_first_error_without_secrets(text: str, reason: str) -> None:
    assert dvcs_reason(text, 255) == reason


@pytest.mark.slow
def test_what_it_says_is_kept_and_its_code_told(dvc_tree) -> None:
    done = run_dvc("remote", "list")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (dvc_tree.root / "dvc.yaml").write_text("stages:\n  a: {cmd: exit 4}\n")
    done = run_dvc("repro")
    assert done.returncode != 4
    assert STAGE_ENDED.findall(done.stderr) == ["4"]
    assert dvcs_reason(done.stderr, done.returncode) == (
        "failed to reproduce 'a': failed to run: exit 4, exited with 4"
    )


@pytest.mark.slow
def test_what_is_no_utf_8_does_not_hide_why_it_failed(dvc_tree) -> None:
    (dvc_tree.root / "say.py").write_text("import os\nos.write(2, b'caf\\xe9\\n')\nraise SystemExit(4)\n")
    (dvc_tree.root / "dvc.yaml").write_text(f"stages:\n  a: {{cmd: {sys.executable} say.py}}\n")
    done = run_dvc("repro")
    assert "caf\ufffd\n" in done.stderr
    assert STAGE_ENDED.findall(done.stderr) == ["4"]


@pytest.mark.slow
def test_a_lock_is_passed_on_and_the_memory_is_new_each_time(dvc_tree, tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    try:
        (dvc_tree.root / "dvc.yaml").write_text(
            f"stages:\n  a: {{cmd: 'test $(readlink /proc/$PPID/fd/{lock}) = {tmp_path}/lock && echo $DVC_SITE_CACHE_DIR >> {tmp_path}/memories'}}\n"
        )
        assert run_dvc_with_remote("repro", "--force", lock=lock).returncode == 0
        assert run_dvc_with_remote("repro", "--force", lock=lock).returncode == 0
        assert run_dvc("repro", "--force").returncode != 0
    finally:
        os.close(lock)
    first, second = (tmp_path / "memories").read_text().split()
    assert first != second
    assert not Path(first).exists()
