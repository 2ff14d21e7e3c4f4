"""Results of a retraining -> git: a commit on a branch, or a patch file; and what upstream has -> the working tree.

Only what the pipeline writes and git tracks is recorded: dvc.lock, the ledger's .dvc file, metrics, receipt.
"""

import hashlib
import json
import logging
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.placement import environment_for_tools
from pipeline.storage import public
from unet_core.errors import StorageError

log = logging.getLogger(__name__)

REMOTE = "origin"
#: Below .unet/.
PATCH_NAME = "retrain.patch"
#: git waits for ever for a server that has fallen silent, and the lock would keep all later calls away.
NETWORK_SECONDS = 600.0
#: For a machine on which nobody told git who works there.
NOBODY = {"name": "unet retrain", "email": "unet-retrain@localhost"}


@dataclass(frozen=True, kw_only=True)
class Record:
    """Where results go."""

    root: Path
    results: tuple[str, ...]
    """Files and folders of the working tree."""
    branch: str | None
    """None: a patch file."""

    @property
    def patch(self) -> Path:
        """The patch file; written when the results are at DVC's remote, so that it tells of that too."""
        return self.root / ".unet" / PATCH_NAME


def check_name(record: Record) -> None:
    """StorageError where git can't make the branch, whatever there is to record."""
    name = record.branch
    if name is None:
        return
    if name.startswith("-") or _git(record.root, "check-ref-format", "--branch", name).returncode:
        raise StorageError(f"not a name for a branch: {name}. Choose another one.")
    for place in ("refs/heads/", f"refs/remotes/{REMOTE}/"):
        for ref in _ask(record.root, "for-each-ref", "--format=%(refname)", place).splitlines():
            other = ref.removeprefix(place)
            if other.startswith(f"{name}/") or name.startswith(f"{other}/"):
                raise StorageError(
                    f"no room for branch {name}: there is {ref}. Choose another name, or remove that (`git fetch "
                    "--prune` where the server has it no more)."
                )


def check_branch(record: Record) -> None:
    """StorageError where a commit on the branch would lose something, or hold results without their cause."""
    name = record.branch
    if name is None:
        return
    _check_elsewhere(record.root, name)
    changed = _changed_beside(record, ".")
    if changed:
        raise StorageError(
            f"changes that are not committed: {changed.splitlines()[0][3:]}: branch {name} would hold results without "
            "what made them. Commit them, or leave out --branch."
        )
    _check_commits(record, name)


def _check_elsewhere(root: Path, name: str) -> None:
    """StorageError where another working tree is on the branch: git would refuse after the training."""
    listed = _ask(root, "worktree", "list", "--porcelain").split("\n\n")
    elsewhere = [lines[0].removeprefix("worktree ") for lines in map(str.splitlines, listed)
                 if f"branch refs/heads/{name}" in lines]  # fmt: skip
    if elsewhere and _current_branch(root) != name:
        raise StorageError(f"branch {name} is checked out elsewhere: {elsewhere[0]}. Choose another name.")


def _check_commits(record: Record, name: str) -> None:
    refs = [f"refs/remotes/{REMOTE}/{name}"]
    if _current_branch(record.root) != name:
        refs.append(f"refs/heads/{name}")
    for ref in refs:
        if _has(record.root, ref) and not _contains(record.root, "HEAD", ref):
            raise StorageError(
                f"branch {name} has commits that are not in this working tree: {ref}. Merge them here, or choose "
                "another name."
            )


def is_recorded(record: Record) -> bool:
    """Whether git has the results as they are, or the patch file; StorageError where git has no commit."""
    if not _has(record.root, "HEAD"):
        raise StorageError(
            f"no commit yet: {record.root}: git has nothing that results could be compared with. Commit params.yaml, "
            "dvc.yaml and the .dvc files, and call again."
        )
    if record.branch is not None:
        return not _ask(record.root, "status", "--porcelain", "--", *_literal(record.results))
    patch = _make_patch(record)
    return not patch or (record.patch.exists() and record.patch.read_bytes() == patch)


