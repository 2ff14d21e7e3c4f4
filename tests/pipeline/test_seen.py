"""Against a real SQLite registry, whose versions are tags and a record beside their runs: no model is needed."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.lineage import data_state
from pipeline.lineage_record import INITIAL_WEIGHTS_TAG, RECORD_TAG
from pipeline.membership import Membership
from pipeline.seen import INDEX_TAG, TRAINING_GROUPS, is_trained_here, seen_groups
from unet_core.errors import RegistryError
from unet_core.splits import Split

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]
SHARDS = Path("data/shards")
SPLITS: dict[str, Split | None] = {"a": "train", "b": "val", "c": "test", "d": None}
MEMBERSHIPS = {key: Membership(group=f"group {key}", slices={}) for key in "abcd"}
Register = Callable[..., tracking.Version]


@pytest.fixture
def register(client) -> Register:
    """Make a version; what was recorded of its training is written beside its run, just as it is given."""
    SHARDS.mkdir(parents=True)
    (SHARDS / "index.json").write_text("today's")
    experiment = client.create_experiment("trainings")

    def register(
        weights: str, *, seen: dict[str, str] | bytes | None = None, name: str = "unet", **tags: str
    ) -> tracking.Version:
        run_id = client.create_run(experiment).info.run_id
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        made = client.create_model_version(
            name, source=f"runs:/{run_id}/model", run_id=run_id, tags={tracking.WEIGHTS_TAG: weights, **tags}
        )
        if seen is not None:
            path = Path(TRAINING_GROUPS)
            path.write_bytes(seen if isinstance(seen, bytes) else json.dumps(seen).encode())
            tracking.log_to_run(client, run_id, metrics={}, files=[path])
        version = tracking.version_by_number(client, name, str(made.version))
        assert version is not None
        return version

    return register


def began_with(weights: str) -> dict[str, str]:
    return {INITIAL_WEIGHTS_TAG: weights}


def seen_by(client, version: tracking.Version) -> set[str] | None:
    return seen_groups(client, version, SHARDS, SPLITS, MEMBERSHIPS)


def test_a_record_of_other_data_counts_by_todays_names_and_without_todays_splits(client, register: Register) -> None:
    version = register("w", seen={"c": "block 1 of then", "left": "group of then"}, **{INDEX_TAG: "of other data"})
    assert not is_trained_here(version, SHARDS)
    assert seen_by(client, version) == {"group c", "group of then"}


def test_on_the_trainings_own_shards_record_and_todays_splits_both_count(client, register: Register) -> None:
    version = register("w", seen={"c": "group c"}, **data_state(SHARDS))
    assert is_trained_here(version, SHARDS)
    assert seen_by(client, version) == {"group a", "group b", "group c"}


def test_without_record_and_shards_of_its_training_nobody_knows(client, register: Register) -> None:
    assert seen_by(client, register("w", **{INDEX_TAG: "of other data"})) is None


def test_what_the_parents_parent_has_seen_counts_too(client, register: Register) -> None:
    register("first", seen={"a": "group a"})
    register("second", seen={"b": "group b"}, **began_with("first"))
    third = register("third", seen={"d": "group d"}, **began_with("second"))
    assert seen_by(client, third) == {"group a", "group b", "group d"}


def test_where_the_parents_parent_is_unknown_nobody_knows(client, register: Register) -> None:
    register("first")
    register("second", seen={"b": "group b"}, **began_with("first"))
    third = register("third", seen={"d": "group d"}, **began_with("second"))
    assert seen_by(client, third) is None


def test_a_parent_may_be_a_version_of_another_model(client, register: Register) -> None:
    register("first", seen={"a": "group a"}, name="pretrained")
    assert seen_by(client, register("second", seen={}, **began_with("first"))) == {"group a"}


def test_of_parents_with_equal_weights_one_record_is_enough_and_all_count(client, register: Register) -> None:
    register("first")
    register("first")
    child = register("second", seen={"d": "group d"}, **began_with("first"))
    assert seen_by(client, child) is None
    register("first", seen={"a": "group a"})
    assert seen_by(client, child) == {"group a", "group d"}
    register("first", seen={"c": "group c"})
    assert seen_by(client, child) == {"group a", "group c", "group d"}


def test_a_parent_whose_training_saw_nothing_is_known(client, register: Register) -> None:
    register("first", seen={})
    assert seen_by(client, register("second", seen={}, **began_with("first"))) == set()


def test_a_training_that_left_the_weights_as_they_were_is_not_its_own_parent(client, register: Register) -> None:
    assert seen_by(client, register("w", seen={"a": "group a"}, **began_with("w"))) == {"group a"}


def test_a_lineage_that_is_lost_is_told_and_the_versions_own_record_counts(
    client, register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    version = register("w", seen={"a": "group a"}, **{RECORD_TAG: "ab" * 32})
    with caplog.at_level(logging.WARNING):
        assert seen_by(client, version) == {"group a"}
    assert "what unet version 1 began with is unknown: the lineage of unet version 1 was recorded, and " in caplog.text


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"[]", "not a group for each key"),
        (b'{"a": null}', "not a group for each key"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        # How it begins depends on Python's version.
        (b"[" * 100_000, " while decoding a JSON array from a unicode string"),
    ],
    ids=["a list", "no group", "not text", "too deep"],
)
def test_a_damaged_record_of_a_parent_is_refused_by_that_parents_name(
    client, register: Register, record: bytes, reason: str
) -> None:
    parent = register("first", seen=record)
    child = register("second", seen={"d": "group d"}, **began_with("first"))
    with pytest.raises(RegistryError) as caught:
        seen_by(client, child)
    assert str(caught.value).startswith(
        "can't be judged: what unet version 1 was trained on can't be read: evaluation/training_groups.json of run "
        f"{parent.run_id}: "
    )
    assert str(caught.value).endswith(f"{reason}. Run `dvc repro -f -s evaluate` on the splits of its training.")
