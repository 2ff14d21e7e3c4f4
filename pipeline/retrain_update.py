"""What upstream has -> the working tree of a retraining, where that is a fast-forward."""

import hashlib
import logging
import shlex
from pathlib import Path

from pipeline.git_process import (
    NETWORK_SECONDS,
    ask_git,
    contains,
    find_upstream,
    gits_reason,
    must_git,
    run_git,
)
from pipeline.retrain_move import finish, move, say_aside
from pipeline.retrain_record import REMOTE, Record, changed_beside, literal_paths

log = logging.getLogger(__name__)


def update(record: Record, ledger: Path, tracked_by: Path) -> tuple[bool, list[str]]:
    """Take what upstream has, where that is a fast-forward; whether the tree moved, and what people should know."""
    root = record.root
    upstream = find_upstream(root)
    if upstream is None:
        return False, []
    if finish(root, upstream):
        return True, []
    notes = _warn(text) if (text := say_aside(root)) else []
    name = ask_git(root, "rev-parse", "--abbrev-ref", upstream)
    if upstream.startswith("refs/remotes/") and (why := _fetch(record, name.partition("/")[0])):
        return False, notes + _warn(f"{name} can't be fetched: what lies here is used ({why})")
    if contains(root, "HEAD", upstream):
        return False, notes
    if not contains(root, upstream, "HEAD"):
        text = f"{name} and this working tree went apart: merge them by hand; what lies here is used"
        return False, notes + _warn(text)
    if changed_beside(record, ":(top)") or not _is_tracked(ledger, tracked_by):
        text = f"{name} has new commits, but this working tree has changes: what lies here is used"
        return False, notes + _warn(text)
    if others := _make_way(record, upstream):
        paths = shlex.join(others)
        return False, notes + _warn(
            f"{name} has other results than this working tree ({paths}): what lies here is used. Commit it there, or "
            f"give it up here: git stash push --include-untracked -- {paths} && dvc checkout"
        )
    move(root, upstream)
    log.info("updated to %s", name)
    return True, notes


def foresee(root: Path) -> str:
    """What a call would meet upstream, as a sentence; nothing is changed here, nor fetched."""
    upstream = find_upstream(root)
    if upstream is None:
        return ""
    name = ask_git(root, "rev-parse", "--abbrev-ref", upstream)
    commit = upstream
    if upstream.startswith("refs/remotes/"):
        remote, _, branch = name.partition("/")
        done = run_git(root, "ls-remote", remote, f"refs/heads/{branch}", limit_seconds=NETWORK_SECONDS)
        if done.returncode:
            return f"{name} can't be asked: what lies here would be used ({gits_reason(done) or 'git gave no reason'})"
        commit = (done.stdout.decode().split() or [upstream])[0]
    if contains(root, "HEAD", commit):
        return ""
    return f"{name} has commits that are not here: a call takes them first where it can, and may then find more to do"


def _fetch(record: Record, remote: str) -> str:
    """Ask the remote, and in a clone of one branch also for that of the results; why it did not answer, or nothing."""
    done = run_git(record.root, "fetch", "--quiet", remote, limit_seconds=NETWORK_SECONDS)
    known = run_git(record.root, "config", "--get-all", f"remote.{REMOTE}.fetch").stdout
    if record.branch is not None and known and b"refs/heads/*:" not in known:
        ref = f"+refs/heads/{record.branch}:refs/remotes/{REMOTE}/{record.branch}"
        # It need not be there.
        run_git(record.root, "fetch", "--quiet", REMOTE, ref, limit_seconds=NETWORK_SECONDS)
    return gits_reason(done) or "git gave no reason" if done.returncode else ""


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
