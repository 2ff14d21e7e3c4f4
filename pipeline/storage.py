"""Addresses -> bytes: files below a folder on this machine, or below any URL that fsspec knows (the door to it)."""

import io
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pipeline.placement import read_s3_endpoint
from pipeline.public_text import public
from unet_core.errors import DataError, StorageError
from unet_core.images import FileBytes

Result = TypeVar("Result")

PIECE_BYTES = 8 << 20
#: How long a place may be away before that becomes an error.
PATIENCE_SECONDS = 120.0
#: Between two tries.
RETRY_SECONDS = 1.0
#: What to do about a source's file that is not there.
RESTORE = "Restore it, or remove the sample."


def is_url(address: str) -> bool:
    """Whether an address names another place than this machine's disk."""
    return "://" in address


def join(root: str, name: str) -> str:
    """The address of `name` below `root`."""
    return f"{root.rstrip('/')}/{name}" if root else name


def read_file(root: str, name: str, *, missing: str = RESTORE) -> FileBytes:
    """Read the file `name` below `root`; `missing` tells people what to do where there is none.

    Raises DataError where there is no such file, StorageError where its place can't be reached.
    """
    address = join(root, name)
    with _foreseen(address, missing=missing):
        if is_url(root):
            system, base = _file_system(root)
            return FileBytes(name=address, data=system.cat_file(join(base, name)))
        return FileBytes(name=address, data=Path(address).read_bytes())


def read_pieces(root: str, name: str, *, missing: str) -> Iterator[bytes]:
    """The bytes of the file `name` below `root`, a few megabytes at a time; errors as read_file's."""
    with _foreseen(join(root, name), missing=missing):
        system, base = _file_system(root)
        with system.open(join(base, name), "rb", block_size=PIECE_BYTES, cache_type="readahead") as stream:
            while piece := stream.read(PIECE_BYTES):
                yield piece


def fetch_file(root: str, name: str, target: Path, *, missing: str) -> None:
    """Copy the file `name` below `root` to this machine; errors as read_file's."""
    with _foreseen(join(root, name), missing=missing):
        system, base = _file_system(root)
        system.get_file(join(base, name), str(target))


def store_file(source: Path, root: str, name: str) -> None:
    """Copy a file of this machine to `name` below `root`; StorageError where that can't be written."""
    address = join(root, name)
    try:
        with _foreseen(address):
            system, base = _file_system(root)
            if "file" in system.protocol:
                # Elsewhere there are no folders to be made.
                Path(base, name).parent.mkdir(parents=True, exist_ok=True)
            system.put_file(str(source), join(base, name))
    except DataError as error:
        raise StorageError(
            f"a place can't be written: {public(address)}: there is no such bucket. Make it, or correct the address."
        ) from error


def names_below(root: str) -> list[str]:
    """Names of all files below a folder or a URL, sorted; none where nothing is there."""
    with _foreseen(root):
        system, base = _file_system(root)
        system.invalidate_cache()
        try:
            found = [str(path).removeprefix(base).lstrip("/") for path in system.find(base)]
        except FileNotFoundError:
            return []
        # Some stores name the place itself, once it had files.
        return sorted(name for name in found if name)


def remove_all(root: str) -> None:
    """Remove a folder, or all below a URL; that nothing is there is no error."""
    with _foreseen(root):
        system, base = _file_system(root)
        system.invalidate_cache()
        try:
            system.rm(base, recursive=True)
        except FileNotFoundError:
            return


