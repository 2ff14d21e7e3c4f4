"""The log of a job on a terminal and in a file, in pieces of any size."""

import io

import pytest

from pipeline.job_screen import Screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


LOG = "train: 1 of 9 steps, 3 s left\n::result 1/2 AAAA\ntrain: 5 of 9 steps\nwarning\ntrain: 9 of 9 steps\nend"


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_lines_of_progress_take_each_others_place_on_a_terminal_only(step: int) -> None:
    shown = {}
    for stream in (io.StringIO(), Terminal()):
        screen = Screen(stream)
        for start in range(0, len(LOG), step):
            screen.show(LOG[start : start + step])
        screen.close()
        shown[stream.isatty()] = stream.getvalue()
    assert shown[False] == ("train: 1 of 9 steps, 3 s left\ntrain: 5 of 9 steps\nwarning\ntrain: 9 of 9 steps\nend\n")
    assert shown[True] == (
        "train: 1 of 9 steps, 3 s left\r\x1b[Ktrain: 5 of 9 steps\nwarning\ntrain: 9 of 9 steps\nend\n"
    )
