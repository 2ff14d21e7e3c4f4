import json
from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.fetched_model import fetch_model
from pipeline.receipt import read_receipt
from unet_core.checkpoint import model_hash, read_spec, weights_hash
from unet_core.hashing import hash_file
from unet_core.samples import ClassMap

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]
MODEL, RECEIPT = Path("models/final"), Path("models/receipt.json")


def test_the_model_becomes_a_version_with_its_lineage_and_is_the_challenger(registered, client) -> None:
    version = tracking.version_by_alias(client, "unet", tracking.CHALLENGER)
    assert version is not None
    assert version.weights_sha256 == weights_hash(MODEL)
    assert version.tags["data.index_sha256"] == hash_file(Path("data/shards/index.json"))
    assert version.tags["recipe.sha256"] == hash_file(Path("params.yaml"))
    assert tracking.version_by_alias(client, "unet", tracking.CHAMPION) is None


def test_the_receipt_holds_model_and_hashes_and_nothing_of_the_registry(registered) -> None:
    assert json.loads(RECEIPT.read_text(encoding="utf-8")) == {
        "model": "unet",
        "model_sha256": model_hash(MODEL),
        "weights_sha256": weights_hash(MODEL),
        "index_sha256": hash_file(Path("data/shards/index.json")),
    }


def test_registering_again_makes_no_version_and_an_equal_receipt(registered, client) -> None:
    first, receipt = tracking.version_by_alias(client, "unet", tracking.CHALLENGER), RECEIPT.read_bytes()
    registered.run("register")
    assert len(client.search_model_versions("name = 'unet'")) == 1
    assert tracking.version_by_alias(client, "unet", tracking.CHALLENGER) == first
    assert RECEIPT.read_bytes() == receipt


def test_the_versions_page_is_written_once_and_what_people_write_there_stays(registered, client) -> None:
    def page() -> tuple[str, int]:
        version = client.get_model_version("unet", "1")
        return version.description, version.last_updated_timestamp

    text, time = page()
    assert text.startswith("Gives each pixel one of 2 classes: background, cell.")
    assert "unet predict FOLDER --model models:/unet/1 --out masks" in text
    assert "### Data\n\n" in text
    registered.run("register")
    assert page() == (text, time)
    client.update_model_version("unet", "1", f"Seen by Ann.\n\n{text}")
    registered.run("register")
    assert page()[0] == f"Seen by Ann.\n\n{text}"
    assert "models:/unet@champion" in client.get_registered_model("unet").description


def test_going_back_to_old_weights_finds_their_version_again(registered, client, write_model_dir) -> None:
    first = tracking.version_by_alias(client, "unet", tracking.CHALLENGER)
    write_model_dir(MODEL, inverted=True)
    registered.run("register")
    second = tracking.version_by_alias(client, "unet", tracking.CHALLENGER)
    assert second.weights_sha256 == read_receipt(RECEIPT).weights_sha256 != first.weights_sha256
    write_model_dir(MODEL)
    registered.run("register")
    assert tracking.version_by_alias(client, "unet", tracking.CHALLENGER).number == first.number
    assert len(client.search_model_versions("name = 'unet'")) == 2


def test_a_renamed_class_is_registered_under_its_new_name(
    registered, client, write_model_dir, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The weights of a repeated training are the same to the bit; what they mean is not."""
    before = weights_hash(MODEL)
    renamed = ClassMap(kind="multiclass", classes={"background": 0, "nucleus": 255}, background="background")
    write_model_dir(MODEL, renamed)
    assert weights_hash(MODEL) == before
    registered.run("register")
    assert "register: version 1 has the same weights under another description" in caplog.text
    version = tracking.version_by_alias(client, "unet", tracking.CHALLENGER)
    assert version is not None
    assert (version.number, version.weights_sha256) == ("2", before)
    assert read_spec(fetch_model(version, tmp_path / "download")).class_map.names == ("background", "nucleus")


def test_the_recipe_names_the_model(registered, client) -> None:
    registered.write_recipe(register={"model": "cells"})
    registered.run("register")
    assert tracking.version_by_alias(client, "cells", tracking.CHALLENGER) is not None
    assert read_receipt(RECEIPT).model == "cells"
