import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unet_core import checkpoint
from unet_core.checkpoint import (
    MANIFEST_NAME,
    SPEC_NAME,
    WEIGHTS_NAME,
    Position,
    Scores,
    TrainState,
    ValidationRecord,
    clone_weights,
    read_checkpoint,
    read_model,
    read_spec,
    weights_hash,
    write_checkpoint,
    write_model,
)
from unet_core.errors import ModelError, StorageError, TrainingError
from unet_core.hashing import hash_file
from unet_core.model import ModelSpec, UNet
from unet_core.samples import ClassMap, ImageConfig

#: What decides a training, by name.
MADE_BY = {"train.learning_rate": 0.01, "model.width": 4, "data.index_sha256": "a1"}


@pytest.fixture
def spec(make_spec: Callable[..., ModelSpec]) -> ModelSpec:
    return make_spec(width=4)


def network(spec: ModelSpec, seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(spec)


def trained_state(spec: ModelSpec, steps: int = 2) -> TrainState:
    """The state of a network and its optimizer after some steps."""
    model = network(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        levels = torch.randint(0, 256, (1, 1, 8, 8), generator=torch.Generator().manual_seed(step))
        model(levels).square().mean().backward()
        optimizer.step()
    return TrainState(
        position=Position(epoch=1, step_in_epoch=3, step=11),
        best_score=-0.25,
        best_weights=clone_weights(network(spec, seed=1)),
        last_weights=clone_weights(model),
        optimizer=optimizer.state_dict(),
        scores=Scores(
            losses=tuple(0.1 / (step + 1) for step in range(steps)),
            learning_rates=(0.01,) * steps,
            validations=(
                ValidationRecord(step=1, epoch=1, loss=0.1 + 2**-54, dice=None, class_dice={"cell": 1 / 3, "no": None}),
            ),
        ),
    )


def assert_same(first: Any, second: Any) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name]), name


# Models


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_model_comes_back_as_it_was_written(
    tmp_path: Path, make_spec: Callable[..., ModelSpec], cells_map: ClassMap, shapes_map: ClassMap, kind: str
) -> None:
    spec = make_spec(class_map=cells_map if kind == "multiclass" else shapes_map, norm="batch", channels=3)
    model = network(spec)
    model(torch.randint(0, 256, (2, 3, 8, 8)))  # moves the running statistics
    write_model(tmp_path / "model", spec, model.state_dict())
    found, found_spec = read_model(tmp_path / "model")
    assert found_spec == spec
    assert found_spec.class_map.names == spec.class_map.names
    assert_same(found.state_dict(), model.state_dict())
    assert not found.training


def test_model_directory_holds_weights_and_description_and_nothing_else(tmp_path: Path, spec: ModelSpec) -> None:
    write_model(tmp_path / "deep" / "model", spec, network(spec).state_dict())
    assert sorted(path.name for path in (tmp_path / "deep" / "model").iterdir()) == [SPEC_NAME, WEIGHTS_NAME]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]


def test_equal_weights_give_equal_bytes(tmp_path: Path, spec: ModelSpec) -> None:
    state = network(spec).state_dict()
    turned = {
        name: tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
        for name, tensor in reversed(state.items())
    }
    write_model(tmp_path / "a", spec, state)
    write_model(tmp_path / "b", spec, turned)
    for name in (WEIGHTS_NAME, SPEC_NAME):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert weights_hash(tmp_path / "a") == weights_hash(tmp_path / "b") == hash_file(tmp_path / "a" / WEIGHTS_NAME)


def test_one_changed_bit_gives_another_hash(tmp_path: Path, spec: ModelSpec) -> None:
    state = clone_weights(network(spec))
    write_model(tmp_path / "a", spec, state)
    state["head.bias"][0] = torch.nextafter(state["head.bias"][0], torch.tensor(9.0))
    write_model(tmp_path / "b", spec, state)
    assert weights_hash(tmp_path / "a") != weights_hash(tmp_path / "b")


