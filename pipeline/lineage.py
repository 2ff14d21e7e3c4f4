"""Where a model comes from: commit, recipe, data. Written on runs and versions as tags and files."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.git_process import PLAIN_DIFF, apart_from_the_user, ask_git, must_git
from pipeline.params import RECIPE, locked_stage, read_sections
from pipeline.secret_files import is_secret_file
from unet_core.errors import StorageError
from unet_core.hashing import hash_file

log = logging.getLogger(__name__)

#: Files that git does not know yet count as source below these folders, and elsewhere with these endings.
SOURCE_FOLDERS = ("pipeline", "unet_core", "recipes")
SOURCE_ENDINGS = (".py", ".yaml", ".yml", ".toml", ".txt", ".lock", ".dvc")

#: In a tree that `unet submit` packed, which has no .git: what the functions below gave where it was packed.
SUBMITTED = Path(".unet/submitted.json")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A working tree as commit and patch."""

    commit: str
    """Empty outside git."""
    prefix: str
    """Where the working tree lies in its repository: empty, or a folder with a slash at its end."""
    patch: str
    """Binary-safe `git diff` against the commit, with files that git does not know yet; bytes that are no UTF-8
    stand as lone surrogates. Without files that may hold secrets: all who see the model may read it."""


def git_state(root: Path) -> dict[str, str]:
    """Commit of the working tree and whether tracked files differ from it; empty outside git."""
    if (told := _submitted(root)) is not None:
        return dict(told["git"])
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return {}
    # What the pipeline writes itself (dvc.lock, metrics) says nothing about the source.
    changed = _git(
        root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!metrics", ":!models"
    )
    return {"git.commit": commit, "git.dirty": str(bool(changed)).lower()}


def source_state(root: Path) -> Source:
    """The source tree as commit and patch. Neither index nor objects of the user's repository are touched."""
    if (told := _submitted(root)) is not None:
        return Source(**told["source"])
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return Source(commit="", prefix="", patch="")
    with apart_from_the_user(root) as apart:
        must_git(root, "read-tree", "HEAD", more=apart)
        # Beside what HEAD has: also files that the user's index knows already.
        listed = must_git(root, "ls-files", "--others", "--exclude-standard", "-z", more=apart)
        unknown = [name for name in listed.split(b"\0") if name and _is_source(os.fsdecode(name))]
        must_git(root, "--literal-pathspecs", "add", "--update", "--", ".", more=apart)
        if unknown:
            add = ("--literal-pathspecs", "add", "--pathspec-from-file=-", "--pathspec-file-nul")
            must_git(root, *add, more=apart, given=b"\0".join(unknown))
        changed = must_git(root, *PLAIN_DIFF, "--cached", "--name-only", "-z", "HEAD", more=apart)
        held_back = [name for name in map(os.fsdecode, changed.split(b"\0")) if _may_hold_secrets(name)]
        if held_back:
            log.warning("lineage: %s may hold secrets: the change stays out of the model's patch", ", ".join(held_back))
        places = (":(top)", *(f":(top,exclude,literal){name}" for name in held_back))
        patch = must_git(root, *PLAIN_DIFF, "--cached", "HEAD", "--", *places, more=apart)
    return Source(
        commit=commit,
        prefix=_git(root, "rev-parse", "--show-prefix") or "",
        patch=patch.decode("utf-8", "surrogateescape"),
    )


def _submitted(root: Path) -> dict[str, Any] | None:
    path = root / SUBMITTED
    return json.loads(path.read_text(encoding="ascii")) if path.exists() else None


def _is_source(name: str) -> bool:
    return name.split("/", maxsplit=1)[0] in SOURCE_FOLDERS or name.endswith(SOURCE_ENDINGS)


def _may_hold_secrets(name: str) -> bool:
    # DVC's configuration decides nothing of a model, and its passwords stand there by mistake.
    return is_secret_file(name) or name.endswith(".dvc/config")


def code_hash(root: Path, modules: Iterable[str] = ("unet_core",)) -> str:
    """sha256 over the source files of packages, by name and content."""
    digest = hashlib.sha256()
    for module in modules:
        for path in sorted((root / module).rglob("*.py")):
            digest.update(f"{path.relative_to(root)} {hash_file(path)}\n".encode())
    return digest.hexdigest()


def is_as_locked(root: Path, stage: str) -> bool:
    """Whether a stage's files and sections of the recipe are those that dvc.lock names; folders are not looked at."""
    lock = root / "dvc.lock"
    told = locked_stage(lock.read_text(encoding="utf-8"), stage) if lock.exists() else {}
    files = {dep["path"]: dep["md5"] for dep in told.get("deps", []) if not dep["md5"].endswith(".dir")}
    sections = {name: value for file in told.get("params", {}).values() for name, value in file.items()}
    recipe = read_sections(root / RECIPE)
    return bool(told) and all(
        (root / path).is_file()
        and hashlib.md5((root / path).read_bytes(), usedforsecurity=False).hexdigest() == known
        for path, known in files.items()
    ) and all(recipe.get(name) == value for name, value in sections.items())  # fmt: skip


def data_state(shards: Path) -> dict[str, str]:
    """Hash of the index of shards, which holds every shard's own."""
    return {"data.index_sha256": hash_file(shards / "index.json")}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        return ask_git(root, *arguments)
    except StorageError:
        # No git, or no repository: a model can come from a plain folder, too.
        return None
