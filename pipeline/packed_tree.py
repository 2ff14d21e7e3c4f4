"""The working tree as one small zip, which `unet submit` sends: what git tracks and new files that git does not ignore.

Never data and never secrets: data go through the DVC remote, and whoever may list the cluster's jobs may fetch the zip.
Equal trees are equal bytes.
"""

import configparser
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.git_process import apart_from_the_user, ask_git, check_repository, must_git
from pipeline.lineage import SUBMITTED
from pipeline.public_text import holds_secret
from pipeline.secret_files import fits, is_secret_file
from pipeline.storage import is_text, is_url
from unet_core.errors import RecipeError, StorageError

MAX_FILE_BYTES = 5 << 20
#: Ray keeps what it is sent in the memory of the head.
MAX_ZIP_BYTES = 50 << 20
#: Of these folders only what tells DVC and git of data is sent.
DATA_FOLDERS = ("data", "models/final", "plots", "reports", "predictions", "mlruns", "mlartifacts")
ABOUT_DATA = ("*.dvc", ".gitignore")
#: Of tools on this machine; git ignores them, as a rule.
OF_TOOLS = (".git", ".venv", ".dvc/cache", ".dvc/tmp", ".unet")
#: Options of a DVC remote that belong into .dvc/config.local.
SECRET_OPTIONS = re.compile(r"(?<!ask_)password|secret|token|account_key|connection_string|access_key_id|client_id")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What is sent of a working tree, sorted."""

    names: tuple[str, ...]
    new: tuple[str, ...]
    """Those of the names that git does not track."""
    data: tuple[str, ...]
    """Left out, since they are data."""


def find_contents(root: Path, *, source: str) -> Contents:
    """What of the tree is to be sent; `source` is the recipe's, whose files are data.

    StorageError where there is no git, and for what can't be sent: secrets, large files, links. RecipeError for a
    source that the cluster would take for another one.
    """
    check_repository(root)
    untracked = _list(root, "--others", "--exclude-standard")
    found = sorted(_list(root, "--cached") | untracked)
    folder = source_in_tree(root, source)
    folders = [*DATA_FOLDERS, *([] if folder in (None, ".") else [folder])]
    # A file that git tracks and that is gone is not part of the working tree.
    there = [name for name in found if not _is_below(name, OF_TOOLS) and os.path.lexists(root / name)]
    data = [name for name in there if _is_below(name, folders) and not fits(name, ABOUT_DATA)]
    names = [name for name in there if name not in set(data)]
    for name in names:
        _check_file(root, name)
    _check_dvc_config(root, names)
    new = [name for name in names if name in untracked]
    return Contents(names=tuple(names), new=tuple(new), data=tuple(data))


def hash_tree(root: Path, names: Sequence[str]) -> str:
    """Git's hash of a tree of these files; the user's index and objects are not touched."""
    with apart_from_the_user(root) as apart:
        given = b"\0".join(os.fsencode(name) for name in names)
        add = ("--literal-pathspecs", "add", "--force", "--pathspec-from-file=-", "--pathspec-file-nul")
        must_git(root, *add, more=apart, given=given)
        prefix = ask_git(root, "rev-parse", "--show-prefix")
        below = [f"--prefix={prefix}"] if prefix else []
        return os.fsdecode(must_git(root, "write-tree", *below, more=apart)).strip()


def write_zip(root: Path, names: Sequence[str], target: Path, *, submitted: bytes) -> None:
    """Write the files and the record of the submission; StorageError where that is too much to send."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in names:
            is_program = (root / name).stat().st_mode & 0o100
            _add(packed, name, (root / name).read_bytes(), mode=0o755 if is_program else 0o644)
        _add(packed, SUBMITTED.as_posix(), submitted, mode=0o644)
    if (size := target.stat().st_size) > MAX_ZIP_BYTES:
        raise StorageError(
            f"the working tree is too large to send: {size / 2**20:.0f} MB, {MAX_ZIP_BYTES >> 20} MB are allowed. Let "
            "git ignore what is no source, and give data to DVC."
        )


def _add(packed: zipfile.ZipFile, name: str, data: bytes, *, mode: int) -> None:
    # Else the time of the packing would be in it, and the kind of machine.
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 3
    info.external_attr = (0o100000 | mode) << 16
    packed.writestr(info, data, zipfile.ZIP_DEFLATED, 6)


def _check_file(root: Path, name: str) -> None:
    path = root / name
    if "\\" in name or not is_text(name):
        raise StorageError(f"a name that can't be sent: {name!a}. Rename the file.")
    if is_secret_file(name):
        raise StorageError(
            f"a secret would be sent: {name}. Let git ignore it (and remove it from the repository), or rename it if "
            "it holds none; the cluster has its own credentials, as docs/submit.md tells."
        )
    if path.is_symlink():
        raise StorageError(f"a link can't be sent: {name}. Put the file itself there, or let git ignore the link.")
    if not path.is_file():
        raise StorageError(f"not a file: {name}: a repository inside this one can't be sent. Copy its files.")
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise StorageError(
            f"too large to be source: {name}: {size / 2**20:.0f} MB, {MAX_FILE_BYTES >> 20} MB are allowed. Give it to "
            "DVC (`dvc add`), or let git ignore it."
        )


def _check_dvc_config(root: Path, names: Iterable[str]) -> None:
    """What is in .dvc/config goes along, and a key may have been written there by mistake."""
    if ".dvc/config" not in names:
        raise StorageError("no .dvc/config: the cluster gets data through DVC. Run `dvc init`, and add it to git.")
    for section, options in read_dvc_config(root).items():
        for option, value in options.items():
            if SECRET_OPTIONS.search(option) or holds_secret(value):
                raise StorageError(
                    f"a secret would be sent: .dvc/config: {section}: {option}. Move it to .dvc/config.local "
                    "(`dvc remote modify --local`); the cluster has its own credentials, as docs/submit.md tells."
                )


def read_dvc_config(root: Path) -> Mapping[str, Mapping[str, str]]:
    """The sections of .dvc/config: `core`, and `remote "NAME"` for each remote."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string((root / ".dvc" / "config").read_text(encoding="utf-8"))
    except (OSError, ValueError, configparser.Error) as error:
        raise StorageError(f".dvc/config can't be read: {' '.join(str(error).split())}. Correct it.") from error
    return {name.strip("'"): dict(parser[name]) for name in parser.sections()}


def source_in_tree(root: Path, source: str) -> str | None:
    """The source as a folder of the tree, `.` for the whole tree, or None where it lies elsewhere.

    RecipeError for an absolute path into the tree: where the tree lies elsewhere, DVC takes it for another source.
    """
    if is_url(source):
        return None
    path = Path(os.path.abspath(root / source))  # noqa: PTH100  a link to the data is not followed
    # The way to the tree itself may lead over links.
    ways = [way for way in (root, root.resolve()) if path.is_relative_to(way)]
    if not ways:
        return None
    inside = path.relative_to(ways[0]).as_posix()
    if PurePosixPath(source).is_absolute():
        raise RecipeError(
            f"the source is an absolute path into the tree: params.yaml: ingest.source: {source}. The cluster has the "
            f"tree elsewhere, and would write another dvc.lock. Write it relative to the tree: {inside}."
        )
    return inside


def _is_below(name: str, folders: Iterable[str]) -> bool:
    return any(PurePosixPath(name).is_relative_to(folder) for folder in folders)


def _list(root: Path, *options: str) -> set[str]:
    listed = must_git(root, "ls-files", "-z", *options)
    return {os.fsdecode(name) for name in listed.split(b"\0") if name}
