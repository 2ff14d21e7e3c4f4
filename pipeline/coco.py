"""COCO annotations: one JSON file for many images -> pairs, and each image's annotations as bytes of their own.

An image's annotations are `FILE.json#ID`, with the image's id. Their bytes are canonical JSON, so that they are hashed,
compared and decoded as a mask file's bytes are:
{"annotations": [{"category": NAME, "iscrowd": 0 or 1, "segmentation": ...}], "height": ..., "width": ...}
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from threading import Lock
from typing import Any

from pipeline.source import IngestConfig, Pair, and_more
from pipeline.storage import join, read_file, version_of
from unet_core.errors import DataError
from unet_core.images import FileBytes

REFERENCE = re.compile(r"(.+\.json)#(-?\d+)", re.IGNORECASE)
#: Validation reads many samples at once; without this each thread would parse the file.
_parsing = Lock()


@dataclass(frozen=True, kw_only=True)
class CocoImage:
    """One image of the file and what is drawn on it."""

    file_name: str
    body: Mapping[str, Any]


def read_annotations(source: str, name: str, image_id: int) -> FileBytes:
    """The canonical bytes of one image's annotations; DataError if the file has no such image."""
    address = join(source, name)
    found = _parsed(source, name).get(image_id)
    if found is None:
        raise DataError(f"no such image in a COCO file: {address}: id {image_id}. Restore it, or remove the sample.")
    text = json.dumps(found.body, sort_keys=True, separators=(",", ":"))
    return FileBytes(name=f"{address}#{image_id}", data=text.encode())


def find_in_coco(source: str, names: Collection[str], config: IngestConfig) -> list[Pair]:
    """A pair for each image that the file lists; DataError for one that is not in the source."""
    assert config.coco is not None
    address = join(source, config.coco)
    known = set(names)
    pairs: dict[str, Pair] = {}
    missing = []
    for image_id, found in _parsed(source, config.coco).items():
        image = join(config.coco_images.strip("/"), found.file_name)
        if image.startswith("/") or ".." in image.split("/"):
            raise DataError(f"a path out of the source: {address}: image {image_id}: {image}. Write it relative to it.")
        if image not in known:
            missing.append(image)
        key = PurePosixPath(image).stem
        if key in pairs:
            raise DataError(
                f"two images for one sample: {address}: {key}: {pairs[key].image} and {image}. Rename one of them."
            )
        pairs[key] = Pair(key=key, image=image, masks=(f"{config.coco}#{image_id}",))
    if missing:
        raise DataError(
            f"image of a COCO file is missing: {join(source, missing[0])}{and_more(missing)}, named in {address}. "
            "Restore it, or correct ingest.coco_images."
        )
    if not pairs:
        raise DataError(f"no images: {address} lists none. Correct ingest.coco.")
    return [pairs[key] for key in sorted(pairs)]


def _parsed(source: str, name: str) -> Mapping[int, CocoImage]:
    """The file's images by id; a large file is parsed once in a process."""
    with _parsing:
        return _parse(source, name, version_of(source, name))


@lru_cache(maxsize=2)
def _parse(source: str, name: str, version: str) -> Mapping[int, CocoImage]:  # noqa: ARG001 a part of the cache's key
    address = join(source, name)
    try:
        body = json.loads(read_file(source, name).data, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"COCO file is no JSON: {address}: {error}. Export it again.") from error
    categories: dict[int, str] = {}
    for entry in _get(body, "categories", address, "file", list):
        category = _get(entry, "id", address, "categories", int)
        if category in categories:
            raise DataError(f"two categories of one id: {address}: {category}. Export it again.")
        categories[category] = _get(entry, "name", address, "categories", str)
    drawn: dict[int, list[dict[str, Any]]] = {}
    images: dict[int, CocoImage] = {}
    for entry in _get(body, "images", address, "file", list):
        image_id = _get(entry, "id", address, "images", int)
        if image_id in images:
            raise DataError(f"two images of one id: {address}: {image_id}. Export it again.")
        drawn[image_id] = []
        size = {side: _get(entry, side, address, f"image {image_id}", int) for side in ("height", "width")}
        file_name = _get(entry, "file_name", address, f"image {image_id}", str)
        images[image_id] = CocoImage(file_name=file_name, body={**size, "annotations": drawn[image_id]})
    seen: set[int] = set()
    for number, entry in enumerate(_get(body, "annotations", address, "file", list)):
        where = f"annotation {entry.get('id', number) if isinstance(entry, dict) else number}"
        if isinstance(entry, dict) and "id" in entry:
            annotation = _get(entry, "id", address, where, int)
            if annotation in seen:
                raise DataError(f"two annotations of one id: {address}: {annotation}. Export it again.")
            seen.add(annotation)
        image_id = _get(entry, "image_id", address, where, int)
        category = _get(entry, "category_id", address, where, int)
        if image_id not in images or category not in categories:
            unknown = f"image {image_id}" if image_id not in images else f"category {category}"
            raise DataError(f"COCO file names what it does not have: {address}: {where}: {unknown}. Export it again.")
        drawn[image_id].append(
            {
                "category": categories[category],
                "iscrowd": _get({"iscrowd": 0, **entry}, "iscrowd", address, where, int),
                "segmentation": _get(entry, "segmentation", address, where, list, dict),
            }
        )
    return images


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose names all differ; Python would take the last of two in silence."""
    body = dict(pairs)
    if len(body) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object with two {next(name for name in names if names.count(name) > 1)!r}")
    return body


def _get(entry: Any, name: str, address: str, where: str, *kinds: type) -> Any:
    """A field of the file, or DataError that names it."""
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kinds) or isinstance(value, bool):
        words = {int: "a whole number", str: "a text", list: "a list", dict: "an object"}
        expected = " or ".join(words[kind] for kind in kinds)
        got = "nothing" if value is None else type(value).__name__
        raise DataError(
            f"COCO file is incomplete: {address}: {where}: {name}: expected {expected}, got {got}. Export it again."
        )
    return value