def write_record(record: Record, message: str) -> str:
    """Commit the results on the branch, or write the patch; says where they are."""
    if record.branch is None:
        patch = _make_patch(record)
        record.patch.parent.mkdir(exist_ok=True)
        partial = record.patch.with_suffix(".partial")
        partial.write_bytes(patch)
        partial.replace(record.patch)
        return f"patch {record.patch.relative_to(record.root)}"
    # Once more: while the pipeline ran, somebody may have worked here.
    _check_commits(record, record.branch)
    _switch(record.root, record.branch)
    there = [name for name in record.results if (record.root / name).exists()]
    _must(record.root, "--literal-pathspecs", "add", "--all", "--", *there)
    _must(record.root, "--literal-pathspecs", *_identity(record.root), "commit", "--quiet", "-m", message, "--", *there)
    commit = _ask(record.root, "rev-parse", "--short", "HEAD")
    return f"commit {commit} on branch {record.branch}"


def unpushed_branch(record: Record) -> str | None:
    """The branch, where `origin` is not known to have its newest commit."""
    name = record.branch
    if name is None or _current_branch(record.root) != name or not _has_remote(record.root):
        return None
    there = f"refs/remotes/{REMOTE}/{name}"
    is_there = _has(record.root, there) and _contains(record.root, there, "HEAD")
    # What upstream has already needs no branch.
    upstream = _upstream(record.root)
    return None if is_there or (upstream and _contains(record.root, upstream, "HEAD")) else name


def push_branch(record: Record) -> None:
    """Send the branch to `origin`; never by force."""
    ref = f"refs/heads/{record.branch}"
    _must(record.root, "push", "--quiet", REMOTE, f"{ref}:{ref}", limit_seconds=NETWORK_SECONDS)


def update(record: Record, ledger: Path, tracked_by: Path) -> tuple[bool, list[str]]:
    """Take what upstream has, where that is a fast-forward; whether the tree moved, and what people should know."""
    upstream = _upstream(record.root)
    if upstream is None:
        return False, []
    name = _ask(record.root, "rev-parse", "--abbrev-ref", upstream)
    is_remote = upstream.startswith("refs/remotes/")
    fetch = ("fetch", "--quiet", name.partition("/")[0])
    if is_remote and _git(record.root, *fetch, limit_seconds=NETWORK_SECONDS).returncode:
        return False, _warn(f"{name} can't be fetched: what lies here is used")
    if _contains(record.root, "HEAD", upstream):
        return False, []
    if not _contains(record.root, upstream, "HEAD"):
        return False, _warn(f"{name} and this working tree went apart: merge them by hand; what lies here is used")
    if _changed_beside(record, ":(top)") or not _is_tracked(ledger, tracked_by):
        return False, _warn(f"{name} has new commits, but this working tree has changes: what lies here is used")
    if others := _make_way(record, upstream):
        paths = shlex.join(others)
        return False, _warn(
            f"{name} has other results than this working tree ({paths}): what lies here is used. Commit it there, or "
            f"give it up here: git stash push --include-untracked -- {paths} && dvc checkout"
        )
    _must(record.root, "merge", "--quiet", "--ff-only", upstream)
    log.info("updated to %s", name)
    return True, []


def _changed_beside(record: Record, where: str) -> str:
    """Tracked files that differ from the newest commit, and are no results; as `git status` lists them."""
    apart = [f":(exclude,literal){path}" for path in record.results]
    return _ask(record.root, "status", "--porcelain", "--untracked-files=no", "--", where, *apart)


def _make_way(record: Record, upstream: str) -> list[str]:
    """Let results that are not committed be no hindrance to upstream's commits.

    What upstream has just so, since somebody applied the patch there, is staged, which lets git merge; what upstream
    left alone stays as it is. Those of which upstream has others, between which only people can choose.
    """
    others = []
    results, root = _literal(record.results), record.root
    changed = _ask(root, "diff", "--name-only", "--relative", "-z", "HEAD", "--", *results)
    unknown = _ask(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *results)
    for path in filter(None, f"{changed}{unknown}".split("\0")):
        here = _ask(root, "hash-object", "--", path) if (root / path).is_file() else ""
        there, before = _blob(root, upstream, path), _blob(root, "HEAD", path)
        if here == there:
            if here:
                _must(root, "--literal-pathspecs", "add", "--", path)
        elif there != before:
            others.append(path)
    return others


def _blob(root: Path, commit: str, path: str) -> str:
    """Name of a file's content in a commit; empty where it has no such file."""
    return _git(root, "rev-parse", "--verify", "--quiet", f"{commit}:./{path}").stdout.strip()


def added_samples(root: Path, metrics: Path) -> dict[str, int]:
    """New, changed and removed samples of the batches that the newest commit does not have."""
    path = metrics / "ingest.json"
    try:
        now = json.loads((root / path).read_text(encoding="utf-8"))["batches"]
        before = json.loads(committed_text(root, str(path)) or '{"batches": []}')["batches"]
    except (OSError, ValueError, KeyError):
        return {}
    fresh = now[len(before) :]
    return {word: sum(batch[word] for batch in fresh) for word in ("new", "changed", "removed")} if fresh else {}


