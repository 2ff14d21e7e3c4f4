"""Where training workers find their shards: on the driver's disk, below a URL, or in DVC's remote.

The driver looks the places up and hands them to the workers together with the index, so that a host needs neither.
"""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline import storage
from pipeline.lineage import data_state
from pipeline.placement import DVC_REMOTE, Placement
from pipeline.public_text import public
from unet_core.cache import CachedShards
from unet_core.errors import DataError, StorageError, TrainingError
from unet_core.index import INDEX_NAME, ShardIndex, sidecar_name

#: What to do about a shard that is not in its remote place.
COPY_AGAIN = "Copy data/shards there again, or correct UNET_SHARDS."
PUSH_AGAIN = "Run `dvc push data/shards` where the shards are, or unset UNET_SHARDS."


@dataclass(frozen=True, kw_only=True)
class ShardPlaces:
    """Where the shards of one index lie."""

    folder: Path
    """The driver's own, absolute."""
    index_sha256: str
    """Of its index."""
    url: str | None
    """Below which a copy lies; None: all hosts see the folder."""
    objects: Mapping[str, str] | None
    """File of a shard -> its name below the URL, in DVC's remote; None: the same name."""
    cache_dir: str
    cache_gb: float

    @property
    def is_remote_of_dvc(self) -> bool:
        """Whether files are named by their hashes there."""
        return self.objects is not None


def find_shards(shards: Path, index: ShardIndex, placement: Placement) -> ShardPlaces:
    """Look up, on the driver, from where workers can read; an error at once where they would try for minutes."""
    url, objects = placement.shards, None
    if url == DVC_REMOTE:
        url, objects = _find_objects(shards)
    elif url is not None:
        _check_copy(index, shards, url)
    return ShardPlaces(
        folder=shards.resolve(),
        index_sha256=data_state(shards)["data.index_sha256"],
        url=url,
        objects=objects,
        cache_dir=placement.cache_dir,
        cache_gb=placement.cache_gb,
    )


@contextmanager
def open_shards(places: ShardPlaces) -> Iterator[Path | CachedShards]:
    """The shards on this host: the driver's folder, or what is fetched through the host's cache."""
    is_here = _is_here(places)
    if is_here and (places.url is None or places.is_remote_of_dvc):
        # To fetch what lies there would only take room. A copy that the user made has its reasons: it may be nearer.
        yield places.folder
        return
    if places.url is None:
        raise TrainingError(
            f"{platform.node()} does not have the shards that the training began with: {places.folder}. Let it see the "
            f"driver's folder as it was, or set UNET_SHARDS to a URL, or to {DVC_REMOTE} after `dvc push`."
        )
    directory = Path(places.cache_dir).expanduser()
    remote = _Remote(places.url, places.objects)
    with CachedShards(
        directory, limit_bytes=int(places.cache_gb * 1e9), fetch=remote.fetch, mend=remote.mend
    ) as cached:
        yield cached


@dataclass(frozen=True)
class _Remote:
    """A place beyond this host's disk."""

    url: str
    objects: Mapping[str, str] | None

    def fetch(self, name: str) -> Iterator[bytes]:
        """A file of a shard in pieces."""
        if self.objects is None:
            return storage.read_pieces(self.url, name, missing=COPY_AGAIN)
        if name not in self.objects:
            raise DataError(f"a shard is not in DVC's remote: {name}. {PUSH_AGAIN}")
        return storage.read_pieces(self.url, self.objects[name], missing=PUSH_AGAIN)

    def mend(self, name: str) -> str:
        """What to do about a file that is another one there."""
        if self.objects is None:
            return COPY_AGAIN
        # `dvc push` goes by names, and passes over what is damaged.
        return f"Remove {public(storage.join(self.url, self.objects[name]))}, and run `dvc push data/shards`."


def _is_here(places: ShardPlaces) -> bool:
    """Whether this host sees the driver's folder, in the state of the training's begin."""
    if not (places.folder / INDEX_NAME).is_file():
        return False
    return data_state(places.folder)["data.index_sha256"] == places.index_sha256


def _check_copy(index: ShardIndex, shards: Path, url: str) -> None:
    """Look at the first shard's sidecar there."""
    name = sidecar_name(index.shards[0].name)
    if storage.read_file(url, name, missing=COPY_AGAIN).data != (shards / name).read_bytes():
        raise TrainingError(
            f"UNET_SHARDS holds other shards: {name} there is not the one in {shards}. Copy {shards} there again."
        )


def _find_objects(shards: Path) -> tuple[str, dict[str, str]]:
    """The URL of DVC's remote, and the names that the files of shards have below it.

    DVC lists a folder's files in an object of its own, which it pushes after all of them.
    """
    address = storage.address_in_dvc_remote(shards)
    # .../files/md5/ab/cdef0123.dir
    url, _, name = address.rpartition("/")
    url, _, start = url.rpartition("/")
    listed = storage.read_file(url, f"{start}/{name}", missing=PUSH_AGAIN).data
    hashes = parse_listing(listed, where=address)
    of_index = hashlib.md5((shards / INDEX_NAME).read_bytes(), usedforsecurity=False).hexdigest()
    if hashes.get(INDEX_NAME) != of_index:
        raise StorageError(
            f"DVC has other shards on record than those in {shards}. Run `dvc commit shard` or `dvc repro shard`, then "
            f"`dvc push {shards}`."
        )
    return url, {file: f"{md5[:2]}/{md5[2:]}" for file, md5 in hashes.items()}


def parse_listing(listed: bytes, *, where: str) -> dict[str, str]:
    """File -> md5, from the object in which DVC lists a folder; DataError where it is damaged."""
    try:
        return {str(entry["relpath"]): str(entry["md5"]) for entry in json.loads(listed)}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"DVC's list of a folder is damaged: {public(where)}: {error!r}. Remove it there, and run "
            "`dvc push data/shards`."
        ) from error
