from pathlib import Path

import pytest

from pipeline.catalog import CatalogRow, write_catalog
from pipeline.membership import Membership, groups_in, read_memberships, todays_groups
from unet_core.errors import DataError
from unet_core.splits import SplitConfig

SPLIT = SplitConfig(seed=0, val_fraction=0.1, test_fraction=0.1)
BLOCKS = SplitConfig(seed=0, val_fraction=0.1, test_fraction=0.1, block=5)


@pytest.fixture
def accepted(tmp_path: Path) -> Path:
    rows = [
        CatalogRow(
            key=f"slice {position}",
            image="",
            masks=(),
            group="volume",
            declared_split=None,
            stratum="site a" if position else None,
            position=position,
            slices={"stain": "pink"},
            batch=3,
            image_sha256="",
            mask_sha256="",
            height=200,
            width=100 * (position + 1),
        )
        for position in (0, 4, 5)
    ]
    write_catalog(tmp_path / "accepted.parquet", rows)
    return tmp_path / "accepted.parquet"


def test_a_sample_belongs_to_its_group_or_to_the_block_of_its_volume(accepted: Path) -> None:
    whole, blocks = (read_memberships(accepted, split, []) for split in (SPLIT, BLOCKS))
    assert {found.group for found in whole.values()} == {"volume"}
    assert [found.group for found in blocks.values()] == ["volume#0", "volume#0", "volume#1"]


def test_slices_are_the_sources_columns_and_those_of_the_recipe(accepted: Path) -> None:
    plain = read_memberships(accepted, SPLIT, [])
    assert plain["slice 0"].slices == {"stain": "pink"}
    found = read_memberships(accepted, SPLIT, ["size", "stratum", "batch", "group"])
    assert found["slice 0"].slices == {"stain": "pink", "size": "up to 256 px", "batch": "3", "group": "volume"}
    assert found["slice 5"].slices["stratum"] == "site a"
    assert [row.slices["size"] for row in found.values()] == ["up to 256 px", "up to 512 px", "up to 1024 px"]


def test_what_was_recorded_under_an_old_block_is_named_as_it_is_today() -> None:
    today = {"s1": Membership(group="volume#7", slices={})}
    assert set(todays_groups({"s1": "volume#3", "gone": "volume#4"}, today)) == {"volume#7", "volume#4"}


def test_groups_of_splits_are_those_of_their_samples() -> None:
    memberships = {key: Membership(group=f"group {key}", slices={}) for key in "abc"}
    assert groups_in({"c": "test", "a": "test", "b": "train"}, memberships, "test") == {
        "a": "group a",
        "c": "group c",
    }
    with pytest.raises(DataError) as caught:
        groups_in({"z": "test"}, memberships, "test")
    assert str(caught.value) == ("splits and catalog differ: z has a split and is not in the catalog. Run `dvc repro`.")
