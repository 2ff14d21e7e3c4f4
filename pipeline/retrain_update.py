"""What upstream has -> the working tree of a retraining, where that is a fast-forward."""

import hashlib
import logging
import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from pipeline.git_process import NETWORK_SECONDS, ask_git, contains, find_upstream, must_git, run_git
from pipeline.retrain_record import REMOTE, Record, changed_beside, literal_paths, say_who
from unet_core.errors import StorageError

log = logging.getLogger(__name__)

#: Below .unet/: there while git moves the tree, which held no work of people's just before.
MOVING_NAME = "moving"


def update(record: Record, ledger: Path, tracked_by: Path) -> tuple[bool, list[str]]:
    """Take what upstream has, where that is a fast-forward; whether the tree moved, and what people should know."""
    root = record.root
    if _finish(record):
        return True, []
    upstream = find_upstream(root)
    if upstream is None:
        return False, []
    name = ask_git(root, "rev-parse", "--abbrev-ref", upstream)
    if upstream.startswith("refs/remotes/") and not _fetch(record, name.partition("/")[0]):
        return False, _warn(f"{name} can't be fetched: what lies here is used")
    if contains(root, "HEAD", upstream):
        return False, []
    if not contains(root, upstream, "HEAD"):
        text = f"{name} and this working tree went apart: merge them by hand; what lies here is used"
        return False, _warn(text)
    if changed_beside(record, ":(top)") or not _is_tracked(ledger, tracked_by):
        text = f"{name} has new commits, but this working tree has changes: what lies here is used"
        return False, _warn(text)
    if others := _make_way(record, upstream):
        paths = shlex.join(others)
        return False, _warn(
            f"{name} has other results than this working tree ({paths}): what lies here is used. Commit it there, or "
            f"give it up here: git stash push --include-untracked -- {paths} && dvc checkout"
        )
    _move(record, upstream)
    log.info("updated to %s", name)
    return True, []


def _fetch(record: Record, remote: str) -> bool:
    """Ask the remote, and in a clone of one branch also for that of the results; whether it answered."""
    done = run_git(record.root, "fetch", "--quiet", remote, limit_seconds=NETWORK_SECONDS)
    known = run_git(record.root, "config", "--get-all", f"remote.{REMOTE}.fetch").stdout
    if record.branch is not None and known and b"refs/heads/*:" not in known:
        ref = f"+refs/heads/{record.branch}:refs/remotes/{REMOTE}/{record.branch}"
        # It need not be there.
        run_git(record.root, "fetch", "--quiet", REMOTE, ref, limit_seconds=NETWORK_SECONDS)
    return done.returncode == 0


def _move(record: Record, upstream: str) -> None:
    mark = record.root / ".unet" / MOVING_NAME
    mark.parent.mkdir(exist_ok=True)
    mark.write_text(ask_git(record.root, "rev-parse", upstream), encoding="ascii")
    try:
        must_git(record.root, "merge", "--quiet", "--ff-only", upstream)
    except StorageError:
        # Refused, it changed nothing; on a full disk, say, it left the work half done.
        if not changed_beside(record, ":(top)"):
            mark.unlink()
        raise
    mark.unlink()


def _finish(record: Record) -> bool:
    """Make a move anew that was killed; whether there was one.

    It left some of the new files, perhaps one cut off, between which nobody could choose. What is neither as it was nor
    as it is to be goes into the stash, with what people changed beside the results since.
    """
    root = record.root
    mark = root / ".unet" / MOVING_NAME
    target = mark.read_text(encoding="ascii") if mark.exists() else ""
    is_under_way = target and contains(root, target, "HEAD") and not contains(root, "HEAD", target)
    if not is_under_way:
        # None, or its last step was the kill's, or people have gone another way since.
        mark.unlink(missing_ok=True)
        return False
    top = Path(ask_git(root, "rev-parse", "--show-toplevel"))
    beside = _differing(root, "HEAD", "--", ":(top)", *(f":(exclude,literal){path}" for path in record.results))
    added = {name for name in _differing(top, "--diff-filter=A", "HEAD", target) if os.path.lexists(top / name)}
    left = beside | added | (_differing(top, "HEAD") & _differing(top, "HEAD", target))
    new = {name for name in left if _content(top, name) == _blob(top, target, name)}
    if new:
        must_git(top, "update-index", "--add", "--remove", "-z", "--stdin", given=_join(new))
    if left - new:
        push = ("stash", "push", "--quiet", "--include-untracked", "--message=left by an update that was killed")
        names = ("--pathspec-from-file=-", "--pathspec-file-nul")
        must_git(top, "--literal-pathspecs", *say_who(top), *push, *names, given=_join(left - new))
        log.warning("an update was killed: what it left, and what was changed since, lies in `git stash list`")
    _move(record, target)
    return True


def _differing(root: Path, *words: str) -> set[str]:
    """Files, from the repository's top, in which commits (or one and the working tree) differ."""
    listed = must_git(root, "diff", "--no-renames", "--no-relative", "--name-only", "-z", *words)
    return {os.fsdecode(name) for name in listed.split(b"\0") if name}


def _join(names: Iterable[str]) -> bytes:
    return b"\0".join(map(os.fsencode, sorted(names)))


def _content(root: Path, path: str) -> str:
    """Name that git gives to a file's content; empty where there is no file."""
    return ask_git(root, "hash-object", "--", path) if (root / path).is_file() else ""


def _make_way(record: Record, upstream: str) -> list[str]:
    """Let results that are not committed be no hindrance to upstream's commits.

    What upstream has just so, since somebody applied the patch there, is staged, which lets git merge; what upstream
    left alone stays as it is. Those of which upstream has others, between which only people can choose.
    """
    others = []
    results, root = literal_paths(record.results), record.root
    changed = ask_git(root, "diff", "--name-only", "--relative", "-z", "HEAD", "--", *results)
    unknown = ask_git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *results)
    for path in filter(None, f"{changed}{unknown}".split("\0")):
        here, there, before = _content(root, path), _blob(root, upstream, path), _blob(root, "HEAD", path)
        if here == there:
            if here:
                must_git(root, "--literal-pathspecs", "add", "--", path)
        elif there != before:
            others.append(path)
    return others


def _blob(root: Path, commit: str, path: str) -> str:
    """Name of a file's content in a commit; empty where it has no such file."""
    return run_git(root, "rev-parse", "--verify", "--quiet", f"{commit}:./{path}").stdout.decode().strip()


def _is_tracked(ledger: Path, tracked_by: Path) -> bool:
    """Whether DVC knows the ledger as it is."""
    if not ledger.exists() or not tracked_by.exists():
        return not ledger.exists()
    return hashlib.md5(ledger.read_bytes(), usedforsecurity=False).hexdigest() in tracked_by.read_text(encoding="utf-8")


def _warn(text: str) -> list[str]:
    log.warning("%s", text)
    return [text]
