"""Against real SQLite stores."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
import yaml

from pipeline import identity, lineage_record, tracking
from pipeline.lineage_record import RECORD_NAME, RECORD_TAG, read_lineage
from pipeline.training_run import TrainingRun
from unet_core.errors import RegistryError
from unet_core.hashing import hash_file

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]
MODEL, SHARDS = Path("models/final"), Path("data/shards")


def challenger(client) -> tracking.Version:
    version = tracking.version_by_alias(client, "unet", tracking.CHALLENGER)
    assert version is not None
    return version


def train(client) -> str:
    """What the stage `train` leaves in MLflow."""
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics/train.json").write_text('{"val_loss": 0.25, "val_dice": 0.75}', encoding="utf-8")
    run = TrainingRun(client, training="abc", params={})
    begun = identity.begin(Path.cwd(), SHARDS)
    proof, metrics = Path("identity.json"), Path("metrics/train.json")
    run.log_files([identity.finish(begun, proof, plans=[], model=MODEL, metrics=metrics)])
    run.finish(MODEL, {tracking.WORKERS_TAG: "2 workers from step 0; 1 worker from step 7"})
    return run.run_id


def test_a_version_carries_what_its_training_recorded(sharded, client, write_model_dir) -> None:
    write_model_dir(MODEL)
    run_id = train(client)
    recipe = Path("params.yaml").read_text(encoding="utf-8")
    # What changes after the training did not make the model.
    Path("params.yaml").write_text(recipe + "# a comment\n", encoding="utf-8")
    sharded.run("register")
    version = challenger(client)
    lineage = read_lineage(client, version)
    assert (lineage.run_id, lineage.recorded_at, lineage.recipe) == (run_id, "training", recipe)
    assert (lineage.model_sha256, lineage.weights_sha256) == (version.model_sha256, version.weights_sha256)
    assert lineage.workers == "2 workers from step 0; 1 worker from step 7"
    assert (lineage.processor, dict(lineage.versions)) == (identity.processor(), identity.versions())
    assert lineage.scores == {"val_loss": 0.25, "val_dice": 0.75}
    assert sum(len(keys) for keys in lineage.samples.values()) == 12
    assert lineage.index_sha256 == hash_file(SHARDS / "index.json")
    split, key = next((split, key) for split, keys in lineage.samples.items() for key in keys)
    image = hash_file(sharded.source / "images" / f"{key}.png")
    assert lineage.samples[split][key][0] == image[:16]
    for name, value in {"data.index_sha256": lineage.index_sha256, "recipe.seed": "0"}.items():
        assert version.tags[name] == value
    assert {"recipe.sha256", "data.test_set_sha256", "identity.processor", "lock.sha256"} <= set(version.tags)


def test_the_lock_is_that_of_this_training_and_ends_with_it(sharded, client, write_model_dir) -> None:
    write_model_dir(MODEL)
    # As DVC has it: when a training begins, its stage's entry is that of the model before.
    lock = {"schema": "2.0", "stages": {"shard": {"cmd": "s"}, "train": {"cmd": "old"}, "evaluate": {"cmd": "old"}}}
    Path("dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    train(client)
    lock["stages"]["train"] = {"cmd": "new"}
    Path("dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    sharded.run("register")
    recorded = yaml.safe_load(read_lineage(client, challenger(client)).lock)
    assert recorded == {"schema": "2.0", "stages": {"shard": {"cmd": "s"}, "train": {"cmd": "new"}}}


@pytest.mark.parametrize("text", ["{", "[]", '{"source": {}}'])
def test_what_a_training_recorded_may_be_damaged(
    sharded, client, write_model_dir, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_model_dir(MODEL)
    train(client)
    (stored,) = sharded.root.glob("mlruns/**/identity.json")
    stored.write_text(text, encoding="ascii")
    sharded.run("register")
    assert "lineage: the working tree stands in: identity.json of run " in caplog.text
    assert read_lineage(client, challenger(client)).recorded_at == "registration"


def test_without_the_training_the_registration_stands_in_and_says_so(registered, client) -> None:
    lineage = read_lineage(client, challenger(client))
    assert lineage.recorded_at == "registration"
    assert (lineage.processor, lineage.versions, lineage.scores, lineage.workers) == ("", {}, {}, "")
    assert lineage.recipe == Path("params.yaml").read_text(encoding="utf-8")


def test_the_record_is_written_once(registered, client) -> None:
    before = challenger(client)
    registered.write_recipe(evaluate={"bootstrap_draws": 7})
    registered.run("register")
    assert challenger(client) == before


def test_a_version_without_record_is_named(registered, client) -> None:
    client.delete_model_version_tag("unet", "1", RECORD_TAG)
    with pytest.raises(RegistryError) as caught:
        read_lineage(client, challenger(client))
    assert str(caught.value) == (
        "no lineage was recorded of unet version 1: it was registered by an older version of the project, or anew from "
        "a receipt. Run `dvc repro -f -s register` where it was trained."
    )
    registered.run("register")
    read_lineage(client, challenger(client))


def test_a_record_whose_file_is_gone_is_named(registered, client) -> None:
    (stored,) = registered.root.glob(f"mlruns/**/{RECORD_NAME}")
    stored.unlink()
    version = challenger(client)
    with pytest.raises(RegistryError) as caught:
        read_lineage(client, version)
    assert str(caught.value) == (
        "the lineage of unet version 1 was recorded, and its file can't be had: lineage.json.gz of run "
        f"{version.run_id}. Bring MLflow's artifacts back."
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"{}"), gzip.compress(json.dumps({"format": 1}).encode()), gzip.compress(b"{")[:9]],
    ids=["empty", "no gzip", "another", "nothing in it", "cut off"],
)
def test_a_record_that_was_changed_is_named(registered, client, content: bytes) -> None:
    (stored,) = registered.root.glob(f"mlruns/**/{RECORD_NAME}")
    stored.write_bytes(content)
    with pytest.raises(RegistryError, match=r"^the lineage of unet version 1 can't be read: lineage.json.gz: "):
        read_lineage(client, challenger(client))


def test_a_record_that_a_server_unpacked_on_the_way_is_read(registered, client) -> None:
    before = read_lineage(client, challenger(client))
    (stored,) = registered.root.glob(f"mlruns/**/{RECORD_NAME}")
    stored.write_bytes(gzip.decompress(stored.read_bytes()))
    assert read_lineage(client, challenger(client)) == before


def test_a_record_that_would_fill_the_memory_is_refused(registered, client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage_record, "MAX_BYTES", 10**6)
    (stored,) = registered.root.glob(f"mlruns/**/{RECORD_NAME}")
    stored.write_bytes(gzip.compress(bytes(10**8)))
    tracemalloc.start()
    try:
        with pytest.raises(RegistryError) as caught:
            read_lineage(client, challenger(client))
        assert tracemalloc.get_traced_memory()[1] < 2 * 10**7
    finally:
        tracemalloc.stop()
    assert str(caught.value) == (
        "the lineage of unet version 1 can't be read: lineage.json.gz: it holds more than 1,000,000 bytes."
    )
