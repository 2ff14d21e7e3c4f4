import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import tracking
from pipeline.receipt import read_receipt
from pipeline.scores import ScoreRow, read_rows
from pipeline.stages.evaluate import EvaluateConfig, summarise, write_cases, write_plots
from unet_core.checkpoint import read_model
from unet_core.errors import DataError, RecipeError
from unet_core.index import read_index
from unet_core.model import ModelConfig, ModelSpec
from unet_core.packing import pack_all
from unet_core.reader import ShardReader
from unet_core.samples import ClassMap, ImageConfig, Sample
from unet_core.shards import write_shard

EVALUATION, METRICS, PLOTS = Path("reports/evaluation"), Path("metrics/evaluate.json"), Path("plots")
CONFIG = EvaluateConfig(score="dice", bootstrap_draws=100, seed=0)


def spec(class_map: ClassMap) -> ModelSpec:
    config = ModelConfig(width=2, depth=1, norm="none", input_statistics="train")
    return ModelSpec(
        config=config,
        images=ImageConfig(channels=1),
        class_map=class_map,
        mean=(0.5,),
        deviation=(0.5,),
        precision="float32",
    )


INDEXED = spec(ClassMap(kind="multiclass", classes={"soil": 0, "crop": 1}, background="soil"))
PLANES = spec(ClassMap(kind="multilabel", classes={"ring": 255}))


def row(key: str, name: str, counts: tuple[int, int, int], dice: float | None, *, scored: bool = True) -> ScoreRow:
    hit, extra, missed = counts
    return ScoreRow(
        key=key,
        class_name=name,
        scored=scored,
        true_positive=hit,
        false_positive=extra,
        false_negative=missed,
        dice=dice,
        iou=dice,
    )


def test_the_summary_is_the_mean_over_images_with_its_interval() -> None:
    rows = [
        row("a", "soil", (6, 0, 2), 0.9, scored=False),
        row("a", "crop", (1, 2, 0), 0.5),
        row("b", "soil", (8, 0, 0), 1.0, scored=False),
        row("b", "crop", (1, 0, 0), 1.0),
    ]
    body = summarise(rows, CONFIG, INDEXED)
    assert body["dice"] == 0.75
    assert body["images"] == 2
    assert body["interval_95"] == [0.5, 1.0]
    assert body["class_dice"] == {"soil": 0.95, "crop": 0.75}
    assert body["pooled_dice"]["crop"] == pytest.approx(4 / 6)
    assert body["pixel_error"] == pytest.approx(2 / 18)


def test_overlapping_classes_have_no_pixel_error() -> None:
    assert "pixel_error" not in summarise([row("a", "ring", (1, 0, 0), 1.0)], CONFIG, PLANES)


def test_without_any_defined_score_the_stage_says_why() -> None:
    rows = [row("a", "soil", (4, 0, 0), 1.0, scored=False), row("a", "crop", (0, 0, 0), None)]
    with pytest.raises(DataError) as caught:
        summarise(rows, CONFIG, INDEXED)
    assert str(caught.value) == (
        "no score is defined: no scored class occurs in the test images or predictions. "
        "Check masks.classes and the test split."
    )


def test_an_impossible_number_of_draws_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"evaluate\.bootstrap_draws"):
        EvaluateConfig(score="dice", bootstrap_draws=0, seed=0)


def test_bars_hold_defined_scores_whatever_the_classes_are_called(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "00_worst.png")
    scores = {"ring": 0.5, "plus, filled": 0.75, "nowhere": None}
    bars, _ = write_plots(tmp_path, {"class_dice": scores}, tmp_path)
    with bars.open(newline="", encoding="utf-8") as stream:
        read = list(csv.DictReader(stream))
    assert read == [{"class": "ring", "dice": "0.5"}, {"class": "plus, filled", "dice": "0.75"}]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_test_image_is_scored_at_its_own_size_and_logged_to_the_run(registered, client) -> None:
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
    run = client.get_run(tracking.version_by_alias(client, "unet", tracking.CHALLENGER).run_id)
    assert run.data.metrics["test_dice"] == 1.0
    logged = {entry.path for entry in client.list_artifacts(run.info.run_id, "evaluation")}
    assert {"evaluation/evaluate.json", "evaluation/scores.parquet"} <= logged


def test_worst_and_best_images_are_shown_from_their_ends(tmp_path: Path, write_model_dir) -> None:
    write_model_dir(tmp_path / "model", INDEXED.class_map)
    image, mask = np.zeros((4, 4, 1), dtype=np.uint8), np.zeros((4, 4), dtype=np.uint8)
    keys = [f"s{number}" for number in range(10)]
    samples = [Sample(key=key, image=image, mask=mask) for key in keys]
    shard = write_shard(tmp_path, "test/b0001-00000.tar", "content", pack_all(samples, INDEXED.class_map))
    # The scores fall from s9 to s0; s2 has none.
    rows = [row(key, "crop", (1, 1, 1), None if key == "s2" else number / 10) for number, key in enumerate(keys)]
    network, spec = read_model(tmp_path / "model")
    write_cases(tmp_path / "cases", rows, "dice", ShardReader(tmp_path, [shard]), network, spec)
    shown = json.loads((tmp_path / "cases" / "cases.json").read_text(encoding="utf-8"))
    assert shown["colours"]["soil"] == "#000000"
    assert [(case["kind"], case["key"], case["score"]) for case in shown["cases"]] == [
        *(("worst", f"s{number}", number / 10) for number in (0, 1, 3, 4)),
        *(("best", f"s{number}", number / 10) for number in (9, 8, 7, 6)),
    ]
    assert all((tmp_path / "cases" / case["picture"]).is_file() for case in shown["cases"])


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