def patiently(call: Callable[[], Result]) -> Result:
    """Call, and again while a place is away: StorageError after PATIENCE_SECONDS."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return call()
        except StorageError:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)


def address_in_dvc_remote(path: Path) -> str:
    """URL that a result of DVC has (or will have, once it is pushed) in the default remote: of a folder, its list.

    StorageError where DVC has no remote, none that is read by hashes alone, or does not have the path on record.
    """
    # Seconds, for the few who need it.
    import dvc.api
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            remote = repo.config["core"].get("remote")
            if remote:
                _check_remote(remote, repo.config["remote"][remote])
        # Without a remote, DVC would give the address in its cache, which only this host has.
        address = str(dvc.api.get_url(path.as_posix())) if remote else ""
    except (DvcException, KeyError, OSError) as error:
        raise StorageError(
            f"DVC has no address for {path}: {public(str(error))}. Run `dvc repro`, then `dvc push {path}`."
        ) from error
    if not remote:
        raise StorageError(
            "DVC has no default remote, from which workers could read: `dvc remote add --default store "
            "s3://bucket/dvc`, then `dvc push`."
        )
    return address if is_url(address) else f"file://{address}"


def _check_remote(name: str, options: Mapping[str, Any]) -> None:
    """StorageError where DVC reads its remote by more than an address and a hash, which is all that hosts get."""
    for option in ("version_aware", "worktree"):
        if options.get(option):
            raise StorageError(
                f"DVC's remote {name} names no files by their hashes: {option} is set. Workers can't read there: make "
                "another remote without it the default, or set UNET_SHARDS to a URL."
            )
    endpoint = options.get("endpointurl")
    if endpoint and not read_s3_endpoint():
        raise StorageError(
            f"DVC's remote {name} has an endpoint of its own, which the environment lacks: {public(endpoint)}. Set "
            "AWS_ENDPOINT_URL to it, here and for Ray's processes on all hosts."
        )


@contextmanager
def open_file(root: str, name: str) -> Iterator[BinaryIO]:
    """A stream of the file's bytes: whoever needs only a header of a local file reads no more than that."""
    if is_url(root):
        yield io.BytesIO(read_file(root, name).data)
    else:
        with _foreseen(join(root, name)):
            stream = Path(root, name).open("rb")  # noqa: SIM115 what the caller raises while reading is no error of ours
        with stream:
            yield stream


def split_address(address: str) -> tuple[str, str]:
    """Root and name, as the functions here take them, of one file's address."""
    root, _, name = address.rpartition("/")
    return (root, name) if is_url(address) else ("", address)


def find_at_url(address: str) -> list[str]:
    """Addresses of the files that a URL names, sorted: the file itself, all below a folder, or those of a pattern.

    Patterns have * and [; a question mark begins a URL's query. Nothing there is an empty list; StorageError where the
    place can't be reached.
    """
    with _foreseen(address):
        system, base = _file_system(address)
        # A listing that this process keeps from before would hide what has come since.
        system.invalidate_cache()
        if "*" in base or "[" in base:
            found = system.glob(base)
        elif system.isfile(base):
            return [address]
        else:
            found = system.find(base)
        return sorted(system.unstrip_protocol(path) for path in found)


def version_of(root: str, name: str) -> str:
    """What changes when a local file does. A file at a URL is taken to stay as it is while a process runs."""
    if is_url(root):
        return ""
    with _foreseen(join(root, name)):
        found = Path(root, name).stat()
    return f"{found.st_mtime_ns} {found.st_size}"


def version_at(address: str) -> str:
    """What changes when a file does: of a URL what its store tells (ETag, size, times); errors as read_file's."""
    root, name = split_address(address)
    if not is_url(address):
        return version_of(root, name)
    with _foreseen(address):
        system, base = _file_system(root)
        path = join(base, name)
        if "https" in system.protocol:
            # The checksum would take in where a redirect leads to, which may be signed anew each time.
            return str(sorted((key, value) for key, value in system.info(path).items() if key != "url"))
        return str(system.checksum(path))


