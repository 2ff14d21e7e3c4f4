"""Files are known by their content."""

import hashlib
from pathlib import Path


def hash_file(path: Path) -> str:
    """sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
