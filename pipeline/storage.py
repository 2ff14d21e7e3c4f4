"""Addresses -> bytes: files below a folder on this machine, or below any URL that fsspec knows (the door to it)."""

from pathlib import Path

from unet_core.errors import DataError, StorageError
from unet_core.images import FileBytes


def is_url(address: str) -> bool:
    """Whether an address names another place than this machine's disk."""
    return "://" in address


def join(root: str, name: str) -> str:
    """The address of `name` below `root`."""
    return f"{root.rstrip('/')}/{name}" if root else name


def read_file(root: str, name: str) -> FileBytes:
    """Read the file `name` below `root`.

    Raises DataError where there is no such file, StorageError where its place can't be reached.
    """
    address = join(root, name)
    try:
        if is_url(address):
            import fsspec

            with fsspec.open(address, "rb") as stream:
                data = stream.read()
        else:
            data = Path(address).read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"a file is missing: {address}. Restore it, or remove the sample.") from error
    except OSError as error:
        raise StorageError(
            f"a file can't be read: {address}: {error.strerror or error}. Correct its rights, or the address."
        ) from error
    return FileBytes(name=address, data=data)
