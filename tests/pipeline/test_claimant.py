import os
import subprocess
import sys
from dataclasses import replace

import psutil

from pipeline.claimant import is_dead, this_process


def test_this_process_is_alive() -> None:
    assert this_process().pid == os.getpid()
    assert not is_dead(this_process())


def test_a_process_that_ended_is_dead_also_before_its_parent_has_noticed() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    claimant = replace(this_process(), pid=child.pid, started=psutil.Process(child.pid).create_time())
    assert not is_dead(claimant)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_dead(claimant)
    child.communicate()
    assert is_dead(claimant)


def test_another_process_with_the_same_number_is_not_taken_for_it() -> None:
    assert is_dead(replace(this_process(), started=this_process().started - 100))


def test_of_another_machine_nothing_is_known() -> None:
    assert not is_dead(replace(this_process(), machine="elsewhere", pid=2**22 + 1))
