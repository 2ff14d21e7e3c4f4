"""Checkpoints of a training in a folder and below a URL. With a real object store: test_s3.py, tests/cluster."""

import contextlib
import json
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import checkpoints as module
from pipeline import storage
from pipeline.checkpoints import Checkpoints, Found, Saver
from unet_core.checkpoint import MANIFEST_NAME, Position, Scores, TrainState, clone_weights
from unet_core.errors import ModelError, StorageError, TrainingError
from unet_core.model import ModelConfig, ModelSpec, UNet
from unet_core.samples import ClassMap, ImageConfig

MADE_BY = {"train.learning_rate": 0.01}
SPEC = ModelSpec(
    config=ModelConfig(width=2, depth=1, norm="none", input_statistics="train"),
    images=ImageConfig(channels=1),
    class_map=ClassMap(kind="multiclass", classes={"background": 0, "cell": 255}, background="background"),
    mean=(0.5,),
    deviation=(0.5,),
    precision="float32",
)


def state_after(steps: int) -> TrainState:
    """A state that can be told from others by its losses."""
    torch.manual_seed(0)
    model = UNet(SPEC)
    return TrainState(
        position=Position(step=steps),
        best_score=None,
        best_weights=clone_weights(model),
        last_weights=clone_weights(model),
        optimizer={"state": {}, "param_groups": [{"lr": 0.1, "params": []}]},
        scores=Scores(losses=tuple(float(step) for step in range(steps)), learning_rates=(0.1,) * steps),
    )