def committed_text(root: Path, name: str) -> str | None:
    """A file as the newest commit has it."""
    done = _git(root, "show", f"HEAD:./{name}")
    return None if done.returncode else done.stdout


def _switch(root: Path, branch: str) -> None:
    """Let the working tree be on the branch, which begins here if it is new, and is compared with the same upstream."""
    if _current_branch(root) == branch:
        return
    upstream = _upstream(root)
    _must(root, "branch", "--force", "--no-track", branch, "HEAD")
    if upstream is not None:
        name = _ask(root, "rev-parse", "--abbrev-ref", upstream)
        _must(root, "branch", "--quiet", f"--set-upstream-to={name}", branch)
    _must(root, "switch", "--quiet", branch)


def _make_patch(record: Record) -> bytes:
    """The difference between the newest commit and the results, made without touching the user's index."""
    with tempfile.TemporaryDirectory() as scratch:
        apart = {**environment_for_tools(), "GIT_INDEX_FILE": str(Path(scratch, "index"))}

        def run(*words: str) -> bytes:
            done = subprocess.run(["git", *words], cwd=record.root, env=apart, capture_output=True, check=False)
            if done.returncode:
                raise StorageError(f"git can't compare the results: {done.stderr.decode(errors='replace').strip()}")
            return done.stdout

        run("read-tree", "HEAD")
        there = [name for name in record.results if (record.root / name).exists()]
        run("--literal-pathspecs", "add", "--all", "--", *there)
        options = ("--cached", "--binary", "--full-index", "--no-renames", "--no-ext-diff", "--no-color")
        return run("-c", "diff.noprefix=false", "diff", *options, "HEAD", "--", *_literal(record.results))


def _is_tracked(ledger: Path, tracked_by: Path) -> bool:
    """Whether DVC knows the ledger as it is."""
    if not ledger.exists() or not tracked_by.exists():
        return not ledger.exists()
    return hashlib.md5(ledger.read_bytes(), usedforsecurity=False).hexdigest() in tracked_by.read_text(encoding="utf-8")


def _identity(root: Path) -> list[str]:
    known = _git(root, "config", "user.email").returncode == 0
    return [] if known else [word for key, value in NOBODY.items() for word in ("-c", f"user.{key}={value}")]


def _literal(paths: Sequence[str]) -> list[str]:
    return [f":(literal){path}" for path in paths]


def _current_branch(root: Path) -> str | None:
    done = _git(root, "symbolic-ref", "--quiet", "--short", "HEAD")
    return done.stdout.strip() or None


def _upstream(root: Path) -> str | None:
    """The branch that this one follows, as a full name."""
    done = _git(root, "rev-parse", "--symbolic-full-name", "@{upstream}")
    return None if done.returncode else done.stdout.strip()


def _has(root: Path, ref: str) -> bool:
    return _git(root, "rev-parse", "--verify", "--quiet", ref).returncode == 0


def _has_remote(root: Path) -> bool:
    return _git(root, "remote", "get-url", REMOTE).returncode == 0


def _contains(root: Path, ref: str, other: str) -> bool:
    """Whether `ref` has all commits of `other`."""
    return _git(root, "merge-base", "--is-ancestor", other, ref).returncode == 0


def _warn(text: str) -> list[str]:
    log.warning("%s", text)
    return [text]


def _ask(root: Path, *words: str) -> str:
    # Spaces at the beginning mean something to `status`.
    return _must(root, *words).rstrip("\n")


def _must(root: Path, *words: str, limit_seconds: float | None = None) -> str:
    done = _git(root, *words, limit_seconds=limit_seconds)
    if done.returncode:
        shown = " ".join(word for word in words if not word.startswith("-"))[:60]
        raise StorageError(f"git refused: {shown}: {public(' '.join(done.stderr.split()))[-400:]}")
    return done.stdout


def _git(root: Path, *words: str, limit_seconds: float | None = None) -> "subprocess.CompletedProcess[str]":
    # The user's hooks are for the user's own commits.
    command = ["git", "-c", f"core.hooksPath={os.devnull}", *words]
    try:
        return subprocess.run(
            command,
            cwd=root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=environment_for_tools(),
            timeout=limit_seconds,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {limit_seconds:g} s")
