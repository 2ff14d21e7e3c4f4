"""Working checkpoints of one training: in a folder that all workers see, or below a URL that all reach.

    ROOT/STEP-ATTEMPT/...    written once and never replaced; it counts once its manifest is there, the last file

What lies there is all that is known of checkpoints: whoever comes, on any machine, goes on from the newest.
"""

import contextlib
import json
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline import storage
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

    def try_place(self) -> None:
        """Leave a note at the URL on what this training is. StorageError at once where workers would try for long."""
        if storage.is_url(self.root):
            with tempfile.TemporaryDirectory() as scratch:
                note = Path(scratch, "training.json")
                note.write_text(json.dumps(dict(self.made_by), indent=1) + "\n", encoding="utf-8")
                storage.store_file(note, self.root, note.name)

    def write(self, spec: ModelSpec, state: TrainState) -> None:
        """Add one and remove what it makes needless; StorageError or OSError where that fails for now."""
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
        self._remove_older()

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
        damaged: list[ModelError] = []
        for name in self._complete(storage.names_below(self.root)):
            try:
                state = self.read(name)
            except ModelError as error:
                damaged.append(error)
            else:
                older = storage.public(storage.join(self.root, name))
                warnings = [f"{error} An older one is taken: {older}." for error in damaged]
                return Found(name=name, state=state, warnings=warnings)
        if damaged:
            raise damaged[0]
        return None

    def read(self, name: str) -> TrainState:
        """The state in a checkpoint; ModelError where it is damaged, TrainingError where another training made it."""
        address = storage.join(self.root, name)
        try:
            with self._at_hand(address) as folder:
                return read_checkpoint(folder, self.made_by)
        except DataError as error:
            raise ModelError(f"checkpoint is damaged: {error}") from error

    def remove_all(self) -> None:
        """Leave nothing, when the training has ended."""
        storage.remove_all(self.root)

    @contextmanager
    def _at_hand(self, address: str) -> Iterator[Path]:
        """The folder of a checkpoint, or of a copy of it whose errors name the original."""
        if not storage.is_url(address):
            yield Path(address)
            return
        with tempfile.TemporaryDirectory(prefix="unet-checkpoint-") as scratch:
            for name in storage.names_below(address):
                storage.fetch_file(address, name, Path(scratch, name), missing="Remove the checkpoint.")
            try:
                yield Path(scratch)
            except (ModelError, TrainingError) as error:
                raise type(error)(str(error).replace(scratch, storage.public(address))) from error

    def _remove_older(self) -> None:
        names = storage.names_below(self.root)
        oldest = min(self._complete(names)[:NUM_KEPT], default="")
        # Those without a manifest too: whoever wrote them is gone, or far behind.
        for folder in sorted({name.partition("/")[0] for name in names}):
            if folder < oldest:
                storage.remove_all(storage.join(self.root, folder))

    def _complete(self, names: list[str]) -> list[str]:
        """Folders of whole checkpoints among all files' names, newest first."""
        return sorted((name.partition("/")[0] for name in names if name.endswith(f"/{MANIFEST_NAME}")), reverse=True)


class Saver:
    """Writes states in a thread beside the training. Where storage is away, it writes the newest once that is back.

    `begun` is the checkpoint that the training goes on from: the first that is there, and what is to be told of it.
    """

    def __init__(self, write: Callable[[TrainState], None], begun: Found | None = None) -> None:
        self._write = write
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._lock = threading.Lock()
        self._newest: TrainState | None = None
        self._kept = begun.state.position.step if begun else None
        self._failure: Exception | None = None
        self._warnings = list(begun.warnings) if begun else []
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
                self._write(state)
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

    def _written(self, state: TrainState) -> None:
        with self._lock:
            self._kept = state.position.step
            if self._newest is state:
                self._newest = None

    def _warn(self, text: str) -> None:
        with self._lock:
            self._warnings.append(text)
