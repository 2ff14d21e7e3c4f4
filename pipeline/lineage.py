"""Where a model comes from: commit, recipe, data. Written on runs and versions as tags and files."""

import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path

from unet_core.hashing import hash_file


def git_state(root: Path) -> dict[str, str]:
    """Commit of the working tree and whether tracked files differ from it; empty outside git."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return {}
    # What the pipeline writes itself (dvc.lock, metrics) says nothing about the source.
    changed = _git(
        root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!metrics", ":!models"
    )
    return {"git.commit": commit, "git.dirty": str(bool(changed)).lower()}


def code_hash(root: Path, modules: Iterable[str] = ("unet_core",)) -> str:
    """sha256 over the source files of packages, by name and content."""
    digest = hashlib.sha256()
    for module in modules:
        for path in sorted((root / module).rglob("*.py")):
            digest.update(f"{path.relative_to(root)} {hash_file(path)}\n".encode())
    return digest.hexdigest()


def data_state(shards: Path) -> dict[str, str]:
    """Hash of the index of shards, which holds every shard's own."""
    return {"data.index_sha256": hash_file(shards / "index.json")}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