@pytest.fixture(params=["folder", "URL"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Checkpoints]:
    """No checkpoints, in a folder of this machine and in an object store of this process."""
    root = str(tmp_path / "training") if request.param == "folder" else f"memory://{secrets.token_hex(4)}/training"
    yield Checkpoints(root=root, made_by=MADE_BY)
    storage.remove_all(root)


def names(place: Checkpoints) -> list[str]:
    """Steps of what lies there, whole or not."""
    return sorted({name.partition("-")[0].lstrip("0") for name in storage.names_below(place.root)})


def change(place: Checkpoints, folder: str, name: str, data: bytes | None) -> None:
    """Write a file of a checkpoint, or remove it."""
    address = storage.join(place.root, f"{folder}/{name}")
    system, path = storage._file_system(address)
    if data is None:
        system.rm(path)
    else:
        system.pipe_file(path, data)


def newest(place: Checkpoints) -> str:
    found = place.find_newest()
    assert found is not None
    return found.name


def test_nothing_is_found_where_nothing_was_written(place: Checkpoints) -> None:
    assert place.find_newest() is None
    storage.remove_all(place.root)


def test_the_newest_is_found_and_comes_back_as_it_was(place: Checkpoints) -> None:
    for steps in (90, 100, 1000):
        place.write(SPEC, state_after(steps))
    found = place.find_newest()
    assert found is not None
    assert (found.state.position.step, found.warnings) == (1000, [])
    assert found.state.scores == state_after(1000).scores
    assert place.read(found.name).scores == found.state.scores


def test_the_last_two_are_kept(place: Checkpoints) -> None:
    for steps in (1, 2, 3, 4):
        place.write(SPEC, state_after(steps))
    assert names(place) == ["3", "4"]
    storage.remove_all(place.root)
    assert names(place) == []


def test_one_without_its_manifest_is_not_used_and_not_called_damaged(place: Checkpoints) -> None:
    place.write(SPEC, state_after(1))
    place.write(SPEC, state_after(2))
    change(place, newest(place), MANIFEST_NAME, None)
    found = place.find_newest()
    assert found is not None
    assert (found.state.position.step, found.warnings) == (1, [])
    # It makes way as an old one does.
    for steps in (3, 4):
        place.write(SPEC, state_after(steps))
    assert names(place) == ["3", "4"]


def test_a_damaged_one_is_named_and_the_one_before_is_taken(place: Checkpoints) -> None:
    place.write(SPEC, state_after(1))
    place.write(SPEC, state_after(2))
    damaged = newest(place)
    change(place, damaged, "last.safetensors", b"")
    found = place.find_newest()
    assert found is not None
    assert found.state.position.step == 1
    assert found.warnings == [
        f"checkpoint is damaged: {place.root}/{damaged}/last.safetensors. "
        f"An older one is taken: {place.root}/{found.name}."
    ]
    change(place, found.name, "curve.safetensors", None)
    with pytest.raises(ModelError) as caught:
        place.find_newest()
    # Only now there is nothing to go on from.
    assert str(caught.value) == (
        f"checkpoint is damaged: {place.root}/{damaged}/last.safetensors. No other one is whole. "
        f"Remove {place.root} to start anew."
    )


@pytest.mark.parametrize(("damaged", "whole"), [("ffffffff", "bbbbbbbb"), ("bbbbbbbb", "ffffffff")])
def test_a_damaged_one_is_of_no_interest_once_its_step_was_written_again(
    place: Checkpoints, monkeypatch: pytest.MonkeyPatch, damaged: str, whole: str
) -> None:
    attempts = iter(["00000000", damaged, whole])
    monkeypatch.setattr(secrets, "token_hex", lambda _: next(attempts))
    for steps in (1, 2):
        place.write(SPEC, state_after(steps))
    change(place, newest(place), "last.safetensors", b"")
    # Another process, which has not found it damaged and so leaves it there.
    Checkpoints(root=place.root, made_by=MADE_BY).write(SPEC, state_after(2))
    found = place.find_newest()
    assert found is not None
    assert (found.name, found.state.position.step, found.warnings) == (f"{2:012d}-{whole}", 2, [])


def test_a_damaged_one_takes_no_place_of_the_two_and_goes_once_a_whole_one_is_as_far(place: Checkpoints) -> None:
    for steps in (10, 20):
        place.write(SPEC, state_after(steps))
    damaged = newest(place)
    change(place, damaged, "last.safetensors", b"")
    assert newest(place).startswith(f"{10:012d}-")
    place.write(SPEC, state_after(15))
    assert names(place) == ["10", "15", "20"]
    place.write(SPEC, state_after(20))
    assert names(place) == ["15", "20"]
    assert storage.names_below(storage.join(place.root, damaged)) == []
    found = place.find_newest()
    assert found is not None
    assert (found.state.position.step, found.warnings) == (20, [])


def test_without_the_right_to_remove_a_checkpoint_counts_and_people_are_told_once(
    place: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(root: str) -> None:
        raise StorageError(f"no right to delete: {root}.")

    for steps in (1, 2):
        assert place.write(SPEC, state_after(steps)) is None
    oldest = min(storage.names_below(place.root)).partition("/")[0]
    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove_all", refuse)
        with Saver(partial(place.write, SPEC)) as saver:
            for steps in (3, 4):
                saver.keep(state_after(steps))
                wait_until(lambda steps=steps: saver.take_kept() == steps)
        assert saver.take_warnings() == [
            f"an old checkpoint can't be removed: no right to delete: {place.root}/{oldest}. "
            "Training goes on, and they take more space."
        ]
        assert names(place) == ["1", "2", "3", "4"]
    place.write(SPEC, state_after(5))
    assert names(place) == ["4", "5"]


def test_one_of_another_recipe_is_refused_and_not_passed_over(place: Checkpoints) -> None:
    place.write(SPEC, state_after(1))
    other = Checkpoints(root=place.root, made_by={"train.learning_rate": 0.003})
    with pytest.raises(TrainingError) as caught:
        other.find_newest()
    assert str(caught.value) == (
        f"checkpoint was made by another recipe, data or code: {place.root}/{newest(place)}: "
        "train.learning_rate: 0.01 there, 0.003 here. Go back to what made it, or remove it to start anew."
    )


class Killed(BaseException):
    """The process ends here."""


def count_files(patch: pytest.MonkeyPatch, kill_at: int | None) -> list[str]:
    """Record what changes the place, a file at a time, and die at call number `kill_at`."""
    calls: list[str] = []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            if kill_at is not None and len(calls) > kill_at:
                raise Killed
            return original(*arguments, **options)

        patch.setattr(owner, name, watched)

    watch(storage, "store_file")
    watch(storage, "remove_all")
    watch(Path, "replace")
    watch(Path, "mkdir")
    watch(module, "write_checkpoint")
    return calls


def test_an_interrupted_write_never_loses_the_older_checkpoints(place: Checkpoints) -> None:
    def begin() -> None:
        storage.remove_all(place.root)
        for steps in (1, 2):
            place.write(SPEC, state_after(steps))

    begin()
    with pytest.MonkeyPatch.context() as patch:
        calls = count_files(patch, None)
        place.write(SPEC, state_after(4))
        num_calls = len(calls)
    assert num_calls >= 4
    for kill_at in range(num_calls):
        begin()
        with pytest.MonkeyPatch.context() as patch:
            count_files(patch, kill_at)
            with pytest.raises(Killed):
                place.write(SPEC, state_after(3))
        found = place.find_newest()
        assert found is not None
        assert found.state.position.step in (2, 3)
        assert found.warnings == []


def test_a_url_that_can_not_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    nowhere = f"file://{tmp_path}/file/training"
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match=rf"^a .* {nowhere}/training.json: "):
        Checkpoints(root=nowhere, made_by=MADE_BY).try_place()


def test_a_note_at_the_url_says_what_the_training_is(place: Checkpoints) -> None:
    place.try_place()
    assert place.find_newest() is None
    if storage.is_url(place.root):
        note = storage.read_file(place.root, "training.json").data
        assert json.loads(note) == MADE_BY
        for steps in (1, 2, 3):
            place.write(SPEC, state_after(steps))
        assert storage.read_file(place.root, "training.json").data == note


# The thread beside the training


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.01)


