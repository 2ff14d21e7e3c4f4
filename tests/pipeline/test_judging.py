import csv
import dataclasses
import logging
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pipeline import tracking
from pipeline.judging import DataPaths, judge_versions, pair_scores
from pipeline.placement import read_placement
from pipeline.question import hash_test_set
from pipeline.receipt import read_receipt
from pipeline.scores import ScoreRow
from unet_core.errors import RegistryError
from unet_core.index import read_index, write_index

SHARDS, SPLITS = Path("data/shards"), Path("data/splits.csv")
DATA = DataPaths(accepted=Path("data/accepted.parquet"), splits=SPLITS, shards=SHARDS)


def row(key: str, name: str, dice: float | None, *, scored: bool = True) -> ScoreRow:
    return ScoreRow(
        key=key,
        group=f"group {key}",
        slices={"stain": "pink"} if key == "a" else {},
        class_name=name,
        scored=scored,
        true_positive=1,
        false_positive=1,
        false_negative=1,
        dice=dice,
        iou=dice,
    )


def test_rows_of_two_models_become_pairs_of_images_and_scored_classes() -> None:
    old = [row(key, name, 0.5, scored=name == "crop") for key in "ab" for name in ("soil", "crop")]
    new = [dataclasses.replace(one, dice=None if one.key == "b" else 0.75) for one in old]
    pairs = pair_scores(new, old, "dice")
    assert (pairs.groups, pairs.classes) == (["group a", "group b"], ["crop"])
    assert pairs.champion.tolist() == [[0.5], [0.5]]
    assert pairs.challenger[0, 0] == 0.75
    assert np.isnan(pairs.challenger[1, 0])
    assert pairs.slices == {"stain": ["pink", None]}


def test_the_test_set_is_known_by_the_content_of_its_shards_alone(sharded) -> None:
    index = read_index(SHARDS)
    before = hash_test_set(SHARDS)
    kept = tuple(shard for shard in index.shards if shard.split != "train")
    write_index(SHARDS, dataclasses.replace(index, shards=kept))
    assert hash_test_set(SHARDS) == before
    write_index(SHARDS, dataclasses.replace(index, shards=kept[:-1]))
    assert hash_test_set(SHARDS) != before


def challenger(client) -> tracking.Version:
    found = tracking.find_version(client, "unet", read_receipt(Path("models/receipt.json")).model_sha256)
    assert found is not None
    return found


def judge_now(client):
    return judge_versions(client, challenger(client), None, DATA, read_placement())


