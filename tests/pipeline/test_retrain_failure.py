import errno
import json
import urllib.error
from email.message import Message
from pathlib import Path

import pytest

from pipeline.retrain_failure import tell_of_failure, to_sentence
from pipeline.retrain_summary import Summary
from unet_core.errors import DataError


def failed(sentence: str) -> Summary:
    return Summary(outcome="failed", sentence=sentence, model="unet", time="2026-01-02T03:04:05+00:00")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (DataError("image can't be read: a.png."), "image can't be read: a.png."),
        (PermissionError(errno.EACCES, "Permission denied", "data/x"), "Permission denied: data/x"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe"),
        (OSError("token 12345 was refused"), "OSError"),
        (KeyError("12345"), "KeyError, which nobody foresaw: the command's own output tells more"),
    ],
    ids=["foreseen", "a file", "no file", "no reason of the system's", "unforeseen"],
)
def test_a_failure_is_told_in_words_that_are_nobodys_secret(error: Exception, sentence: str) -> None:
    assert to_sentence(error) == sentence


def test_the_password_in_a_failed_address_is_told_to_nobody() -> None:
    # Python keeps it as the name of the file that could not be had.
    address = "https://me:12345@host.invalid/data?token=12345"
    error = urllib.error.HTTPError(address, 403, "Forbidden", Message(), None)
    assert to_sentence(error) == "HTTPError: https://***@host.invalid/data"


def test_a_failure_about_a_file_whose_name_is_no_text_is_written_all_the_same(tmp_path: Path) -> None:
    # As Python reads a name in Latin-1 from a disk.
    name = b"gr\xfcn.png".decode("utf-8", "surrogateescape")
    tell_of_failure(failed(f"image can't be read: {name}."), report=tmp_path / "report.html", webhook=None)
    assert json.loads((tmp_path / "retrain.json").read_text())["sentence"] == f"image can't be read: {name}."
    told = (tmp_path / "retrain.md").read_text(encoding="utf-8")
    assert told == "# Retraining: failed\n\nimage can't be read: gr\\udcfcn.png.\n"


def test_a_full_disk_keeps_the_summary_of_the_call_before(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = small_disk / "report.html"
    tell_of_failure(failed("of the call before"), report=report, webhook=None)
    tell_of_failure(failed("long " * 1_000_000), report=report, webhook=None)
    assert json.loads((small_disk / "retrain.json").read_text())["sentence"] == "of the call before"
    assert not list(small_disk.glob("*.partial"))
    assert caplog.messages == [
        f"the summary in {small_disk} is not of this call: it can't be written: No space left on device"
    ]