def test_writing_again_replaces_the_older_model(tmp_path: Path, spec: ModelSpec) -> None:
    for seed in (0, 1):
        write_model(tmp_path / "model", spec, network(spec, seed).state_dict())
    assert_same(read_model(tmp_path / "model")[0].state_dict(), network(spec, 1).state_dict())


def test_writing_does_not_change_the_weights(tmp_path: Path, spec: ModelSpec) -> None:
    state = network(spec).state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    write_model(tmp_path / "model", spec, state)
    assert_same(state, before)


def test_cloned_weights_do_not_follow_the_model(spec: ModelSpec) -> None:
    model = network(spec)
    cloned = clone_weights(model)
    with torch.no_grad():
        model.head.weight.add_(1)
    assert not torch.equal(cloned["head.weight"], model.head.weight)
    assert not any(tensor.requires_grad for tensor in cloned.values())


# Damage


@pytest.fixture
def model_dir(tmp_path: Path, spec: ModelSpec) -> Path:
    write_model(tmp_path / "model", spec, network(spec).state_dict())
    return tmp_path / "model"


class Trap:
    """Says that it was unpickled by making a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("maker", ["pickle", "torch.save"])
def test_pickle_under_the_name_of_weights_is_refused_and_not_run(tmp_path: Path, model_dir: Path, maker: str) -> None:
    path, trap = model_dir / WEIGHTS_NAME, tmp_path / "sprung"
    if maker == "pickle":
        path.write_bytes(pickle.dumps({"head.bias": Trap(trap)}))
    else:
        torch.save({"head.bias": Trap(trap)}, path)
    with pytest.raises(ModelError) as caught:
        read_model(model_dir)
    assert str(caught.value).startswith(f"weights can't be read: {path}: ")
    assert str(caught.value).endswith("Restore the file, or train again.")
    assert not trap.exists()


@pytest.mark.parametrize("damage", ["missing", "empty", "cut off"])
def test_weights_that_can_not_be_read_are_named(model_dir: Path, damage: str) -> None:
    path = model_dir / WEIGHTS_NAME
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut off" else b"")
    with pytest.raises(ModelError, match=r"weights can't be read: .*model.safetensors: .* Restore the file"):
        read_model(model_dir)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda state: {**state, "head.weight": torch.zeros(6, 5, 1, 1)},
            r"head\.weight: the file has \(6, 5, 1, 1\), model\.json asks for \(\d+, 4, 1, 1\) \(1 tensors differ\)\.",
        ),
        (
            lambda state: {name: t for name, t in state.items() if name != "head.bias"},
            r"head\.bias: the file has nothing, model\.json asks for",
        ),
        (lambda state: {**state, "extra": torch.zeros(1)}, r"extra: the file has \(1,\), model\.json asks for nothing"),
    ],
    ids=["shape", "missing", "unknown"],
)
def test_weights_of_another_network_are_refused(
    model_dir: Path, spec: ModelSpec, change: Callable[[Any], Any], text: str
) -> None:
    write_model(model_dir, spec, change(network(spec).state_dict()))
    with pytest.raises(ModelError, match=rf"weights do not fit the network: .*model.safetensors: {text}"):
        read_model(model_dir)


KNOBS = {"width": 4, "depth": 2, "norm": "batch", "input_statistics": "train"}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"width": 2**16}, "tensors differ"),
        ({"width": 2**62}, "it can't be laid out: "),
        ({"depth": 20}, "they are too few for depth 20"),
        ({"depth": 10**12}, "they are too few for depth 1000000000000"),
        ({"depth": 12, "nested": True}, "tensors differ"),
    ],
)
def test_a_description_of_a_huge_network_is_refused_before_any_memory_is_taken(
    model_dir: Path, changes: dict[str, Any], text: str
) -> None:
    """A width of 2**16 would take 10 TB, and depth 12 nearly 10 GB."""
    edit(model_dir / SPEC_NAME, config={**KNOBS, **changes})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=rf"weights do not fit the network: .*model.safetensors: .*{text}"):
        read_model(model_dir)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not a model directory: .*gone/model.json: "):
        read_spec(tmp_path / "gone")


@pytest.mark.parametrize(
    "content", [b"", b'{"config"', b"\xff\xfe\0", b"[" * 10**5], ids=["empty", "cut off", "not text", "deep"]
)
def test_description_that_is_no_json_is_named(model_dir: Path, content: bytes) -> None:
    (model_dir / SPEC_NAME).write_bytes(content)
    with pytest.raises(ModelError, match=r"not a model directory: .*model.json: "):
        read_spec(model_dir)


def edit(path: Path, **changes: Any) -> None:
    """Change or (None) remove entries of a JSON file."""
    body = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in body.items() if value is not None}))


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": None},
        {"config": {"width": 4}},
        {"config": {**KNOBS, "colour": "red"}},
        {"class_map": []},
        {"class_map": {"kind": "multiclass", "classes": ["soil", "crop"]}},
        {"mean": "0.5"},
        {"precision": "float8"},
        {"images": {"channels": "1"}},
        {"config": {**KNOBS, "width": 4.5}},
        {"config": {**KNOBS, "activation": None}},
        {"config": {**KNOBS, "padding": None}},
        {"config": {**KNOBS, "residual": "no"}},
    ],
    ids=str,
)
def test_damaged_description_is_named(model_dir: Path, changes: dict[str, Any]) -> None:
    edit(model_dir / SPEC_NAME, **changes)
    with pytest.raises(ModelError, match=r"model description is damaged: .*model.json: "):
        read_spec(model_dir)


def test_description_with_an_impossible_value_is_a_model_error(model_dir: Path) -> None:
    # Not a RecipeError: no line of params.yaml is wrong.
    edit(model_dir / SPEC_NAME, config={**KNOBS, "width": 0})
    with pytest.raises(ModelError, match=r"model description is damaged: .*model.json"):
        read_spec(model_dir)


def test_model_description_keeps_how_images_are_read(tmp_path: Path, spec: ModelSpec) -> None:
    images = ImageConfig(channels=1, bits=16, percentiles=[1, 99.5], page=2)
    written = replace(spec, images=images)
    write_model(tmp_path / "model", written, network(written).state_dict())
    assert read_spec(tmp_path / "model") == written


def test_model_of_version_1_is_read_as_8_bits(model_dir: Path) -> None:
    edit(model_dir / SPEC_NAME, format=1, images=None, channels=1)
    assert read_spec(model_dir).images == ImageConfig(channels=1)


def test_model_of_another_format_is_refused(model_dir: Path) -> None:
    edit(model_dir / SPEC_NAME, format=3)
    with pytest.raises(ModelError, match=r"another format: .*model.json: version 3"):
        read_spec(model_dir)


# Checkpoints


def test_checkpoint_comes_back_as_it_was_written(tmp_path: Path, spec: ModelSpec) -> None:
    state = trained_state(spec)
    write_checkpoint(tmp_path / "checkpoint", spec, state, MADE_BY)
    found = read_checkpoint(tmp_path / "checkpoint", MADE_BY)
    assert found.position == state.position
    assert found.best_score == state.best_score
    assert found.scores == state.scores
    assert_same(found.best_weights, state.best_weights)
    assert_same(found.last_weights, state.last_weights)
    assert found.optimizer["state"].keys() == state.optimizer["state"].keys()
    for number, tensors in state.optimizer["state"].items():
        assert_same(found.optimizer["state"][number], tensors)


def test_optimizer_goes_on_from_a_checkpoint_as_if_nothing_had_been(tmp_path: Path, spec: ModelSpec) -> None:
    def one_more(model: UNet, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        optimizer.zero_grad()
        model(torch.full((1, 1, 8, 8), 100)).square().mean().backward()
        optimizer.step()
        return clone_weights(model)

    write_checkpoint(tmp_path / "checkpoint", spec, trained_state(spec), MADE_BY)
    results = []
    for state in (read_checkpoint(tmp_path / "checkpoint", MADE_BY), trained_state(spec)):
        model = network(spec, seed=5)
        model.load_state_dict(state.last_weights)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
        optimizer.load_state_dict(dict(state.optimizer))
        assert optimizer.param_groups[0]["lr"] == 0.01
        results.append(one_more(model, optimizer))
    assert_same(results[0], results[1])


def test_checkpoint_without_a_score_comes_back_without(tmp_path: Path, spec: ModelSpec) -> None:
    write_checkpoint(tmp_path / "checkpoint", spec, replace(trained_state(spec), best_score=None), MADE_BY)
    assert read_checkpoint(tmp_path / "checkpoint", MADE_BY).best_score is None


def test_score_keeps_every_digit(tmp_path: Path, spec: ModelSpec) -> None:
    score = -0.1 - 2**-54
    write_checkpoint(tmp_path / "checkpoint", spec, replace(trained_state(spec), best_score=score), MADE_BY)
    assert read_checkpoint(tmp_path / "checkpoint", MADE_BY).best_score == score


def test_checkpoint_is_a_model_directory_of_the_best_weights(tmp_path: Path, spec: ModelSpec) -> None:
    state = trained_state(spec)
    write_checkpoint(tmp_path / "checkpoint", spec, state, MADE_BY)
    model, found = read_model(tmp_path / "checkpoint")
    assert found == spec
    assert_same(model.state_dict(), state.best_weights)


def test_equal_states_give_equal_bytes(tmp_path: Path, spec: ModelSpec) -> None:
    for name in ("a", "b"):
        write_checkpoint(tmp_path / name, spec, trained_state(spec), MADE_BY)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        "curve.safetensors",
        "last.safetensors",
        SPEC_NAME,
        WEIGHTS_NAME,
        "train_state.json",
        "train_state.safetensors",
    ]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.fixture
def checkpoint_dir(tmp_path: Path, spec: ModelSpec) -> Path:
    write_checkpoint(tmp_path / "checkpoint", spec, trained_state(spec), MADE_BY)
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("name", [WEIGHTS_NAME, "last.safetensors", "train_state.safetensors", "curve.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "one bit"])
def test_damaged_checkpoint_is_refused(checkpoint_dir: Path, name: str, damage: str) -> None:
    path = checkpoint_dir / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    if damage != "missing":
        path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        read_checkpoint(checkpoint_dir, MADE_BY)
    assert str(caught.value) == f"checkpoint is damaged: {path}."


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe\0"])
def test_checkpoint_without_a_readable_state_is_refused(checkpoint_dir: Path, content: bytes | None) -> None:
    path = checkpoint_dir / "train_state.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"train_state.json"):
        read_checkpoint(checkpoint_dir, MADE_BY)


@pytest.mark.parametrize("name", ["sha256", "made_by", "position", "best_score", "validations", "optimizer"])
def test_checkpoint_whose_state_lacks_an_entry_is_refused(checkpoint_dir: Path, name: str) -> None:
    edit(checkpoint_dir / "train_state.json", **{name: None})
    with pytest.raises(ModelError, match=rf"checkpoint is damaged: .*checkpoint.*{name}"):
        read_checkpoint(checkpoint_dir, MADE_BY)


def test_checkpoint_of_another_format_is_refused(checkpoint_dir: Path) -> None:
    edit(checkpoint_dir / "train_state.json", format=3)
    with pytest.raises(ModelError, match=r"another format: .*train_state.json: version 3"):
        read_checkpoint(checkpoint_dir, MADE_BY)


def test_a_checkpoint_of_another_recipe_or_data_is_refused_with_the_difference(checkpoint_dir: Path) -> None:
    here = {"train.learning_rate": 0.003, "train.momentum": 0.9, "data.index_sha256": "a1"}
    with pytest.raises(TrainingError) as caught:
        read_checkpoint(checkpoint_dir, here)
    assert str(caught.value) == (
        f"checkpoint was made by another recipe, data or code: {checkpoint_dir}: model.width: 4 there, nothing here; "
        "train.learning_rate: 0.01 there, 0.003 here; train.momentum: nothing there, 0.9 here. "
        "Go back to what made it, or remove it to start anew."
    )


def test_a_recipe_is_compared_as_json_keeps_it(tmp_path: Path, spec: ModelSpec) -> None:
    write_checkpoint(tmp_path / "checkpoint", spec, trained_state(spec), {"augment.scale": (0.5, 2)})
    read_checkpoint(tmp_path / "checkpoint", {"augment.scale": [0.5, 2]})
    read_checkpoint(tmp_path / "checkpoint", {"augment.scale": (0.5, 2)})


# Half-written directories


class Killed(BaseException):
    """The process ends here."""


def names_of_calls(monkeypatch: pytest.MonkeyPatch, kill_at: int | None) -> list[str]:
    """Record the calls by which checkpoint.py changes the disk, and die at call number `kill_at`."""
    calls: list[str] = []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if kill_at is not None and len(calls) > kill_at:
                raise Killed
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    watch(checkpoint, "save_file")
    watch(shutil, "rmtree")
    watch(os, "fsync")
    for name in ("mkdir", "replace", "rename", "write_text"):
        watch(Path, name)
    return calls


def num_calls_of_a_write(write: Callable[[], None]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        calls = names_of_calls(patch, None)
        write()
    return len(calls)


def test_a_model_is_seen_complete_or_not_at_all(tmp_path: Path, spec: ModelSpec) -> None:
    weights = network(spec).state_dict()
    num_calls = num_calls_of_a_write(lambda: write_model(tmp_path / "counted", spec, weights))
    assert num_calls > 6
    for kill_at in range(num_calls):
        directory = tmp_path / f"killed_{kill_at}"
        with pytest.MonkeyPatch.context() as patch:
            names_of_calls(patch, kill_at)
            with pytest.raises(Killed):
                write_model(directory, spec, weights)
        if directory.exists():
            assert_same(read_model(directory)[0].state_dict(), weights)
        write_model(directory, spec, weights)  # what was left behind is in nobody's way
        assert_same(read_model(directory)[0].state_dict(), weights)


def test_a_checkpoint_counts_when_all_of_it_is_there(tmp_path: Path, spec: ModelSpec) -> None:
    state = trained_state(spec)
    num_calls = num_calls_of_a_write(lambda: write_checkpoint(tmp_path / "counted", spec, state, MADE_BY))
    assert num_calls > 8
    for kill_at in range(num_calls):
        directory = tmp_path / f"killed_{kill_at}"
        with pytest.MonkeyPatch.context() as patch:
            names_of_calls(patch, kill_at)
            with pytest.raises(Killed):
                write_checkpoint(directory, spec, state, MADE_BY)
        assert not (directory / MANIFEST_NAME).exists()


def test_a_checkpoint_is_never_written_over_another(checkpoint_dir: Path, spec: ModelSpec) -> None:
    with pytest.raises(FileExistsError):
        write_checkpoint(checkpoint_dir, spec, trained_state(spec, steps=3), MADE_BY)
    assert read_checkpoint(checkpoint_dir, MADE_BY).scores == trained_state(spec).scores


def test_full_disk_keeps_the_older_model(small_disk: Path, make_spec: Callable[..., ModelSpec]) -> None:
    small, large = make_spec(width=4), make_spec(width=64)
    write_model(small_disk / "model", small, network(small).state_dict())
    with pytest.raises(StorageError, match=r"disk full .*model|model.*No space left"):
        write_model(small_disk / "model", large, network(large).state_dict())
    assert_same(load_file(small_disk / "model" / WEIGHTS_NAME), network(small).state_dict())
