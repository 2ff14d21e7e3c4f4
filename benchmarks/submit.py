"""Seconds from `unet submit` to the job's own first line, on a warm cluster; and how large the packed tree is.

Compares with nothing: under 8 s and 5 MB are wanted. `python -m benchmarks.submit [--quick]` prints one JSON line last.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.ray_head import ray_head
from benchmarks.workspace import ROOT, make_workspace, print_result, run
from pipeline.packed_tree import find_contents, write_zip

#: The first line that the job itself writes, not Ray.
OURS = "job unet-"


def main() -> None:
    """Start a head, submit a small command a few times, and take the time of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two submissions instead of seven")
    count = 2 if parser.parse_args().quick else 7
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_workspace(Path(scratch) / "tree", "shapes", {})
        run(folder, "dvc", "remote", "add", "--default", "store", f"{scratch}/remote")
        with ray_head() as head:
            # The head's agent and its first worker start with the first job: after it the cluster is warm.
            first, *others = [submit_once(folder, head.environment()) for _ in range(count + 1)]
        size, number = packed_size(Path(scratch) / "tree.zip")
    print_result(
        {
            "first_line_seconds": round(statistics.median(other[0] for other in others), 2),
            "slowest_seconds": round(max(other[0] for other in others), 2),
            "whole_command_seconds": round(statistics.median(other[1] for other in others), 2),
            "on_a_cold_head_seconds": round(first[0], 2),
            "packed_mb": round(size / 1e6, 2),
            "packed_files": number,
            "compared_with": "nothing: under 8 s and 5 MB are wanted",
        }
    )


def submit_once(folder: Path, environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds to the job's first line, and to the end of the command."""
    scripts = str(Path(sys.executable).parent)
    given = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", **environment}
    words = ("unet", "submit", "--", "shapes", "data/raw/few", "--count", "2")
    begun = time.monotonic()
    seconds = None
    output = ""
    with subprocess.Popen(
        words, cwd=folder, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            output += line
            if seconds is None and line.startswith(OURS) and "submitted" not in line:
                seconds = time.monotonic() - begun
    if process.returncode or seconds is None:
        raise RuntimeError(f"exit code {process.returncode}\n{output}")
    print(f"first line after {seconds:.2f} s, end after {time.monotonic() - begun:.2f} s", flush=True)
    return seconds, time.monotonic() - begun


def packed_size(package: Path) -> tuple[int, int]:
    """Bytes and files of this repository as it would be sent."""
    names = find_contents(ROOT, source="data/raw/shapes").names
    write_zip(ROOT, names, package, submitted=b"{}")
    return package.stat().st_size, len(names)


if __name__ == "__main__":
    main()
