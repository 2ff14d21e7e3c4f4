"""Bytes -> a file that is there whole, or as it was before."""

from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write beside the file's place, then take its name: who reads, and who is killed in between, meets no half of it.

    With DVC's links the old file may be the cache's own copy, so it is replaced and never written into.
    For one writer at a time. Raises OSError, and leaves no part that would take the little room there is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
