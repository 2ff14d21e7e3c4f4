"""Drift as a reason to retrain: a real registry, a real log."""

import logging
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import tracking
from pipeline.placement import read_placement
from pipeline.predict import predict
from pipeline.predict_image import Options
from pipeline.retrain_drift import find_drift
from pipeline.retrain_standing import nowhere, read_standing
from unet_core.index import INDEX_NAME

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

SHARDS, RECEIPT = Path("data/shards"), Path("models/receipt.json")
SECTION = "drift: {min_images: 3}\n"


@pytest.fixture
def champion(registered, client):
    """The model of the receipt is champion, and was given 24 images darker than those that it was trained on."""
    version = tracking.version_by_number(client, "unet", "1")
    assert version is not None
    tracking.set_alias(client, version, tracking.CHAMPION)
    rng = np.random.default_rng(0)
    Path("dark").mkdir()
    for number in range(24):
        Image.fromarray(rng.integers(0, 9, size=(12, 16), dtype=np.uint8)).save(f"dark/{number}.png")
    options = Options(exact=False, tta=False, save=frozenset({"mask"}))
    predict(["dark"], out=Path("out"), model="models:/unet@champion", options=options, log_what="statistics")
    return registered


def write_section(text: str = SECTION) -> None:
    with Path("params.yaml").open("a", encoding="utf-8") as stream:
        stream.write(text)


def ask(client, *, shards: Path = SHARDS, may_store: bool = True) -> str | None:
    standing = read_standing(client, receipt=RECEIPT, shards=SHARDS)
    return find_drift(standing, shards, read_placement(), may_store=may_store)


def test_without_the_section_nobody_looks_and_with_it_a_sentence_is_the_reason(champion, client) -> None:
    assert ask(client) is None
    write_section()
    said = ask(client, may_store=False)
    assert said is not None
    assert said.startswith("recent inputs differ from the training data: ")
    assert "brightness 0.01" in said
    # A dry run leaves nothing behind.
    assert not Path(".unet/drift").exists()
    assert ask(client) == said
    assert len(list(Path(".unet/drift").iterdir())) == 1


def test_too_few_predictions_are_no_reason(champion, client) -> None:
    write_section("drift: {min_images: 25}\n")
    assert ask(client) is None


def test_without_champion_or_shards_there_is_nothing_to_compare(champion, client) -> None:
    write_section()
    assert ask(client, shards=Path("elsewhere")) is None
    client.delete_registered_model_alias("unet", tracking.CHAMPION)
    assert ask(client) is None


def test_shards_of_another_kind_are_told_and_keep_nobody_from_training(champion, client, caplog) -> None:
    champion.write_recipe(images={"percentiles": [1, 99]})
    write_section()
    with caplog.at_level(logging.WARNING):
        assert ask(client) is None
    assert caplog.messages[0].startswith("no look at drift: the model was trained on images that are read in another")


def test_a_log_that_can_not_be_read_is_told_and_keeps_nobody_from_training(tree, caplog) -> None:
    tree.write_recipe()
    write_section()
    day = Path(".unet/predictions", f"{datetime.now(UTC):%Y-%m-%d}.jsonl")
    day.mkdir(parents=True)
    SHARDS.mkdir(parents=True)
    (SHARDS / INDEX_NAME).touch()
    champion = tracking.Version(name="unet", number="1", run_id=None, model_sha256="m", weights_sha256="w", tags={})
    with caplog.at_level(logging.WARNING):
        said = find_drift(replace(nowhere(), champion=champion), SHARDS, read_placement(), may_store=True)
    assert said is None
    assert caplog.messages == [f"no look at drift: Is a directory: {day}"]


def test_what_the_look_needs_imports_no_torch() -> None:
    """An idle retraining stays quick once the training images were measured."""
    code = "import sys, pipeline.drift_look, pipeline.retrain_drift; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
