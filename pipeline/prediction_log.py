"""The log of predictions: a line of JSON an image, a file a day, beside them small copies of the images by choice.

Lines are only ever added, by as many processes as there are; a lock on a file keeps them apart. What a killed process
left of a line is ended by the next one, and told by who reads.

    FOLDER/2026-11-28.jsonl    FOLDER/images/2026-11-28/NAME.png    FOLDER/lock    FOLDER/images/bytes
"""

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal

from PIL import Image

from pipeline.pictures import as_rgb
from pipeline.whole_file import write_whole
from unet_core.errors import StorageError
from unet_core.samples import Array
from unet_core.traits import Traits, parse_traits

What = Literal["statistics", "images"]

FORMAT_VERSION = 1
#: The longer side of an image's copy.
COPY_PX = 256
#: A log is read in blocks of so many bytes.
BLOCK_BYTES = 2**20
#: Logs whose copies this process found to take all that they may: counting them for each image would take long.
_FULL: set[tuple[Path, int]] = set()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is logged of an image."""

    time: datetime
    image: str
    """Its address, without passwords."""
    version: str
    """What changes when the file does."""
    model_sha256: str
    traits: Traits
    copy: str | None
    """Of the image, below the log's folder; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class Logbook:
    """Where to write, and how much."""

    folder: Path
    what: What
    model_sha256: str
    copies_bytes: int
    """The most that all copies may take."""


@dataclass(frozen=True, kw_only=True)
class LogRead:
    """What a log tells of a model."""

    entries: tuple[Entry, ...]
    """The oldest first; the latest of each image."""
    num_of_others: int
    """Lines of other models, met on the way."""
    num_damaged: int
    """Lines that can't be read, met on the way."""


def small_copy(image: Array) -> bytes:
    """A PNG of an image (H, W, C), shrunk to `COPY_PX`; of many channels the first three."""
    # Every so many pixels first, since a large image has more than an average needs.
    step = max(1, max(image.shape[:2]) // (4 * COPY_PX))
    picture = Image.fromarray(as_rgb(image[::step, ::step]))
    picture.thumbnail((COPY_PX, COPY_PX), Image.Resampling.BOX)
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def check_log(folder: Path) -> None:
    """StorageError where no log can be written: otherwise each image would fail, after it was predicted."""
    try:
        with _locked(folder):
            pass
    except OSError as error:
        raise StorageError(
            f"the log of predictions can't be written: {folder}: {error.strerror}. Let UNET_PREDICTION_LOG name a "
            "folder that can be made and written."
        ) from error


def append_entry(log: Logbook, *, image: str, version: str, traits: Traits, copy: bytes | None) -> bool:
    """Add a line; False where the copy found no place, and the line says so."""
    now = datetime.now(UTC)
    day = now.date().isoformat()
    # A file's name may hold bytes that are no UTF-8.
    name = hashlib.sha256(os.fsencode("\n".join([image, version, log.model_sha256]))).hexdigest()[:16]
    path = Path("images") / day / f"{name}.png"
    with _locked(log.folder):
        is_kept = copy is not None and _keep_copy(log, path, copy)
        line = {
            "format": FORMAT_VERSION,
            "time": now.isoformat(timespec="seconds"),
            "image": image,
            "version": version,
            "model_sha256": log.model_sha256,
            **asdict(traits),
            "copy": path.as_posix() if is_kept else None,
        }
        _add_line(log.folder / f"{day}.jsonl", json.dumps(line, separators=(",", ":")).encode())
    return is_kept or copy is None


def read_log(folder: Path, *, model_sha256: str, since: datetime, most: int) -> LogRead:
    """The newest `most` images that a model was given since a time; the newest files are read first."""
    found: dict[tuple[str, str], Entry] = {}
    num_of_others = num_damaged = 0
    for line in _lines_backwards(folder, since.astimezone(UTC).date()):
        if len(found) == most:
            break
        try:
            entry = _parse(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            num_damaged += 1
            continue
        if entry.time < since:
            continue
        if entry.model_sha256 != model_sha256:
            num_of_others += 1
        else:
            found.setdefault((entry.image, entry.version), entry)
    return LogRead(entries=tuple(found.values())[::-1], num_of_others=num_of_others, num_damaged=num_damaged)


def _lines_backwards(folder: Path, since: date) -> Iterator[bytes]:
    """The newest line first. Files are read from their ends: of a day's gigabytes, a few lines may count."""
    for path in reversed(_days(folder, since)):
        with path.open("rb") as stream:
            left, rest = stream.seek(0, os.SEEK_END), b""
            while left:
                size = min(BLOCK_BYTES, left)
                left = stream.seek(left - size)
                # The first of them may begin in the block before.
                rest, *lines = (stream.read(size) + rest).split(b"\n")
                yield from filter(None, reversed(lines))
            if rest:
                yield rest


def _days(folder: Path, since: date) -> list[Path]:
    """Files of days from `since` on, in order."""
    days = {}
    for path in folder.glob("*.jsonl"):
        try:
            days[date.fromisoformat(path.stem)] = path
        except ValueError:
            # Another file of somebody's.
            continue
    return [path for day, path in sorted(days.items()) if day >= since]


def _parse(line: bytes) -> Entry:
    body = json.loads(line)
    if body["format"] != FORMAT_VERSION:
        raise ValueError("another format")
    time = datetime.fromisoformat(body["time"])
    if time.tzinfo is None:
        raise ValueError("a time without a zone")
    return Entry(
        time=time,
        image=str(body["image"]),
        version=str(body["version"]),
        model_sha256=str(body["model_sha256"]),
        traits=parse_traits(body),
        copy=None if body["copy"] is None else str(body["copy"]),
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The one who writes. The system frees a dead process's lock."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise StorageError(
                f"a lock is not possible here: {folder}: {error.strerror}. Let UNET_PREDICTION_LOG name a folder on a "
                "file system with locks, such as a local disk, NFS 4 or CephFS."
            ) from error
        yield


def _add_line(path: Path, line: bytes) -> None:
    with path.open("ab+") as stream:
        end = stream.seek(0, os.SEEK_END)
        if end:
            stream.seek(end - 1)
            if stream.read(1) != b"\n":
                # Half a line of a killed process: ended, so that this one is whole.
                line = b"\n" + line
        stream.write(line + b"\n")


def _keep_copy(log: Logbook, name: Path, data: bytes) -> bool:
    """Write a copy, unless all of them would take too much; one that is there stays as it is."""
    path = log.folder / name
    if path.exists():
        return True
    limit = (log.folder.resolve(), log.copies_bytes)
    if limit in _FULL:
        return False
    count = log.folder / "images" / "bytes"
    taken = _read_count(count)
    if taken + len(data) > log.copies_bytes:
        # People may have removed some since.
        taken = sum(found.stat().st_size for found in count.parent.rglob("*.png"))
    is_kept = taken + len(data) <= log.copies_bytes
    if not is_kept:
        _FULL.add(limit)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Before the copy: a process killed in between leaves a count that is too high, and is put right above.
    write_whole(count, str(taken + len(data) if is_kept else taken).encode())
    if is_kept:
        write_whole(path, data)
    return is_kept


def _read_count(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 2**63