def move(split: str, to: str) -> str:
    """Let one sample of a split belong to another one, as other split settings would; its key."""
    with SPLITS.open(newline="", encoding="utf-8") as stream:
        head, *lines = list(csv.reader(stream))
    key = next(key for key, where in lines if where == split)
    changed = [[name, to if name == key else where] for name, where in lines]
    with SPLITS.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([head, *changed])
    return key


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_that_was_trained_on_what_is_test_today_is_refused(registered, client) -> None:
    registered.run("evaluate")
    key = move("train", "test")
    with pytest.raises(RegistryError) as caught:
        judge_now(client)
    assert str(caught.value).startswith("can't be judged: unet version 1 was trained on 1 of ")
    assert f"such as '{key}'" in str(caught.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_nobody_recorded_is_taken_from_an_equal_index_or_refused(registered, client) -> None:
    # Never evaluated here, but registered with today's index.
    assert judge_now(client).training_unknown == ()
    client.set_model_version_tag("unet", "1", "data.index_sha256", "of other data")
    with pytest.raises(RegistryError) as caught:
        judge_now(client)
    assert str(caught.value) == (
        "can't be judged: nobody recorded what unet version 1 was trained on: it may have seen test images. "
        "Run `dvc repro -f -s register evaluate` where it was trained, or say --force --reason."
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_champion_whose_training_nobody_recorded_is_judged_with_a_word(
    registered, client, write_model_dir, caplog: pytest.LogCaptureFixture
) -> None:
    old = challenger(client)
    client.set_model_version_tag("unet", old.number, "data.index_sha256", "of other data")
    write_model_dir(Path("models/final"), seed=1)
    registered.run("register")
    champion = tracking.version_by_number(client, "unet", old.number)
    with caplog.at_level(logging.WARNING):
        judgement = judge_versions(client, challenger(client), champion, DATA, read_placement())
    assert judgement.training_unknown == ("unet version 1",)
    assert "nobody recorded what unet version 1 was trained on" in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_training_that_went_on_from_a_versions_weights_has_seen_what_that_has_seen(
    registered, client, write_model_dir
) -> None:
    registered.run("evaluate")
    old = challenger(client)
    weights = {"path": "weights/old.safetensors", "sha256": old.weights_sha256}
    registered.write_recipe(train={"initial_weights": weights})
    key = move("train", "test")
    write_model_dir(Path("models/final"), seed=1)
    registered.run("shard", "register")
    assert challenger(client).tags["recipe.initial_weights_sha256"] == old.weights_sha256
    # Of versions that an earlier version of the project registered, the lineage alone tells.
    client.delete_model_version_tag("unet", "2", "recipe.initial_weights_sha256")
    with pytest.raises(RegistryError) as caught:
        judge_now(client)
    assert str(caught.value) == (
        "can't be judged: unet version 2 was trained on 1 of 5 groups of today's test split, such as "
        f"'{key}'. Restore the old split settings, or train it anew on today's split."
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_training_that_went_on_from_weights_of_unknown_training_is_refused(
    registered, client, write_model_dir
) -> None:
    old = challenger(client)
    client.set_model_version_tag("unet", old.number, "data.index_sha256", "of other data")
    weights = {"path": "weights/old.safetensors", "sha256": old.weights_sha256}
    registered.write_recipe(train={"initial_weights": weights})
    write_model_dir(Path("models/final"), seed=1)
    registered.run("register")
    with pytest.raises(RegistryError, match=r"^can't be judged: nobody recorded what unet version 2 was trained on: "):
        judge_now(client)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_weights_of_no_version_are_told_of(
    registered, client, write_model_dir, caplog: pytest.LogCaptureFixture
) -> None:
    registered.write_recipe(train={"initial_weights": {"path": "weights/far.safetensors", "sha256": "f" * 64}})
    write_model_dir(Path("models/final"), seed=1)
    registered.run("register")
    judge_now(client)
    assert (
        "unet version 2 began with weights of a file that is no version of this registry (ffffffffffff): what those "
        "have seen is unknown"
    ) in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_evaluating_on_other_splits_neither_scores_what_was_seen_nor_forgets_it(registered, client) -> None:
    registered.run("evaluate")
    splits, recorded = SPLITS.read_text(encoding="utf-8"), _recorded(client)
    key = move("train", "test")
    with pytest.raises(RegistryError, match=f"unet version 1 was trained on 1 of .* such as '{key}'"):
        registered.run("evaluate")
    # As if the shards were others, too; nothing is test that the model has seen.
    SPLITS.write_text(splits, encoding="utf-8")
    move("test", "train")
    client.set_model_version_tag("unet", "1", "data.index_sha256", "of other data")
    registered.run("evaluate")
    assert _recorded(client) == recorded


def _recorded(client) -> str:
    run = challenger(client).run_id
    return Path(client.download_artifacts(run, "evaluation/training_groups.json")).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("text", ["", '{"s01": ', '{"s01": 7}', "[]"])
def test_a_damaged_record_of_the_training_is_an_error_and_not_unknown(registered, client, text: str) -> None:
    Path("training_groups.json").write_text(text, encoding="utf-8")
    version = challenger(client)
    tracking.log_to_run(client, version.run_id, metrics={}, files=[Path("training_groups.json")])
    with pytest.raises(RegistryError) as caught:
        judge_now(client)
    assert str(caught.value).startswith(
        "can't be judged: what unet version 1 was trained on can't be read: evaluation/training_groups.json of run "
        f"{version.run_id}: "
    )
    assert str(caught.value).endswith(". Run `dvc repro -f -s evaluate` on the splits of its training.")
    registered.run("evaluate")
    assert judge_now(client).training_unknown == ()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("status", [403, 500])
def test_a_record_that_the_artifact_store_does_not_give_is_an_error_and_not_unknown(
    registered, client, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

    registered.run("evaluate")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        # Where the files of the run lie behind a server.
        uri = f"http://user:secret@127.0.0.1:{server.server_port}/api/2.0/mlflow-artifacts/artifacts/run"
        with sqlite3.connect(registered.root / "mlflow.db") as store:
            store.execute("UPDATE runs SET artifact_uri = ?", (uri,))
        store.close()
        with pytest.raises(RegistryError, match=r"^MLflow refused: listing files of a run: ") as caught:
            judge_now(client)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert "secret" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_was_judged_on_the_same_images_counts_though_its_version_is_gone(
    registered, client, write_model_dir
) -> None:
    first = challenger(client)
    assert judge_now(client).judgements_before == 0
    assert judge_now(client).judgements_before == 0, "asking again for the same version is no new look"
    client.delete_model_version("unet", first.number)
    # The same images, held in other bytes.
    registered.write_recipe(shard={"codec": "png"})
    write_model_dir(Path("models/final"), seed=1)
    registered.run("shard", "register")
    assert judge_now(client).judgements_before == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_limits_are_measured_on_the_challenger(registered, client) -> None:
    registered.write_recipe(promote={"max_weights_mb": 0.0001, "max_latency_ms": 0.0001, "max_ece": 0.0})
    verdict = judge_now(client).verdict
    assert verdict.decision == "not promoted"
    assert [reason.split(" ")[0] for reason in verdict.reasons] == ["calibration", "weights", "time"]
    assert verdict.measured.weights_mb is not None
    assert verdict.measured.weights_mb < 1
