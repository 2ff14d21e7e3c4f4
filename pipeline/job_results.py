"""What a job on a cluster has made for git, on its way home: lines of text in the job's log.

dvc.lock, metrics and receipts are small, and the log is the one thing of a job that can be read by whoever may follow
it, also later and from elsewhere, with the cluster's token alone. Large results are DVC's, and go through its remote.

    ::result 1/2 H4sIAAAA...     base64 of gzip of JSON, in lines that Ray does not cut
    ::result 2/2 Ab3C...
"""

import base64
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from pipeline.command import first_names
from pipeline.params import read_sections
from pipeline.whole_file import write_whole
from unet_core.errors import DataError, StorageError
from unet_core.hashing import hash_file

PREFIX = "::result "
#: The last line of a job that came to its end: where it is missing, the log is not whole.
END = f"{PREFIX}end"
LINE_CHARACTERS = 4000
MAX_BYTES = 2 << 20
#: What the tree held when a job was submitted, and what of the job was taken home since.
TAKEN_NAME = "taken.json"
#: Where a job's results for people and for git lie. Nothing else is taken home: a job writes no code.
PLACES = ("dvc.lock", "params.yaml", "metrics", "models", "arrivals", "reports")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One file."""

    name: str
    before: str | None
    """sha256 of what was sent to the cluster; None where it was not there."""
    content: str
    """base64."""


def snapshot(root: Path) -> dict[str, str]:
    """sha256 of each file that may become a result, or be changed into one."""
    cached = _kept_by_dvc(root)
    found = {}
    for place in PLACES:
        path = root / place
        files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
        for file in files:
            name = file.relative_to(root).as_posix()
            if file.is_file() and not file.is_symlink() and not _is_below(name, cached):
                found[name] = hash_file(file)
    return found


def find_results(root: Path, before: Mapping[str, str]) -> tuple[list[Result], list[str]]:
    """What is new or has changed since the snapshot, and names of what is too large to go along."""
    results, left, size = [], [], 0
    for name, sha256 in snapshot(root).items():
        if before.get(name) == sha256:
            continue
        content = (root / name).read_bytes()
        if size + len(content) > MAX_BYTES:
            left.append(name)
            continue
        size += len(content)
        results.append(Result(name=name, before=before.get(name), content=base64.b64encode(content).decode("ascii")))
    return results, left


def find_lost(root: Path, sent: Set[Path]) -> list[str]:
    """What a command has written where neither the log nor DVC takes it home."""
    apart = [*PLACES, *_kept_by_dvc(root), ".dvc", ".unet"]
    new = [path.relative_to(root) for path in root.rglob("*") if path.is_file() and path not in sent]
    return sorted(str(name) for name in new if "__pycache__" not in name.parts and not _is_below(str(name), apart))


def to_lines(results: Sequence[Result]) -> Iterator[str]:
    """The results as lines of a log."""
    body = json.dumps([asdict(result) for result in results]).encode("ascii")
    text = base64.b64encode(gzip.compress(body, mtime=0)).decode("ascii")
    parts = [text[start : start + LINE_CHARACTERS] for start in range(0, len(text), LINE_CHARACTERS)]
    for number, part in enumerate(parts, start=1):
        yield f"{PREFIX}{number}/{len(parts)} {part}"


class ResultReader:
    """Takes a job's log in pieces, gives back the lines for people, and keeps the last results that were whole."""

    def __init__(self) -> None:
        self.results: tuple[Result, ...] | None = None
        self.is_cut = False
        """Whether newer results began and did not end: the job was killed while it told of them."""
        self.has_ended = False
        """Whether the log's last line has come."""
        self._rest = ""
        self._parts: list[str] = []

    def read(self, text: str) -> str:
        """The part of the text that is for people, in whole lines."""
        *lines, self._rest = (self._rest + text).split("\n")
        return "".join(f"{shown}\n" for line in lines if (shown := self._take(line)) is not None)

    def finish(self) -> str:
        """A last line without an end."""
        rest, self._rest = self._rest, ""
        shown = self._take(rest) if rest else None
        return "" if shown is None else f"{shown}\n"

    def _take(self, line: str) -> str | None:
        """What of a line is for people: also what a program wrote before the results, without an end of its line."""
        if line.endswith(END):
            self.has_ended = True
            return line.removesuffix(END) or None
        found = re.fullmatch(rf"(.*?){PREFIX}(\d+)/(\d+) ([A-Za-z0-9+/=]+)\r?", line)
        if found is None:
            return line
        number, count = int(found[2]), int(found[3])
        self._parts = [*self._parts, found[4]] if number > 1 else [found[4]]
        self.is_cut = not len(self._parts) == number == count
        if not self.is_cut:
            self.results = _from_text("".join(self._parts))
        return found[1] or None


