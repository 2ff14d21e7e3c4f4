"""What a user names -> addresses of images: files, folders, patterns, on this machine or at a URL."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath

from pipeline.source import PICTURE_SUFFIXES
from pipeline.storage import find_at_url, is_url
from unet_core.errors import DataError


def find_images(places: Sequence[str], *, outside: Path) -> list[str]:
    """Addresses of images, each once: files that are named, and those below folders and of patterns that are images.

    Nothing below the folder `outside` counts, where results lie. DataError for a place without images.
    """
    found: list[str] = []
    for place in places:
        inside = _find_at_url(place) if is_url(place) else _find_here(place)
        if not inside:
            raise DataError(
                f"no images: {place}. Give image files, folders or patterns with {sorted(PICTURE_SUFFIXES)}."
            )
        found += inside
    images = [address for address in dict.fromkeys(found) if is_url(address) or not _lies_in(address, outside)]
    if not images:
        raise DataError(f"no images: {places[0]}: what is there are results in {outside}. Give image files or folders.")
    return images


def name_results(images: Sequence[str]) -> dict[str, str]:
    """Address -> name of its results: the file's own, or where several have it their paths below the folder that all
    images share. DataError where two images would write one file.
    """
    taken: dict[str, str] = {}
    counts = Counter(PurePosixPath(address).stem for address in images)
    parts = {address: _parts(address) for address in images}
    folders = zip(*(found[:-1] for found in parts.values()), strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, folders))
    for address in images:
        stem = PurePosixPath(address).stem
        name = stem if counts[stem] == 1 else "/".join([*parts[address][shared:-1], stem])
        if name in taken:
            raise DataError(f"two images of one name: {taken[name]} and {address}. Predict them into two folders.")
        taken[name] = address
    return {address: name for name, address in taken.items()}


def _parts(address: str) -> list[str]:
    """Folders and name; a local path from the root on, so that none of them is above the current directory."""
    path = address if is_url(address) else Path(os.path.abspath(address)).as_posix()  # noqa: PTH100  keeps links
    return [part for part in path.split("/") if part not in ("", ".", "..")]


def _find_here(place: str) -> list[str]:
    path = Path(place)
    if path.is_dir():
        return [str(found) for found in sorted(path.rglob("*")) if _is_picture(found.name)]
    if path.exists():
        return [place]
    return [found for found in sorted(glob.glob(place, recursive=True)) if _is_picture(found)]  # noqa: PTH207


def _find_at_url(place: str) -> list[str]:
    found = find_at_url(place)
    return found if found == [place] else [address for address in found if _is_picture(address)]


def _is_picture(address: str) -> bool:
    path = PurePosixPath(address)
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")


def _lies_in(address: str, folder: Path) -> bool:
    return Path(address).resolve().is_relative_to(folder.resolve())
