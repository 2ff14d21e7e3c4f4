import json
import sys
from pathlib import Path

import pytest

from pipeline.announce import announce
from pipeline.claimant import this_process
from pipeline.history import Entry
from pipeline.placement import read_placement
from unet_core.errors import RecipeError

ENTRY = Entry(
    action="promoted",
    version="3",
    reason="better; $(touch sprung) `touch sprung`",
    number=7,
    before="2",
    by="ada@host",
    time="2026-01-02T03:04:05+00:00",
    identity="id",
    claimant=this_process(),
    is_done=True,
)


def test_the_command_gets_the_move_as_json_and_no_shell_sees_it(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; open('told', 'w').write(sys.stdin.read() + '|' + sys.argv[1])"
    monkeypatch.setenv("UNET_ON_PROMOTION", f'{sys.executable} -c "{script}" "$HOME; touch sprung"')
    announce(read_placement().on_promotion, "unet", ENTRY)
    told, word = Path("told").read_text(encoding="utf-8").rsplit("|", 1)
    assert json.loads(told) == {
        "model": "unet",
        "action": "promoted",
        "version": "3",
        "before": "2",
        "reason": ENTRY.reason,
        "by": "ada@host",
        "time": "2026-01-02T03:04:05+00:00",
    }
    assert word == "$HOME; touch sprung"
    assert not Path("sprung").exists()


def test_without_a_command_nobody_is_told(tree) -> None:
    assert read_placement().on_promotion == ()
    announce((), "unet", ENTRY)


def test_a_command_that_fails_is_told_and_stops_nothing(tree, caplog: pytest.LogCaptureFixture) -> None:
    announce([sys.executable, "-c", "raise SystemExit(4)"], "unet", ENTRY)
    assert "UNET_ON_PROMOTION ended with exit code 4 for version 3" in caplog.text
    announce(["no-such-program"], "unet", ENTRY)
    assert "UNET_ON_PROMOTION was not told of version 3: " in caplog.text


def test_words_that_are_none_are_named(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNET_ON_PROMOTION", "notify 'all")
    with pytest.raises(RecipeError) as caught:
        read_placement()
    assert str(caught.value) == (
        "environment variable UNET_ON_PROMOTION: No closing quotation: not a command's words. Correct or unset it."
    )
