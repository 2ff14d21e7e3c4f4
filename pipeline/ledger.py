"""The arrivals ledger: which sample came when, with the hashes of its files. Data arrive by an explicit act.

A text file, one JSON object a line, only ever appended to; DVC tracks it, since it may grow large.
"""

import dataclasses
import json
import logging
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.progress import progress
from pipeline.references import hash_image, hash_masks, read_reference
from pipeline.source import Pair
from pipeline.whole_file import write_whole
from unet_core.decode import measure
from unet_core.errors import DataError
from unet_core.images import FileBytes

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One line: a sample arrived, changed or was removed."""

    batch: int
    key: str
    image: str
    masks: tuple[str, ...]
    image_sha256: str
    mask_sha256: str
    """Hash of the hashes of all masks."""
    pixels: int = 0
    """Width x height of the image when this line was written; 0 if its header could not be read."""
    removed: bool = False


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a look at the source finds beside the ledger."""

    new: tuple[Arrival, ...]
    changed: tuple[Arrival, ...]
    missing: tuple[Arrival, ...]


def read_ledger(path: Path) -> list[Arrival]:
    """All lines; DataError where there is no ledger or a line is damaged."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"ledger is damaged: {path}: {error}. Run `dvc checkout`.") from error
    except FileNotFoundError as error:
        raise DataError(
            f"no ledger of arrivals: {path}. Run `dvc pull` if a colleague recorded the data, or `unet add`."
        ) from error
    arrivals = []
    for number, line in enumerate(lines, start=1):
        try:
            body = json.loads(line)
            arrivals.append(Arrival(**{**body, "masks": tuple(body["masks"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"ledger is damaged: {path}: line {number}: {error}. Run `dvc checkout`.") from error
    return arrivals


def present(arrivals: Iterable[Arrival]) -> dict[str, Arrival]:
    """What is there now, by key. A changed sample keeps the batch in which it first came."""
    now: dict[str, Arrival] = {}
    for arrival in arrivals:
        if arrival.removed:
            now.pop(arrival.key, None)
        elif arrival.key in now:
            now[arrival.key] = dataclasses.replace(arrival, batch=now[arrival.key].batch)
        else:
            now[arrival.key] = arrival
    return now


def batch_pixels(arrivals: Iterable[Arrival]) -> dict[int, int]:
    """Pixels of all samples that first came in each batch. Later changes and removals leave a batch's number alone."""
    now: set[str] = set()
    pixels: dict[int, int] = {}
    for arrival in arrivals:
        if arrival.removed:
            now.discard(arrival.key)
        elif arrival.key not in now:
            now.add(arrival.key)
            pixels[arrival.batch] = pixels.get(arrival.batch, 0) + arrival.pixels
    return pixels


def count_batches(arrivals: Iterable[Arrival]) -> list[dict[str, int]]:
    """What each batch brought: new, changed and removed samples, in order."""
    now: set[str] = set()
    batches: dict[int, dict[str, int]] = {}
    for arrival in arrivals:
        counts = batches.setdefault(arrival.batch, {"batch": arrival.batch, "new": 0, "changed": 0, "removed": 0})
        if arrival.removed:
            counts["removed"] += 1
            now.discard(arrival.key)
        else:
            counts["changed" if arrival.key in now else "new"] += 1
            now.add(arrival.key)
    return list(batches.values())


def compare(arrivals: Sequence[Arrival], pairs: Sequence[Pair], source: str) -> Changes:
    """What a new batch would record."""
    batch = 1 + max((arrival.batch for arrival in arrivals), default=0)
    now = present(arrivals)
    seen = hash_pairs(pairs, source, batch)
    keys = {pair.key for pair in pairs}
    return Changes(
        new=tuple(arrival for arrival in seen if arrival.key not in now),
        changed=tuple(arrival for arrival in seen if arrival.key in now and not same_files(arrival, now[arrival.key])),
        missing=tuple(
            dataclasses.replace(old, batch=batch, removed=True) for key, old in now.items() if key not in keys
        ),
    )


def same_files(one: Arrival, other: Arrival) -> bool:
    """Whether two lines speak of equal bytes."""
    return (one.image_sha256, one.mask_sha256) == (other.image_sha256, other.mask_sha256)


def hash_pairs(pairs: Sequence[Pair], source: str, batch: int) -> list[Arrival]:
    """The lines that record pairs as they lie in the source, in their order; every file is read once."""
    with ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1))) as pool:
        lines = pool.map(lambda pair: hash_pair(pair, source, batch), pairs)
        return list(progress(lines, total=len(pairs), label="hash", unit="samples"))


def hash_pair(pair: Pair, source: str, batch: int) -> Arrival:
    """The line that records a pair as it lies in the source."""
    image = read_reference(source, pair.image)
    return Arrival(
        batch=batch,
        key=pair.key,
        image=pair.image,
        masks=pair.masks,
        image_sha256=hash_image(image),
        mask_sha256=hash_masks([read_reference(source, mask) for mask in pair.masks]),
        pixels=count_pixels(image),
    )


def count_pixels(image: FileBytes) -> int:
    """Width x height as the file's header says, without decoding; 0 for a file that is no image."""
    try:
        return math.prod(measure(image.data))
    except Exception:
        # Whatever a damaged header brings a decoder to raise: validation will say what is wrong with the file.
        log.debug("no size in the header of %s", image.name, exc_info=True)
        return 0


def append(path: Path, arrivals: Sequence[Arrival]) -> None:
    """Add lines; the file changes completely or not at all."""
    old = path.read_bytes() if path.exists() else b""
    write_whole(path, old + "".join(json.dumps(asdict(arrival)) + "\n" for arrival in arrivals).encode("utf-8"))