def _from_text(text: str) -> tuple[Result, ...]:
    try:
        body = json.loads(gzip.decompress(base64.b64decode(text, validate=True)))
        results = tuple(Result(**entry) for entry in body)
        for result in results:
            _check_name(result.name)
            base64.b64decode(result.content, validate=True)
    except (OSError, EOFError, ValueError, TypeError, zlib.error) as error:
        raise DataError(f"the job's results can't be read: {error}. Run `unet attach` once more.") from error
    return results


def _check_name(name: str) -> None:
    """What comes from the cluster is written into these places only."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not _is_below(path.as_posix(), PLACES):
        raise ValueError(f"no place of a result: {name!a}")


def note_tree(root: Path, *, aside: Path) -> None:
    """Note in the job's own folder what the tree holds before the job begins.

    Reports of an earlier job are not sent along, so the job can't tell that they were there: nobody edited them.
    """
    write_whole(aside / TAKEN_NAME, json.dumps(snapshot(root)).encode("ascii"))


def take_home(root: Path, results: Sequence[Result], *, aside: Path) -> list[str]:
    """Write the results into the tree, and give the names of those that were not there already.

    StorageError where one was changed here meanwhile: then the tree stays as it is, and all of them lie in `aside`, the
    job's own folder, which also knows what the tree held before and what was taken home since.
    """
    record = aside / TAKEN_NAME
    taken = json.loads(record.read_text(encoding="ascii")) if record.exists() else {}
    here = {result.name: _hash(root / result.name) for result in results}
    there = {result.name: hashlib.sha256(base64.b64decode(result.content)).hexdigest() for result in results}
    news = [result for result in results if here[result.name] != there[result.name]]
    edited = [result.name for result in news if here[result.name] not in (result.before, taken.get(result.name))]
    # Killed in between, half a file would be taken for the user's own edit by the next call: each is written whole.
    for result in results if edited else news:
        write_whole((aside if edited else root) / result.name, base64.b64decode(result.content))
    if edited:
        raise StorageError(
            f"changed here while the job ran: {first_names(edited, 1)}. Your files stay as they are; the job's lie in "
            f"{aside.relative_to(root)}. Compare them, and copy what you want."
        )
    write_whole(record, json.dumps({**taken, **there}).encode("ascii"))
    return [result.name for result in news]


def _hash(path: Path) -> str | None:
    return hash_file(path) if path.is_file() else None


def _kept_by_dvc(root: Path) -> list[str]:
    """Outs that DVC keeps: `dvc pull` gets them."""
    stages = read_sections(root / "dvc.yaml").get("stages", {})
    entries = [
        entry for stage in stages.values() for kind in ("outs", "plots", "metrics") for entry in stage.get(kind, ())
    ]
    kept = []
    for entry in entries:
        about = entry if isinstance(entry, dict) else {entry: {}}
        kept += [path for path, options in about.items() if (options or {}).get("cache", True)]
    # Such as the ledger, beside which lies what git has of it.
    tracked = [path.relative_to(root).with_suffix("").as_posix() for path in root.glob("*/*.dvc")]
    return [*kept, *tracked]


def _is_below(name: str, folders: Sequence[str]) -> bool:
    return any(PurePosixPath(name).is_relative_to(folder) for folder in folders)
