"""Working checkpoints of one training: in a folder that all workers see, or below a URL that all reach.

    ROOT/STEP-ATTEMPT/...    written once and never replaced; it counts once its manifest is there, the last file

What lies there is all that is known of checkpoints: whoever comes, on any machine, goes on from the newest.
"""

import contextlib
import json
import platform
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline import storage
from pipeline.public_text import public
from unet_core.checkpoint import MANIFEST_NAME, TrainState, read_checkpoint, write_checkpoint
from unet_core.errors import DataError, ModelError, StorageError, TrainingError
from unet_core.model import ModelSpec

#: Each holds the best weights too; the older one is for when the newest is damaged.
NUM_KEPT = 2


@dataclass(frozen=True, kw_only=True)
class Found:
    """A whole checkpoint."""

    name: str
    state: TrainState
    warnings: list[str]
    """What is wrong with newer ones."""


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one training."""

    root: str
    """A folder or a URL."""
    made_by: Mapping[str, Any]
    """What decides the training, by name."""
    _damaged: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    """Names of those that this process has found damaged."""

    def try_place(self) -> None:
        """Leave a note at the URL on what this training is. StorageError at once where workers would try for long."""
        if storage.is_url(self.root):
            with tempfile.TemporaryDirectory() as scratch:
                note = Path(scratch, "training.json")
                note.write_text(json.dumps(dict(self.made_by), indent=1) + "\n", encoding="utf-8")
                storage.store_file(note, self.root, note.name)

    def check_host(self) -> None:
        """TrainingError on a host that does not see the folder's place: nobody would find what it writes."""
        if not storage.is_url(self.root) and not Path(self.root).parent.is_dir():
            raise TrainingError(
                f"{platform.node()} does not see the folder in which checkpoints lie: {self.root}. Share it among the "
                "hosts, or set UNET_CHECKPOINTS to a URL that all of them reach."
            )

    def write(self, spec: ModelSpec, state: TrainState) -> StorageError | None:
        """Add one, and remove what it makes needless. StorageError or OSError where adding fails for now.

        What hindered the removal is given back: the checkpoint is there all the same.
        """
        # Never a name twice: a worker that was taken for dead may still be writing.
        address = storage.join(self.root, f"{state.position.step:012d}-{secrets.token_hex(4)}")
        try:
            if storage.is_url(address):
                self._upload(address, spec, state)
            else:
                write_checkpoint(Path(address), spec, state, self.made_by)
        except (StorageError, OSError):
            # Else every new try would leave files behind, and a full disk would stay full.
            with contextlib.suppress(StorageError):
                storage.remove_all(address)
            raise
        try:
            self._remove_needless()
        except StorageError as error:
            # Credentials may lack the right to delete; to write it again would only add another copy.
            return error
        return None

    def _upload(self, address: str, spec: ModelSpec, state: TrainState) -> None:
        with tempfile.TemporaryDirectory(prefix="unet-checkpoint-") as scratch:
            folder = Path(scratch, "checkpoint")
            write_checkpoint(folder, spec, state, self.made_by)
            # An object store shows each file at once, so the one that makes it a checkpoint comes last.
            for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST_NAME):
                storage.store_file(path, address, path.name)

    def find_newest(self) -> Found | None:
        """The newest whole checkpoint, or None where there is none at all.

        ModelError of the newest if none is whole: to begin anew would throw away what the user believes to have.
        """
        errors: dict[str, ModelError] = {}
        for name in _complete(storage.names_below(self.root)):
            try:
                state = self.read(name)
            except ModelError as error:
                errors[name] = error
                self._damaged.add(name)
            else:
                older = public(storage.join(self.root, name))
                # Nothing is lost with a damaged one of the same step.
                newer = [error for other, error in errors.items() if _steps(other) > _steps(name)]
                return Found(
                    name=name, state=state, warnings=[f"{error} An older one is taken: {older}." for error in newer]
                )
        if errors:
            newest = next(iter(errors.values()))
            root = public(self.root)
            raise ModelError(f"{newest} No other one is whole. Remove {root} to start anew.") from newest
        return None

    def read(self, name: str) -> TrainState:
        """The state in a checkpoint; ModelError where it is damaged, TrainingError where another training made it."""
        address = storage.join(self.root, name)
        try:
            with self._at_hand(address) as folder:
                return read_checkpoint(folder, self.made_by)
        except DataError as error:
            raise ModelError(f"checkpoint is damaged: {error}") from error

    @contextmanager
    def _at_hand(self, address: str) -> Iterator[Path]:
        """The folder of a checkpoint, or of a copy of it whose errors name the original."""
        if not storage.is_url(address):
            yield Path(address)
            return
        with tempfile.TemporaryDirectory(prefix="unet-checkpoint-") as scratch:
            for name in storage.names_below(address):
                storage.fetch_file(address, name, Path(scratch, name), missing="It went away meanwhile.")
            try:
                yield Path(scratch)
            except (ModelError, TrainingError) as error:
                raise type(error)(str(error).replace(scratch, public(address))) from error

    def _remove_needless(self) -> None:
        names = storage.names_below(self.root)
        whole = [name for name in _complete(names) if name not in self._damaged]
        if not whole:
            return
        kept = whole[:NUM_KEPT]
        # Those without a manifest too: whoever wrote them is gone, or far behind.
        for folder in sorted({name.partition("/")[0] for name in names}):
            is_replaced = folder in self._damaged and _steps(folder) <= _steps(kept[0])
            if folder < kept[-1] or is_replaced:
                storage.remove_all(storage.join(self.root, folder))


