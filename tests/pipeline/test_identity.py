import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import identity
from pipeline.lineage import code_hash
from pipeline.params import load_section
from unet_core.errors import RegistryError, TrainingError
from unet_core.index import read_index
from unet_core.reader import ShardReader
from unet_core.train_config import TrainConfig

SHARDS = Path("data/shards")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def finished(sharded, write_model_dir) -> Path:
    """The record of a training of `sharded`."""
    model, metrics = Path("models/final"), Path("metrics/train.json")
    write_model_dir(model)
    metrics.parent.mkdir(exist_ok=True)
    metrics.write_text('{"val_loss": 0.5}', encoding="utf-8")
    plans = identity.plan_hashes(SHARDS, train_config())
    begun = identity.begin(sharded.root, SHARDS)
    return identity.finish(begun, Path("identity.json"), plans=plans, model=model, metrics=metrics)


def train_config() -> TrainConfig:
    return load_section("train", TrainConfig)


def test_a_record_is_read_as_it_was_written(finished: Path) -> None:
    record = identity.read_identity(finished)
    assert len(record.weights_sha256) == 64
    assert record.scores == {"val_loss": 0.5}
    assert record.recipe == Path("params.yaml").read_text()
    assert record.processor == identity.processor()
    assert record.versions["torch"].startswith("2.")
    assert len(record.plans_sha256) == train_config().epochs


def test_bytes_of_a_patch_that_are_no_text_survive(finished: Path) -> None:
    record = identity.read_identity(finished)
    begun = replace(record, source=replace(record.source, patch=b"gr\xfc\xdfe".decode("utf-8", "surrogateescape")))
    identity.finish(begun, finished, plans=[], model=Path("models/final"), metrics=Path("metrics/train.json"))
    assert identity.read_identity(finished).source.patch.encode("utf-8", "surrogateescape") == b"gr\xfc\xdfe"


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        ({"format": 99}, "record of identity has format 99, this version reads 1: identity.json."),
        ({"source": None}, r"record of identity is damaged: identity.json: .* Train again\."),
        ({"surplus": 1}, r"record of identity is damaged: identity.json: .*surplus.* Train again\."),
    ],
)
def test_a_record_that_is_not_ours_is_refused(finished: Path, damage: dict, text: str) -> None:
    finished.write_text(json.dumps({**json.loads(finished.read_text()), **damage}))
    with pytest.raises(RegistryError, match=f"^{text}$"):
        identity.read_identity(finished)


def test_a_truncated_record_is_refused(finished: Path) -> None:
    finished.write_text(finished.read_text()[:-20])
    with pytest.raises(RegistryError, match=r"^record of identity is damaged: identity.json"):
        identity.read_identity(finished)


def test_each_epoch_has_a_plan_of_its_own_and_another_seed_gives_others(sharded) -> None:
    config = train_config()
    plans = identity.plan_hashes(SHARDS, config)
    # With so few samples, two epochs may have the same order by chance.
    assert len({*plans}) > config.epochs // 2
    assert plans != identity.plan_hashes(SHARDS, replace(config, oversample={"cell": 0.5}))
    assert identity.plan_hashes(SHARDS, config) == plans != identity.plan_hashes(SHARDS, replace(config, seed=1))


def test_a_large_plan_is_hashed_by_what_decides_it(sharded, monkeypatch: pytest.MonkeyPatch) -> None:
    config = train_config()
    whole = identity.plan_hashes(SHARDS, config)
    monkeypatch.setattr(identity, "MAX_HASHED_SAMPLES", 1)
    plans = identity.plan_hashes(SHARDS, config)
    assert not {*plans} & {*whole}
    assert len({*plans, *identity.plan_hashes(SHARDS, replace(config, block_shards=1))}) == 2 * config.epochs


@pytest.mark.parametrize(
    ("section", "changes"), [("train", {"learning_rate": 0.5}), ("model", {"width": 16}), ("augment", {"crop_px": 8})]
)
def test_a_changed_section_changes_its_hash_alone(sharded, section: str, changes: dict) -> None:
    before = identity.input_hashes(sharded.root, SHARDS)
    sharded.write_recipe(**{section: changes})
    after = identity.input_hashes(sharded.root, SHARDS)
    assert {name for name in before if before[name] != after[name]} == {f"recipe.{section}"}


def test_changed_code_and_constraints_change_their_hashes(sharded) -> None:
    (sharded.root / "unet_core").mkdir()
    for path, name in ((Path("unet_core/new.py"), "code"), (Path("constraints.txt"), "constraints")):
        before = identity.input_hashes(sharded.root, SHARDS)
        path.write_text("x = 1\n", encoding="utf-8")
        after = identity.input_hashes(sharded.root, SHARDS)
        assert {key for key in before if before[key] != after[key]} == {name}


def test_a_host_in_another_state_than_the_training_began_with_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = json.loads(json.dumps(identity.host_state()))
    assert began["code_sha256"] == code_hash(REPOSITORY)
    identity.check_host(began)
    with pytest.raises(TrainingError, match=r" differs from how the training began: versions.torch was 0, is 2\."):
        identity.check_host({**began, "versions.torch": "0"})
    # Not the code of the tree in which a worker happens to be, but the one that it has imported.
    monkeypatch.setattr(identity, "CODE", tmp_path)
    with pytest.raises(TrainingError, match=r": code_sha256 was \w+, is \w+\. Bring back what it began with, or "):
        identity.check_host(began)


def test_tags_name_the_patch_of_a_dirty_tree_only(finished: Path) -> None:
    clean = identity.read_identity(finished)
    assert identity.tags(clean)["git.patch_sha256"] == ""
    dirty = replace(clean, source=replace(clean.source, patch="diff"))
    assert len(identity.tags(dirty)["git.patch_sha256"]) == 64


def test_a_plan_is_hashed_as_little_endian_numbers_of_64_bits(sharded) -> None:
    config = train_config()
    index = read_index(SHARDS)
    plan = config.plan(ShardReader(SHARDS, index.of_split("train")), index.class_map, epoch=0)
    text = b"".join(int(number).to_bytes(8, "little") for number in plan.lanes.flatten())
    assert identity.plan_hashes(SHARDS, config)[0] == hashlib.sha256(text).hexdigest()


def test_another_version_than_the_pinned_one_is_told(tmp_path: Path) -> None:
    assert identity.say_other_pins(tmp_path) == ""
    pins = tmp_path / "constraints.txt"
    torch = identity.versions()["torch"].partition("+")[0]
    pins.write_text(f"# what the results are of\ntorch=={torch}\nruff==0.0.1\nunknown-package==1\n")
    assert identity.say_other_pins(tmp_path) == ""
    pins.write_text(f"torch=={torch}\nnumpy==1.0\n")
    assert identity.say_other_pins(tmp_path) == (
        f"constraints.txt pins numpy 1.0, installed is {identity.versions()['numpy']}, and dvc.lock will name the former"
    )
