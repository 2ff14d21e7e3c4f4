from pathlib import Path

import pytest

from pipeline.catalog import CatalogRow, read_catalog
from pipeline.ledger import read_ledger
from unet_core.errors import DataError
from unet_core.hashing import hash_file

CATALOG = Path("data/catalog.parquet")


def refusal(tree) -> str:
    with pytest.raises(DataError) as caught:
        tree.run("ingest")
    return str(caught.value)


def test_the_catalog_has_one_row_for_each_recorded_sample(small_data) -> None:
    small_data.run("ingest")
    rows = read_catalog(CATALOG)
    assert [row.key for row in rows] == [f"s{number:02d}" for number in range(12)]
    line = read_ledger(Path("arrivals/raw.jsonl"))[0]
    assert rows[0] == CatalogRow(
        key="s00",
        image="images/s00.png",
        masks=("masks/s00.png",),
        group="s00",
        declared_split=None,
        batch=1,
        batch_pixels=12 * 16 * 12,
        image_sha256=hash_file(Path("raw/images/s00.png")),
        mask_sha256=line.mask_sha256,
    )


def test_a_table_gives_groups_and_declared_splits(tree) -> None:
    tree.add_pairs(["a", "b"])
    (tree.source / "about.csv").write_text("id,patient,use\na,p1,learn\nb,p1,learn\n", encoding="utf-8")
    about = {"table": "about.csv", "key_column": "id", "group_column": "patient", "split_column": "use"}
    tree.write_recipe(ingest=about)
    tree.record()
    tree.run("ingest")
    assert [(row.key, row.group, row.declared_split) for row in read_catalog(CATALOG)] == [
        ("a", "p1", "learn"),
        ("b", "p1", "learn"),
    ]


def test_path_and_table_tell_the_rest(tree) -> None:
    write = {"image_pattern": "images/{modality}_{key}.png", "mask_pattern": "masks/{modality}_{key}.png"}
    tree.add_pairs(["ct_a", "mr_b"])
    (tree.source / "about.csv").write_text("key,site,z\na,north,2\nb,south,1\n", encoding="utf-8")
    columns = {"stratum_column": "site", "order_column": "z", "slice_columns": ["site"]}
    tree.write_recipe(ingest={**write, "table": "about.csv", **columns})
    tree.record()
    tree.run("ingest")
    assert [(row.key, row.stratum, row.position, row.slices) for row in read_catalog(CATALOG)] == [
        ("a", "north", 2, {"modality": "ct", "site": "north"}),
        ("b", "south", 1, {"modality": "mr", "site": "south"}),
    ]


def test_a_sample_without_a_row_in_the_table_is_named(tree) -> None:
    tree.add_pairs(["a", "b"])
    (tree.source / "about.csv").write_text("key,patient\na,p1\n", encoding="utf-8")
    tree.write_recipe(ingest={"table": "about.csv", "group_column": "patient"})
    tree.record()
    assert refusal(tree) == "no row for a sample: raw/about.csv: b. Add the row, or correct key_column."


def test_a_sample_that_is_not_recorded_waits_and_is_mentioned(small_data, caplog: pytest.LogCaptureFixture) -> None:
    small_data.add_pair("later")
    small_data.run("ingest")
    assert "later" not in {row.key for row in read_catalog(CATALOG)}
    assert "1 new samples are not recorded yet (later ...): run `unet add`" in caplog.text


def test_a_second_batch_keeps_the_number_of_the_first(small_data) -> None:
    small_data.add_pair("later")
    small_data.add_pair("s00", draw="corrected")
    small_data.record()
    small_data.run("ingest")
    batches = {row.key: row.batch for row in read_catalog(CATALOG)}
    assert (batches["later"], batches["s00"], batches["s01"]) == (2, 1, 1)


def test_a_recorded_sample_that_is_gone_is_named(small_data) -> None:
    small_data.remove_pair("s03")
    assert refusal(small_data) == (
        "a recorded sample is missing: s03: images/s03.png is not in raw. "
        "Restore it, or record its removal with `unet add --allow-removal`."
    )
    assert not CATALOG.exists()


def test_a_recorded_removal_is_no_missing_sample(small_data) -> None:
    small_data.remove_pair("s03")
    small_data.record()
    small_data.run("ingest")
    assert "s03" not in {row.key for row in read_catalog(CATALOG)}


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_file_that_has_changed_since_it_was_recorded_is_named(small_data, folder: str) -> None:
    path = small_data.source / folder / "s03.png"
    path.write_bytes(path.read_bytes() + b"\0")
    assert refusal(small_data) == (
        "a recorded sample has changed: s03: images/s03.png or its mask is not what the ledger says. "
        "Record the change with `unet add`, or restore the file."
    )


def test_without_a_ledger_nothing_is_recorded(tree) -> None:
    tree.add_pair("a")
    tree.write_recipe()
    assert refusal(tree).startswith("no ledger of arrivals: arrivals/raw.jsonl. Run `dvc pull` if a colleague")


def test_equal_sources_give_equal_catalogs(small_data) -> None:
    small_data.run("ingest")
    first = CATALOG.read_bytes()
    CATALOG.unlink()
    small_data.run("ingest")
    assert CATALOG.read_bytes() == first
