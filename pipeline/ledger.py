"""The arrivals ledger: which sample came when, with the hashes of its files. Data arrive by an explicit act.

A text file, one JSON object a line, only ever appended to; DVC tracks it, since it may grow large.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.source import Pair
from unet_core.errors import DataError
from unet_core.hashing import hash_file


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One line: a sample arrived, changed or was removed."""

    batch: int
    key: str
    image: str
    masks: tuple[str, ...]
    image_sha256: str
    mask_sha256: str
    """Hash of the hashes of all mask files."""
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
            now[arrival.key] = Arrival(**{**asdict(arrival), "batch": now[arrival.key].batch})
        else:
            now[arrival.key] = arrival
    return now


def compare(arrivals: Sequence[Arrival], pairs: Sequence[Pair], source: Path) -> Changes:
    """What a new batch would record."""
    batch = 1 + max((arrival.batch for arrival in arrivals), default=0)
    now = present(arrivals)
    seen = [hash_pair(pair, source, batch) for pair in pairs]
    keys = {pair.key for pair in pairs}
    return Changes(
        new=tuple(arrival for arrival in seen if arrival.key not in now),
        changed=tuple(arrival for arrival in seen if arrival.key in now and not same_files(arrival, now[arrival.key])),
        missing=tuple(
            Arrival(**{**asdict(old), "batch": batch, "removed": True}) for key, old in now.items() if key not in keys
        ),
    )


def same_files(one: Arrival, other: Arrival) -> bool:
    """Whether two lines speak of equal bytes."""
    return (one.image_sha256, one.mask_sha256) == (other.image_sha256, other.mask_sha256)


def hash_pair(pair: Pair, source: Path, batch: int) -> Arrival:
    """The line that records a pair as it lies in the source."""
    mask_hashes = "".join(hash_file(source / mask) for mask in pair.masks)
    return Arrival(
        batch=batch,
        key=pair.key,
        image=pair.image,
        masks=pair.masks,
        image_sha256=hash_file(source / pair.image),
        mask_sha256=hashlib.sha256(mask_hashes.encode()).hexdigest(),
    )


def append(path: Path, arrivals: Sequence[Arrival]) -> None:
    """Add lines; the file changes completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(old + "".join(json.dumps(asdict(arrival)) + "\n" for arrival in arrivals), encoding="utf-8")
    # A new file takes the name: with DVC's links the old one may be the cache's own copy.
    partial.replace(path)
