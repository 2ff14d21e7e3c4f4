import subprocess
import sys

import pytest

# In a process of its own, since the setting stays. Page faults tell whether the system cleared the memory anew.
PROGRAM = """
import resource, sys
import torch
from pipeline.memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for number in range(30):
    if number == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_blocks_are_used_again() -> None:
    as_it_comes, kept = (
        int(subprocess.run([sys.executable, "-c", PROGRAM, word], check=True, capture_output=True, text=True).stdout)
        for word in ("no", "keep")
    )
    # A block of 64 MiB has 16,384 pages, and there are ten.
    assert as_it_comes > 100_000
    assert kept < 10_000
