import logging
import re

import pytest

from pipeline import progress as module
from pipeline.progress import Progress, progress


def test_items_pass_in_order_and_lazily() -> None:
    seen = []
    for item in progress(iter("abc"), total=3, label="shard", unit="shards"):
        seen.append(item)
        if item == "b":
            break
    assert seen == ["a", "b"]


def test_short_work_says_nothing_where_there_is_no_terminal(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO):
        assert list(progress(range(3), total=3, label="shard", unit="shards")) == [0, 1, 2]
    assert caplog.text == ""
    assert capsys.readouterr().err == ""


def test_long_work_says_how_far_it_is(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", -1.0)
    with caplog.at_level(logging.INFO):
        shown = Progress(total=3, label="train", unit="steps")
        shown.advance(0, "2 workers")
        shown.advance(2, "val_loss 0.5")
        shown.advance()
        shown.close()
    first, second, last = caplog.messages
    # Nobody knows yet how long a step takes.
    assert first == "train: 0 of 3 steps, 2 workers"
    assert re.fullmatch(r"train: 2 of 3 steps, \d\d:\d\d left, val_loss 0\.5", second)
    assert last == "train: 3 of 3 steps, val_loss 0.5"


def test_the_time_left_follows_the_pace_since_the_last_line() -> None:
    shown = Progress(total=1000, label="train", unit="steps")
    shown.advance(100)
    assert shown._time_left(20.0) == "03:00 left"
    shown._shown_done = 75
    assert shown._time_left(100.0) == "1:00:00 left"


def test_a_mistake_in_the_work_ends_the_bar_and_goes_on_up() -> None:
    def fail():
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(progress(fail(), total=2, label="shard", unit="shards"))