def _complete(names: Sequence[str]) -> list[str]:
    """Folders of checkpoints with a manifest among all files' names, newest first."""
    return sorted((name.partition("/")[0] for name in names if name.endswith(f"/{MANIFEST_NAME}")), reverse=True)


def _steps(name: str) -> str:
    """How far the training was, from a checkpoint's name; sorts as the number does."""
    return name.partition("-")[0]


class Saver:
    """Writes states in a thread beside the training. Where storage is away, it writes the newest once that is back.

    `begun` is the checkpoint that the training goes on from: the first that is there, and what is to be told of it.
    """

    def __init__(self, write: Callable[[TrainState], StorageError | None], begun: Found | None = None) -> None:
        self._write = write
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._lock = threading.Lock()
        self._newest: TrainState | None = None
        self._kept = begun.state.position.step if begun else None
        self._failure: Exception | None = None
        self._warnings = list(begun.warnings) if begun else []
        self._tells_of_removal = True
        self._leaving = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        else:
            self._leaving.set()
            self._pool.shutdown(wait=False, cancel_futures=True)

    def keep(self, state: TrainState) -> None:
        """Write it as soon as can be, instead of an older one that still waits. Raises what made writing fail."""
        self._raise_failure()
        with self._lock:
            self._newest = state
        self._pool.submit(self._write_newest)

    def take_kept(self) -> int | None:
        """Steps up to the newest checkpoint that is there now, if there is one since the last call."""
        with self._lock:
            kept, self._kept = self._kept, None
            return kept

    def take_warnings(self) -> list[str]:
        """What people should know since the last call."""
        with self._lock:
            told, self._warnings = self._warnings, []
            return told

    def finish(self) -> None:
        """Wait until all is written, and raise what made that fail."""
        self._pool.shutdown()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _write_newest(self) -> None:
        """Write until nothing waits; a failure that does not pass stays for the training's thread to raise."""
        deadline = None
        while (state := self._newest) is not None and self._failure is None and not self._leaving.is_set():
            try:
                hindrance = self._write(state)
            except (StorageError, OSError) as error:
                if deadline is None:
                    deadline = time.monotonic() + storage.PATIENCE_SECONDS
                    self._warn(f"a checkpoint can't be written: {error} Training goes on, and writing is tried again.")
                if time.monotonic() > deadline:
                    self._failure = error
                self._leaving.wait(storage.RETRY_SECONDS)
            except Exception as error:  # raised where the training's thread sees it
                self._failure = error
            else:
                deadline = None
                self._written(state)
                if hindrance is not None:
                    self._tell_of_removal(hindrance)

    def _written(self, state: TrainState) -> None:
        with self._lock:
            self._kept = state.position.step
            if self._newest is state:
                self._newest = None

    def _tell_of_removal(self, hindrance: StorageError) -> None:
        """Once: what hinders it will mostly do so each time."""
        if self._tells_of_removal:
            self._tells_of_removal = False
            self._warn(f"an old checkpoint can't be removed: {hindrance} Training goes on, and they take more space.")

    def _warn(self, text: str) -> None:
        with self._lock:
            self._warnings.append(text)
