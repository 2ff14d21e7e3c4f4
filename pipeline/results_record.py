"""Which results are there already: a file beside them says of what image, by what model and how they were made."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.results import write_json

FOLDER = "records"


def is_done(out: Path, name: str, about: Mapping[str, Any]) -> bool:
    """Whether an image's results are all there and were made as `about` says."""
    record = _read(out, name)
    return record is not None and record["about"] == about and all((out / path).is_file() for path in record["results"])


def has_others(out: Path, name: str) -> bool:
    """Whether results of this name are there at all."""
    return _read(out, name) is not None


def forget(out: Path, name: str) -> None:
    """Remove results of another model, other options or another image, so that nobody takes them for the new ones."""
    record = _read(out, name)
    _path(out, name).unlink(missing_ok=True)
    for path in record["results"] if record else ():
        # A record is a file that anybody may have written.
        if (out / path).resolve().is_relative_to(out.resolve()):
            (out / path).unlink(missing_ok=True)


def record(out: Path, name: str, about: Mapping[str, Any], results: Sequence[Path]) -> None:
    """Write down that an image is done; called when all its results are there."""
    write_json(_path(out, name), {"about": about, "results": [path.relative_to(out).as_posix() for path in results]})


def _read(out: Path, name: str) -> dict[str, Any] | None:
    try:
        body = json.loads(_path(out, name).read_text(encoding="utf-8"))
        return {"about": body["about"], "results": [str(path) for path in body["results"]]}
    except (OSError, ValueError, KeyError, TypeError):
        # Half a record is none: its image is predicted again.
        return None


def _path(out: Path, name: str) -> Path:
    return out / FOLDER / f"{name}.json"
