"""A clone that retrains, one in which people work, and what is done in them."""

import subprocess
from pathlib import Path

RESULTS = ("dvc.lock", "arrivals/raw.jsonl.dvc", "arrivals/.gitignore", "metrics", "models/receipt.json")
NO_LEDGER = (Path("none.jsonl"), Path("none.jsonl.dvc"))


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=ada", "-c", "user.email=ada@example.invalid")
    done = subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def write(folder: Path, **texts: str) -> None:
    names = {
        "lock": "dvc.lock",
        "code": "pipeline.py",
        "metrics": "metrics/ingest.json",
        "receipt": "models/receipt.json",
    }
    for name, text in texts.items():
        path = folder / names[name]
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def commit_and_push(folder: Path) -> None:
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "work")
    git(folder, "push", "--quiet", "origin", "HEAD:main")
