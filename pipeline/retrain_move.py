"""git moves the working tree to upstream's newest commit; a move that was killed is brought to its end.

A mark below .unet/ stands meanwhile. No look at the tree could tell the half of a killed move from people's work.
"""

import logging
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from pipeline.git_process import ask_git, contains, must_git, run_git
from unet_core.errors import StorageError

log = logging.getLogger(__name__)

#: Below .unet/: the mark, and what people did meanwhile to files that the move is about.
MARK_NAME, ASIDE_NAME = "moving", "aside"


def move(root: Path, upstream: str) -> None:
    """Merge a commit that is ahead of the newest one here; StorageError where git refuses.

    Neither what git ignores nor changed results are taken away, whatever git is set to.
    """
    mark = root / ".unet" / MARK_NAME
    mark.parent.mkdir(exist_ok=True)
    mark.write_text(ask_git(root, "rev-parse", upstream), encoding="ascii")
    top = _top(root)
    moved = _differing(top, "HEAD", upstream)
    before = _stamps(top, moved)
    try:
        must_git(root, "merge", "--quiet", "--ff-only", "--no-autostash", "--no-overwrite-ignore", upstream)
    except StorageError:
        # Refused, it changed nothing; on a full disk, say, it left the work half done.
        if _stamps(top, moved) == before:
            mark.unlink()
        raise
    mark.unlink()


def finish(root: Path, upstream: str) -> bool:
    """Bring a killed move to its end; whether there was one.

    It left some files as they were, some as they are to be, and perhaps one cut off. What is none of that is people's,
    and is put aside.
    """
    mark = root / ".unet" / MARK_NAME
    target = mark.read_text(encoding="ascii") if mark.exists() else ""
    is_ahead = target != "" and contains(root, target, "HEAD") and not contains(root, "HEAD", target)
    if not is_ahead or not contains(root, upstream, target):
        # None, or only its mark was left, or people have gone another way since.
        mark.unlink(missing_ok=True)
        return False
    top = _top(root)
    moved, new = _differing(top, "HEAD", target), _differing(top, "HEAD", target, "--diff-filter=d")
    above = {str(folder) for name in new for folder in PurePosixPath(name).parents[:-1]}
    for name in sorted(moved | above):
        if not _is_of_move(top, name, target) or (name in new and _is_peoples_folder(top / name, top, moved)):
            _put_aside(top, name, root / ".unet" / ASIDE_NAME)
    for name in moved - new:
        _remove(top, name)
    if new:
        restore = ("restore", "--quiet", f"--source={target}", "--worktree")
        listed = b"\0".join(map(os.fsencode, sorted(new)))
        must_git(top, "--literal-pathspecs", *restore, "--pathspec-from-file=-", "--pathspec-file-nul", given=listed)
    must_git(top, "reset", "--quiet", target)
    mark.unlink()
    log.warning("an update that was killed is at its end")
    return True


def say_aside(root: Path) -> str | None:
    """A word for people while something of theirs lies aside."""
    aside = root / ".unet" / ASIDE_NAME
    text = f"files that were in the way of an update lie in {aside}: take what is yours, and remove the folder"
    return text if aside.exists() else None


def _stamps(top: Path, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Of those files that are there: what changes when git writes them."""
    found = {name: os.lstat(top / name) for name in names if os.path.lexists(top / name)}
    return {name: (stat.st_ino, stat.st_ctime_ns) for name, stat in found.items()}


def _is_of_move(top: Path, name: str, target: str) -> bool:
    """Whether a path is as the newest commit has it, is the beginning of the target's file, a folder, or not there."""
    path = top / name
    if not os.path.lexists(path) or _is_folder(path):
        return True
    here = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
    old, new = (run_git(top, "cat-file", "--filters", f"{commit}:{name}") for commit in ("HEAD", target))
    return (old.returncode == 0 and old.stdout == here) or (new.returncode == 0 and new.stdout.startswith(here))


def _is_peoples_folder(path: Path, top: Path, moved: set[str]) -> bool:
    """Whether a folder stands in the place of a file, with something in it that is not of the move."""
    if not _is_folder(path):
        return False
    return any(not _is_folder(found) and found.relative_to(top).as_posix() not in moved for found in path.rglob("*"))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _put_aside(top: Path, name: str, aside: Path) -> None:
    place, number = aside / name, 0
    while os.path.lexists(place):
        number += 1
        place = aside / f"{name}.{number}"
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(top / name, place)


def _remove(top: Path, name: str) -> None:
    """Remove a file, and the folders that are empty without it."""
    path = top / name
    if os.path.lexists(path) and not _is_folder(path):
        path.unlink()
    with suppress(OSError):
        for folder in PurePosixPath(name).parents[:-1]:
            (top / folder).rmdir()


def _top(root: Path) -> Path:
    return Path(ask_git(root, "rev-parse", "--show-toplevel"))


def _differing(top: Path, *words: str) -> set[str]:
    """Files, from the repository's top, in which two commits differ; without submodules."""
    plain = ("diff", "--no-renames", "--no-relative", "--ignore-submodules=all", "--name-only", "-z")
    return {os.fsdecode(name) for name in must_git(top, *plain, *words).split(b"\0") if name}