class Away:
    """A place that keeps steps, and can be away."""

    def __init__(self) -> None:
        self.kept: list[int] = []
        self.tries = 0
        self.error: Exception | None = None
        self.may_write = threading.Event()
        self.may_write.set()

    def write(self, state: TrainState) -> None:
        self.tries += 1
        assert self.may_write.wait(20)
        if self.error is not None:
            raise self.error
        self.kept.append(state.position.step)


def wait_until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_training_does_not_wait_for_a_write_and_the_newest_state_is_the_next() -> None:
    away = Away()
    away.may_write.clear()
    with Saver(away.write) as saver:
        saver.keep(state_after(1))
        wait_until(lambda: away.tries == 1)
        for steps in (2, 3, 4):
            saver.keep(state_after(steps))
        assert saver.take_kept() is None
        away.may_write.set()
    assert away.kept == [1, 4]
    assert saver.take_kept() == 4
    assert saver.take_kept() is None


@pytest.mark.parametrize("error", [StorageError("the bucket is away."), OSError(28, "No space left on device")])
def test_where_storage_is_away_for_a_while_training_goes_on_and_is_told(error: Exception) -> None:
    away = Away()
    away.error = error
    with Saver(away.write, Found(name="", state=state_after(0), warnings=["told before"])) as saver:
        assert (saver.take_kept(), saver.take_kept()) == (0, None)
        saver.keep(state_after(1))
        wait_until(lambda: away.tries > 2)
        saver.keep(state_after(2))
        assert saver.take_warnings() == [
            "told before",
            f"a checkpoint can't be written: {error} Training goes on, and writing is tried again.",
        ]
        assert saver.take_warnings() == []
        away.error = None
    assert away.kept == [2]


def test_storage_that_stays_away_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.05)
    away = Away()
    away.error = StorageError("the bucket is away.")
    saver = Saver(away.write)
    saver.keep(state_after(1))
    wait_until(lambda: saver._failure is not None)
    for go_on in (lambda: saver.keep(state_after(2)), saver.finish):
        with pytest.raises(StorageError, match="the bucket is away"):
            go_on()


def test_a_mistake_while_writing_is_not_lost() -> None:
    away = Away()
    away.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError), Saver(away.write) as saver:
        saver.keep(state_after(1))
    assert away.tries == 1


def test_a_training_that_fails_does_not_wait_for_storage() -> None:
    away = Away()
    away.error = StorageError("the bucket is away.")
    with pytest.raises(ZeroDivisionError), Saver(away.write) as saver:
        saver.keep(state_after(1))
        raise ZeroDivisionError
    wait_until(lambda: not any(thread.name.startswith("checkpoints") for thread in threading.enumerate()))


def test_a_checkpoint_is_written_once_a_full_disk_has_room_again(small_disk: Path) -> None:
    place = Checkpoints(root=str(small_disk / "training"), made_by=MADE_BY)
    place.write(SPEC, state_after(1))
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    with Saver(partial(place.write, SPEC)) as saver:
        saver.keep(state_after(2))
        wait_until(lambda: bool(saver._warnings))
        assert saver.take_warnings()[0].startswith("a checkpoint can't be written: ")
        found = place.find_newest()
        assert found is not None
        assert (found.state.position.step, found.warnings) == (1, [])
        filler.unlink()
    found = place.find_newest()
    assert found is not None
    assert (found.state.position.step, found.warnings) == (2, [])
    assert saver.take_kept() == 2
    # However often it was tried, nothing else is left.
    assert len(list((small_disk / "training").iterdir())) == 2


def test_a_host_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    Checkpoints(root="s3://bucket/training", made_by=MADE_BY).check_host()
    Checkpoints(root=str(tmp_path / "checkpoints"), made_by=MADE_BY).check_host()
    with pytest.raises(TrainingError) as caught:
        Checkpoints(root="/of/the/driver/checkpoints", made_by=MADE_BY).check_host()
    assert str(caught.value) == (
        f"{platform.node()} does not see the folder in which checkpoints lie: /of/the/driver/checkpoints. Share it "
        "among the hosts, or set UNET_CHECKPOINTS to a URL that all of them reach."
    )
