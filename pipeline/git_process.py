"""The door to git, which runs as a process of its own: call it, and say why it refused."""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.placement import environment_for_tools
from pipeline.public_text import public
from unet_core.errors import StorageError

#: git waits for ever for a server that has fallen silent, and the caller may hold a lock.
NETWORK_SECONDS = 600.0
#: The user's hooks and signature are for the user's own commits; a warning about line ends is no error.
GIT = (
    *("git", "-c", f"core.hooksPath={os.devnull}", "-c", "commit.gpgsign=false", "-c", "push.gpgsign=false"),
    *("-c", "core.safecrlf=false", "-c", "diff.noprefix=false"),
)
#: A difference as it is, whatever the user's configuration says.
PLAIN_DIFF = ("diff", "--no-renames", "--no-relative", "--submodule=short", "--no-ext-diff", "--no-textconv",
              "--no-color", "--binary", "--full-index")  # fmt: skip
#: Paths are meant as our options say.
PATHS_AS_GIVEN = {f"GIT_{kind}_PATHSPECS": "0" for kind in ("LITERAL", "GLOB", "NOGLOB", "ICASE")}


def run_git(
    root: Path,
    *words: str,
    more: Mapping[str, str] | None = None,
    given: bytes = b"",
    limit_seconds: float | None = None,
) -> "subprocess.CompletedProcess[bytes]":
    """Run a git command in `root`, with `given` as its input and the environment with `more`; it may fail.

    StorageError where git is not installed.
    """
    command = [*GIT, *words]
    try:
        return subprocess.run(
            command,
            cwd=root,
            env={**environment_for_tools(), **PATHS_AS_GIVEN, **(more or {})},
            input=given,
            capture_output=True,
            check=False,
            timeout=limit_seconds,
        )
    except FileNotFoundError as error:
        if not root.is_dir():
            raise StorageError(
                f"no such folder: {root}: git can't work there. Make it, or correct the path."
            ) from error
        raise StorageError("git is not installed: it says what belongs to the working tree. Install it.") from error
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, b"", f"no answer within {limit_seconds:g} s".encode())


def must_git(
    root: Path,
    *words: str,
    more: Mapping[str, str] | None = None,
    given: bytes = b"",
    limit_seconds: float | None = None,
) -> bytes:
    """What a git command printed; StorageError with git's own words where it failed."""
    done = run_git(root, *words, more=more, given=given, limit_seconds=limit_seconds)
    if done.returncode:
        shown = " ".join(word for word in words if not word.startswith(("-", "user.")))[:60]
        raise StorageError(f"git refused: {shown}: {gits_reason(done)}")
    return done.stdout


def ask_git(root: Path, *words: str) -> str:
    """The same as text without the last line's end; bytes that are no UTF-8 are lone surrogates."""
    # Spaces at the beginning mean something to `status`.
    return os.fsdecode(must_git(root, *words)).rstrip("\n")


def gits_reason(done: "subprocess.CompletedProcess[bytes]") -> str:
    """Why a git command failed: a line without secrets."""
    said = (done.stderr or done.stdout).decode(errors="replace")
    return public(" ".join(said.split()))[-400:]


def check_repository(root: Path) -> None:
    """StorageError where git does not read the working tree: there is none, or it is another user's."""
    done = run_git(root, "rev-parse", "--git-dir")
    if done.returncode:
        raise StorageError(f"git can't read the working tree: {root}: {gits_reason(done)}. Run `git init`, or mend it.")


@contextmanager
def apart_from_the_user(root: Path) -> Iterator[dict[str, str]]:
    """Variables with which git reads the repository and writes into an index and a store of objects of their own."""
    objects = ask_git(root, "rev-parse", "--path-format=absolute", "--git-path", "objects")
    with tempfile.TemporaryDirectory() as scratch:
        yield {
            "GIT_INDEX_FILE": str(Path(scratch, "index")),
            "GIT_OBJECT_DIRECTORY": scratch,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects,
        }


def current_branch(root: Path) -> str | None:
    """The branch that the working tree is on; None where HEAD is detached."""
    return _said(root, "symbolic-ref", "--quiet", "--short", "HEAD")


def find_upstream(root: Path) -> str | None:
    """The branch that this one follows, as a full name."""
    return _said(root, "rev-parse", "--symbolic-full-name", "@{upstream}")


def has_ref(root: Path, ref: str) -> bool:
    """Whether there is such a branch or commit."""
    return _said(root, "rev-parse", "--verify", "--quiet", ref) is not None


def contains(root: Path, ref: str, other: str) -> bool:
    """Whether `ref` has all commits of `other`."""
    return run_git(root, "merge-base", "--is-ancestor", other, ref).returncode == 0


def _said(root: Path, *words: str) -> str | None:
    done = run_git(root, *words)
    return None if done.returncode else os.fsdecode(done.stdout).strip()
