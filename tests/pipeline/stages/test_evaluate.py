import json
from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.membership import Membership
from pipeline.receipt import read_receipt
from pipeline.scores import read_rows
from pipeline.stages.evaluate import EvaluateConfig, training_groups
from unet_core.errors import RecipeError
from unet_core.index import read_index
from unet_core.reader import ShardReader

EVALUATION, METRICS, PLOTS = Path("reports/evaluation"), Path("metrics/evaluate.json"), Path("plots")


def test_an_impossible_number_of_draws_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"evaluate\.bootstrap_draws"):
        EvaluateConfig(score="dice", bootstrap_draws=0, seed=0)


@pytest.mark.parametrize("wrong", [{"tolerance_px": -1.0}, {"seed": -1}])
def test_other_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(RecipeError, match=f"evaluate.{next(iter(wrong))}"):
        EvaluateConfig(**{"score": "dice", "bootstrap_draws": 1, "seed": 0, **wrong})


def test_a_model_has_seen_what_it_learnt_from_and_what_chose_its_weights() -> None:
    memberships = {key: Membership(group=f"group {key}", slices={}) for key in "abcd"}
    splits = {"b": "val", "a": "train", "c": "test", "d": None}
    assert training_groups(splits, memberships) == {"a": "group a", "b": "group b"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_test_image_is_scored_at_its_own_size_and_logged_to_the_run(registered, client) -> None:
    registered.write_recipe(evaluate={"slice_by": ["size"]})
    registered.run("evaluate")
    index = read_index(Path("data/shards"))
    keys = set(ShardReader(Path("data/shards"), index.of_split("test")).keys())
    rows = read_rows(EVALUATION / "scores.parquet")
    assert {row.key for row in rows} == keys
    assert {row.class_name for row in rows} == {"background", "cell"}
    assert all(row.dice == 1 and row.false_positive == row.false_negative == 0 for row in rows)
    for key in keys:
        pixels = sum(row.true_positive for row in rows if row.key == key)
        assert pixels == 16 * 12
    body = json.loads(METRICS.read_text(encoding="utf-8"))
    assert (body["dice"], body["interval_95"], body["images"]) == (1.0, [1.0, 1.0], len(keys))
    assert body["class_surface_dice"] == {"cell": 1.0}
    assert body["slices"]["size"]["up to 16 px"]["images"] == len(keys)
    assert {row.group for row in rows} == keys
    run = client.get_run(tracking.version_by_alias(client, "unet", tracking.CHALLENGER).run_id)
    assert (run.data.metrics["test_dice"], run.data.metrics["test_class_recall/cell"]) == (1.0, 1.0)
    logged = {entry.path for entry in client.list_artifacts(run.info.run_id, "evaluation")}
    names = ("evaluate.json", "scores.parquet", "training_groups.json", "calibration.png", "cases.png")
    assert {f"evaluation/{name}" for name in names} <= logged
    text = client.get_model_version("unet", "1").description
    assert f"| mean of {len(keys)} images in {len(keys)} groups | 1.000 | 1.000 to 1.000 |" in text
    registered.run("evaluate")
    assert client.get_model_version("unet", "1").description == text
    seen = json.loads((EVALUATION / "training_groups.json").read_text(encoding="utf-8"))
    assert len(seen) == 12 - len(keys)
    assert not keys & set(seen)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_evaluating_again_gives_equal_bytes_also_from_an_empty_registry(registered, client) -> None:
    def results() -> dict[str, bytes]:
        files = [path for folder in (EVALUATION, PLOTS) for path in folder.rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in [METRICS, *files]}

    registered.run("evaluate")
    first = results()
    version = tracking.find_version(client, "unet", read_receipt(Path("models/receipt.json")).model_sha256)
    client.delete_model_version("unet", version.number)
    registered.run("evaluate")
    assert results() == first