def list_files(root: str, *, follow_links: bool = False) -> list[str]:
    """Names of all files below `root`, sorted; a hidden folder counts as one entry that ends in a slash.

    Raises DataError for a missing root and for a symbolic link that leads out of it (unless `follow_links`),
    StorageError where the place can't be reached.
    """
    names = _list_url(root) if is_url(root) else _list_folder(root, follow_links=follow_links)
    try:
        "\n".join(names).encode()
    except UnicodeEncodeError:
        (wrong, *_) = (name for name in names if not is_text(name))
        raise DataError(f"a name that is no UTF-8: {root}: {wrong!a}. Rename the file.") from None
    return sorted(names)


def is_text(name: str) -> bool:
    """Whether a file's name is UTF-8."""
    return name == name.encode(errors="replace").decode()


def _list_folder(root: str, *, follow_links: bool) -> list[str]:
    if not Path(root).is_dir():
        raise DataError(f"no such folder: {root}. Correct ingest.source in params.yaml, or restore the data.")
    top = os.path.realpath(root)
    names: list[str] = []
    # Beside each folder the real folders above it: a link back to one of them would never end.
    waiting: list[tuple[str, tuple[str, ...]]] = [("", (top,))]
    while waiting:
        prefix, above = waiting.pop()
        with _foreseen(join(root, prefix)), os.scandir(Path(root, prefix)) as entries:
            for entry in entries:
                name = prefix + entry.name
                real = _real_path(entry, top, root, name, follow_links=follow_links) if entry.is_symlink() else None
                if not entry.is_dir():
                    if not entry.is_file() and Path(entry.path).exists():
                        raise DataError(f"not a file: {join(root, name)}: a pipe, socket or device. Remove it.")
                    names.append(name)
                elif entry.name.startswith("."):
                    names.append(name + "/")
                elif real is None:
                    waiting.append((name + "/", (*above, f"{above[-1]}/{entry.name}")))
                elif real not in above:
                    waiting.append((name + "/", (*above, real)))
    return names


def _real_path(entry: "os.DirEntry[str]", top: str, root: str, name: str, *, follow_links: bool) -> str:
    real = os.path.realpath(entry.path)
    if not follow_links and real != top and not real.startswith(top.rstrip("/") + "/"):
        raise DataError(
            f"a link leads out of the source: {join(root, name)} -> {real}. "
            "Put the file itself there, or allow such links with ingest.follow_links: true."
        )
    return real


def _list_url(root: str) -> list[str]:
    with _foreseen(root):
        system, base = _file_system(root)
        # A listing that this process keeps from before would hide what has come since.
        system.invalidate_cache()
        found = [path.removeprefix(base).lstrip("/") for path in system.find(base)]
    names: dict[str, None] = {}
    for name in found:
        hidden = re.match(r"(?:[^/]+/)*?\.[^/]*/", name)
        names[hidden.group() if hidden else name] = None
    kept = [name for name in names if name and (not name.endswith("/") or "/." in f"/{name}")]
    if not kept:
        raise DataError(f"no such folder: {public(root)}. Correct ingest.source in params.yaml, or restore the data.")
    return kept


@lru_cache(maxsize=64)
def _file_system(root: str) -> tuple[Any, str]:
    """The file system of a URL and the path of `root` in it."""
    from fsspec.core import url_to_fs

    system, base = url_to_fs(root)
    return system, str(base).rstrip("/")


@contextmanager
def _foreseen(address: str, *, missing: str = RESTORE) -> Iterator[None]:
    """What can go wrong with an address, told in a sentence."""
    try:
        yield
    except (DataError, StorageError):
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"a file is missing: {public(address)}. {missing}") from error
    except OSError as error:
        reason = error.strerror or public(str(error))
        raise StorageError(
            f"a file can't be read: {public(address)}: {reason}. Correct its rights, or the address."
        ) from error
    except Exception as error:
        if not is_url(address):
            raise
        # Every kind of store raises errors of its own: no reader installed, no route, no credentials.
        raise StorageError(
            f"a place can't be reached: {public(address)}: {public(str(error)) or type(error).__name__}. "
            "Correct the address, the store's endpoint (AWS_ENDPOINT_URL for S3) or the credentials in the environment."
        ) from error
