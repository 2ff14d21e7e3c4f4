import dataclasses
from pathlib import Path

from pipeline.catalog import CatalogRow, read_catalog, write_catalog

ROW = CatalogRow(
    key="007",
    image="images/007.png",
    masks=("masks/ring/007.png", "masks/plus/007.png"),
    group="patient 1",
    declared_split=None,
    batch=2,
    image_sha256="a" * 64,
    mask_sha256="b" * 64,
)
CHECKED = dataclasses.replace(ROW, key="größe", declared_split="train", height=12, width=16)
TOLD = dataclasses.replace(
    ROW, key="a", stratum="north", position=3, slices={"stain": "he", "age": "30"}, batch_pixels=7_000_000_000
)


def test_rows_are_read_as_they_were_written_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "data" / "catalog.parquet"
    write_catalog(path, [CHECKED, ROW, TOLD])
    assert read_catalog(path) == [CHECKED, ROW, TOLD]


def test_a_catalog_without_rows_is_read_as_one(tmp_path: Path) -> None:
    write_catalog(tmp_path / "c.parquet", [])
    assert read_catalog(tmp_path / "c.parquet") == []


def test_equal_rows_are_equal_bytes(tmp_path: Path) -> None:
    one, other, third = (tmp_path / name for name in ("1.parquet", "2.parquet", "3.parquet"))
    write_catalog(one, [ROW, CHECKED])
    write_catalog(other, read_catalog(one))
    write_catalog(third, [CHECKED, ROW])
    assert one.read_bytes() == other.read_bytes()
    assert one.read_bytes() != third.read_bytes()


def test_the_order_of_slices_is_no_difference(tmp_path: Path) -> None:
    write_catalog(tmp_path / "1.parquet", [TOLD])
    write_catalog(tmp_path / "2.parquet", [dataclasses.replace(TOLD, slices={"age": "30", "stain": "he"})])
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
