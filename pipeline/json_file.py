"""A stage's result -> a JSON file: equal results are equal bytes."""

import json
from pathlib import Path


def write_json(path: Path, body: object) -> None:
    """Write `body`, a line a value, so that people can compare two files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
