"""Results of a retraining -> git: a commit on a branch, or a patch file.

Only what the pipeline writes and git tracks is recorded: dvc.lock, the ledger's .dvc file, metrics, receipt.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.git_process import (
    NETWORK_SECONDS,
    PLAIN_DIFF,
    apart_from_the_user,
    ask_git,
    check_repository,
    contains,
    current_branch,
    find_upstream,
    has_ref,
    must_git,
    run_git,
)
from pipeline.whole_file import write_whole
from unet_core.errors import StorageError

REMOTE = "origin"
#: Below .unet/.
PATCH_NAME = "retrain.patch"
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
    if name.startswith("-") or run_git(record.root, "check-ref-format", "--branch", name).returncode:
        raise StorageError(f"not a name for a branch: {name}. Choose another one.")
    for place in ("refs/heads/", f"refs/remotes/{REMOTE}/"):
        for ref in ask_git(record.root, "for-each-ref", "--format=%(refname)", place).splitlines():
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
    changed = changed_beside(record, ".")
    if changed:
        raise StorageError(
            f"changes that are not committed: {changed.splitlines()[0][3:]}: branch {name} would hold results without "
            "what made them. Commit them, or leave out --branch."
        )
    _check_commits(record, name)


def _check_elsewhere(root: Path, name: str) -> None:
    """StorageError where another working tree is on the branch: git would refuse after the training."""
    listed = ask_git(root, "worktree", "list", "--porcelain").split("\n\n")
    elsewhere = [lines[0].removeprefix("worktree ") for lines in map(str.splitlines, listed)
                 if f"branch refs/heads/{name}" in lines]  # fmt: skip
    if elsewhere and current_branch(root) != name:
        raise StorageError(f"branch {name} is checked out elsewhere: {elsewhere[0]}. Choose another name.")


def _check_commits(record: Record, name: str) -> None:
    refs = [f"refs/remotes/{REMOTE}/{name}"]
    if current_branch(record.root) != name:
        refs.append(f"refs/heads/{name}")
    for ref in refs:
        if has_ref(record.root, ref) and not contains(record.root, "HEAD", ref):
            raise StorageError(
                f"branch {name} has commits that are not in this working tree: {ref}. Merge them here, or choose "
                "another name."
            )


def is_recorded(record: Record) -> bool:
    """Whether git has the results as they are, or the patch file; StorageError where git has no commit."""
    check_repository(record.root)
    if not has_ref(record.root, "HEAD"):
        raise StorageError(
            f"no commit yet: {record.root}: git has nothing that results could be compared with. Commit params.yaml, "
            "dvc.yaml and the .dvc files, and call again."
        )
    if record.branch is not None:
        return not ask_git(
            record.root, "status", "--porcelain", "--untracked-files=all", "--", *literal_paths(record.results)
        )
    patch = _make_patch(record)
    return not patch or (record.patch.exists() and record.patch.read_bytes() == patch)


def drop_patch(record: Record) -> None:
    """Remove a patch file of results that git has since: nobody could apply it."""
    if record.branch is not None or not _make_patch(record):
        record.patch.unlink(missing_ok=True)


def write_record(record: Record, message: str) -> str:
    """Commit the results on the branch, or write the patch; says where they are."""
    if record.branch is None:
        patch = _make_patch(record)
        write_whole(record.patch, patch)
        return f"patch {record.patch.relative_to(record.root)}"
    # Once more: while the pipeline ran, somebody may have worked here.
    _check_commits(record, record.branch)
    _switch(record.root, record.branch)
    known = [name for name in record.results if _is_known(record.root, name)]
    must_git(record.root, "--literal-pathspecs", "add", "--all", "--", *known)
    identity = say_who(record.root)
    must_git(record.root, "--literal-pathspecs", *identity, "commit", "--quiet", "-m", message, "--", *known)
    commit = ask_git(record.root, "rev-parse", "--short", "HEAD")
    return f"commit {commit} on branch {record.branch}"


def unpushed_branch(record: Record) -> str | None:
    """The branch, where `origin` is not known to have its newest commit."""
    name = record.branch
    if name is None or current_branch(record.root) != name or not _has_origin(record.root):
        return None
    there = f"refs/remotes/{REMOTE}/{name}"
    is_there = has_ref(record.root, there) and contains(record.root, there, "HEAD")
    # What upstream has already needs no branch.
    upstream = find_upstream(record.root)
    return None if is_there or (upstream and contains(record.root, upstream, "HEAD")) else name


def push_branch(record: Record) -> None:
    """Send the branch to `origin`; never by force."""
    ref = f"refs/heads/{record.branch}"
    must_git(record.root, "push", "--quiet", REMOTE, f"{ref}:{ref}", limit_seconds=NETWORK_SECONDS)
    # In a clone of one branch git itself would not note where `origin` has this one.
    must_git(record.root, "update-ref", f"refs/remotes/{REMOTE}/{record.branch}", ref)


def changed_beside(record: Record, where: str) -> str:
    """Tracked files that differ from the newest commit, and are no results; as `git status` lists them."""
    apart = [f":(exclude,literal){path}" for path in record.results]
    return ask_git(record.root, "status", "--porcelain", "--untracked-files=no", "--", where, *apart)


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
    done = run_git(root, "show", f"HEAD:./{name}")
    return None if done.returncode else done.stdout.decode(errors="replace")


def _switch(root: Path, branch: str) -> None:
    """Let the working tree be on the branch, which begins here if it is new, and is compared with the same upstream."""
    if current_branch(root) == branch:
        return
    upstream = find_upstream(root)
    must_git(root, "branch", "--force", "--no-track", branch, "HEAD")
    if upstream is not None:
        name = ask_git(root, "rev-parse", "--abbrev-ref", upstream)
        must_git(root, "branch", "--quiet", f"--set-upstream-to={name}", branch)
    must_git(root, "switch", "--quiet", branch)


def _make_patch(record: Record) -> bytes:
    """The difference between the newest commit and the results."""
    with apart_from_the_user(record.root) as apart:
        must_git(record.root, "read-tree", "HEAD", more=apart)
        known = [name for name in record.results if _is_known(record.root, name)]
        must_git(record.root, "--literal-pathspecs", "add", "--all", "--", *known, more=apart)
        results = literal_paths(record.results)
        return must_git(record.root, *PLAIN_DIFF, "--cached", "HEAD", "--", *results, more=apart)


def _is_known(root: Path, name: str) -> bool:
    """Whether there is something to record: a result that lies here, or one that was removed."""
    return (root / name).exists() or bool(ask_git(root, "--literal-pathspecs", "ls-files", "--", name))


def say_who(root: Path) -> list[str]:
    """Options for a git that does not know who works here."""
    unknown = [key for key in NOBODY if run_git(root, "config", f"user.{key}").returncode]
    return [word for key in unknown for word in ("-c", f"user.{key}={NOBODY[key]}")]


def literal_paths(paths: Sequence[str]) -> list[str]:
    """As git takes them, though they hold its wildcards."""
    return [f":(literal){path}" for path in paths]


def _has_origin(root: Path) -> bool:
    return run_git(root, "remote", "get-url", REMOTE).returncode == 0
