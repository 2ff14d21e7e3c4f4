import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.catalog import CatalogRow
from pipeline.stages.shard import ShardConfig, plan_shards
from pipeline.storage import read_file
from unet_core.errors import DataError, RecipeError
from unet_core.images import read_image
from unet_core.index import INDEX_NAME, read_index
from unet_core.reader import ShardReader
from unet_core.samples import ClassMap, ImageConfig, Window
from unet_core.splits import SPLITS

SHARDS = Path("data/shards")
ALL = ("ingest", "validate", "split", "shard")


def files() -> dict[str, bytes]:
    return {path.relative_to(SHARDS).as_posix(): path.read_bytes() for path in SHARDS.rglob("*") if path.is_file()}


def tars() -> dict[str, bytes]:
    return {name: body for name, body in files().items() if name.endswith(".tar")}


def marks() -> dict[str, tuple[int, int]]:
    """Which file lies under each tar's name, and when it was written."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in SHARDS.rglob("*.tar")}


def shard_of(key: str) -> str:
    """The shard that holds a sample."""
    (name,) = (shard.name for shard in read_index(SHARDS).shards if key in set(ShardReader(SHARDS, [shard]).keys()))
    return name


def shards_at_once() -> dict[str, bytes]:
    """What an empty clone of this tree would make."""
    kept = Path("data/kept")
    SHARDS.rename(kept)
    try:
        from pipeline.stages import shard

        shard.run(accepted=Path("data/accepted.parquet"), splits=Path("data/splits.csv"), shards=SHARDS)
        return files()
    finally:
        shutil.rmtree(SHARDS)
        kept.rename(SHARDS)


def test_shards_hold_every_sample_of_their_split(sharded) -> None:
    index = read_index(SHARDS)
    keys = []
    for split in ("train", "val", "test"):
        for sample in ShardReader(SHARDS, index.of_split(split)):
            keys.append(sample.key)
            image = read_image(read_file(str(sharded.source), f"images/{sample.key}.png"), ImageConfig(channels=1))
            assert (sample.image == image).all()
            assert (sample.mask == (image[..., 0] >= 215)).all()
    assert sorted(keys) == [f"s{number:02d}" for number in range(12)]


def test_names_say_split_batch_and_number(sharded) -> None:
    names = [shard.name for shard in read_index(SHARDS).shards]
    assert all(re.fullmatch(r"(train|val|test)/b0001-\d{5}\.tar", name) for name in names)
    assert names[0].startswith("train/")
    assert set(names) == set(tars())
    assert {name.partition("/")[0] for name in names} == {"train", "val", "test"}


def test_the_number_of_shards_follows_the_decoded_size(sharded) -> None:
    # 12 pictures of 384 bytes, 800 bytes a shard: 6 numbers in each split, those that no key falls on are left out.
    assert {int(shard.name[-9:-4]) for shard in read_index(SHARDS).shards} <= set(range(6))
    assert 6 <= len(tars()) <= 12
    sharded.write_recipe(shard={"target_mb": 1.0})
    sharded.run("shard")
    assert len(read_index(SHARDS).shards) == 3
    assert len(tars()) == 3


def test_a_small_target_gives_nearly_each_sample_its_own_shard(small_data) -> None:
    small_data.write_recipe(shard={"target_mb": 0.00001})
    small_data.run(*ALL)
    assert {shard.num_samples for shard in read_index(SHARDS).shards} <= {1, 2}
    assert len(tars()) >= 11


def test_a_second_run_writes_no_shard_again(sharded) -> None:
    before, index = marks(), files()[INDEX_NAME]
    sharded.run("shard")
    assert marks() == before
    assert files()[INDEX_NAME] == index


def test_adding_a_batch_leaves_old_shards_alone(sharded) -> None:
    before, old = marks(), tars()
    sharded.add_pairs([f"t{number:02d}" for number in range(6)])
    sharded.record()
    sharded.run(*ALL)
    assert {name: marks()[name] for name in before} == before
    assert {name: tars()[name] for name in old} == old
    assert len(tars()) > len(old)
    assert {name.partition("/")[2][:5] for name in set(tars()) - set(old)} == {"b0002"}
    assert files() == shards_at_once()


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_corrected_file_rewrites_its_own_shard_only(sharded, folder: str) -> None:
    before, old = marks(), tars()
    holder = shard_of("s05")
    sharded.turn_file(folder, "s05")
    sharded.record()
    sharded.run(*ALL)
    changed = {name for name, body in tars().items() if old.get(name) != body}
    assert changed == {holder}
    assert {name for name, mark in marks().items() if before.get(name) != mark} == {str(SHARDS / holder)}
    assert files() == shards_at_once()


def test_a_removed_sample_leaves_the_shards_of_an_empty_folder(sharded) -> None:
    old = tars()
    sharded.remove_pair("s05")
    sharded.record()
    sharded.run(*ALL)
    assert files() == shards_at_once()
    assert "s05" not in set(ShardReader(SHARDS, read_index(SHARDS).shards).keys())
    # Other splits, which lost nothing, keep their shards.
    assert sum(tars().get(name) == body for name, body in old.items()) >= 3


def test_many_steps_give_the_shards_of_one(tree) -> None:
    tree.write_recipe()
    tree.add_pairs([f"s{number:02d}" for number in range(12)])
    rng = np.random.default_rng(0)
    for step in range(4):
        tree.record()
        tree.run(*ALL)
        match step % 3:
            case 0:
                tree.add_pairs([f"n{step}{letter}" for letter in "abc"])
            case 1:
                tree.add_pair(f"s{rng.integers(12):02d}", draw=f"step {step}")
            case 2:
                tree.remove_pair(f"n{step - 2}b")
    tree.record()
    tree.run(*ALL)
    assert files() == shards_at_once()


def test_what_an_interrupted_run_left_is_removed_and_written_anew(sharded) -> None:
    whole = files()
    first, second = [SHARDS / name for name in sorted(tars()) if name.startswith("train")][:2]
    first.unlink()
    damaged = second
    damaged.write_bytes(damaged.read_bytes()[:-512])
    (SHARDS / "train" / "b0001-00002.tar.partial").write_bytes(b"half")
    (SHARDS / "train" / "b0099-00000.tar").write_bytes(b"of another time")
    sharded.run("shard")
    assert files() == whole


def test_a_damaged_index_only_costs_the_work_again(sharded) -> None:
    whole = files()
    (SHARDS / INDEX_NAME).write_text("{", encoding="utf-8")
    sharded.run("shard")
    assert files() == whole


def test_another_order_of_classes_encodes_all_shards_anew(sharded) -> None:
    before = marks()
    sharded.write_recipe(masks={"classes": {"cell": 255, "background": 0}})
    sharded.run("validate", "split", "shard")
    assert all(marks()[name] != mark for name, mark in before.items())
    assert files() == shards_at_once()


def test_names_of_any_script_survive(tree) -> None:
    tree.write_recipe()
    keys = [f"Größe {number}" for number in range(6)] + [f"図 {number}" for number in range(6)]
    tree.add_pairs(keys)
    tree.record()
    tree.run(*ALL)
    index = read_index(SHARDS)
    assert {
        sample.key for split in ("train", "val", "test") for sample in ShardReader(SHARDS, index.of_split(split))
    } == set(keys)


def test_a_file_that_vanishes_under_the_stage_stops_it_and_leaves_nothing_half_written(small_data) -> None:
    small_data.run("ingest", "validate", "split")
    (small_data.source / "images" / "s05.png").unlink()
    with pytest.raises(DataError, match=r"^a file is missing: raw/images/s05.png"):
        small_data.run("shard")
    assert not (SHARDS / INDEX_NAME).exists()
    small_data.add_pair("s05")
    small_data.run("shard")
    assert files() == shards_at_once()
    assert not list(SHARDS.rglob("*.partial"))


@pytest.mark.parametrize("target_mb", [0.0, -1.0])
def test_a_target_that_is_no_size_is_refused(target_mb: float) -> None:
    with pytest.raises(RecipeError, match=r"^shard.target_mb: .*: must be above 0.$"):
        ShardConfig(target_mb=target_mb, tile_px=None, codec="raw")


# Membership: shards planned from rows that know what was recorded of their batch


def row(key: str, batch: int, image_sha256: str = "i", batch_pixels: int = 3000) -> CatalogRow:
    return CatalogRow(
        key=key, image=key, masks=(key,), group=key, declared_split=None, batch=batch, image_sha256=image_sha256,
        mask_sha256="m", height=10, width=10, batch_pixels=batch_pixels,
    )  # fmt: skip


def planned(rows: list[CatalogRow]) -> dict[str, str]:
    """Contents of the shards by name; 3,000 pixels of 2 bytes are 8 shards a split."""
    config = ShardConfig(target_mb=0.00075, tile_px=None, codec="raw")
    class_map = ClassMap(kind="multiclass", classes={"a": 0, "b": 1})
    splits = {row.key: SPLITS[len(row.key) % 3] for row in rows}
    jobs = plan_shards(rows, splits, config, ImageConfig(channels=1), class_map)
    assert sorted(row.key for job in jobs for row in job.rows) == sorted(splits)
    return {job.name: job.content for job in jobs}


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in one | other if one.get(name) != other.get(name)}


ROWS = st.lists(
    st.builds(row, st.text(min_size=1, max_size=8), st.integers(1, 3)),
    min_size=2,
    max_size=40,
    unique_by=lambda r: r.key,
)


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(ROWS, st.data())
def test_removing_or_relabelling_a_sample_changes_its_own_shard_only(
    rows: list[CatalogRow], data: st.DataObject
) -> None:
    number = data.draw(st.integers(0, len(rows) - 1))
    before = planned(rows)
    (own,) = differing(
        before, planned([*rows[:number], replace(rows[number], image_sha256="new"), *rows[number + 1 :]])
    )
    assert differing(before, planned([*rows[:number], *rows[number + 1 :]])) == {own}


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(ROWS, ROWS)
def test_adding_a_batch_changes_no_shard_that_is_there(old: list[CatalogRow], new: list[CatalogRow]) -> None:
    known = {row.key for row in old}
    before = planned(old)
    after = planned([*old, *(replace(row, batch=4, batch_pixels=9000) for row in new if row.key not in known)])
    assert {name: after[name] for name in before} == before


@settings(deadline=None, derandomize=True, database=None, max_examples=20)
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_shard(rows: list[CatalogRow], random: Random) -> None:
    mixed = list(rows)
    random.shuffle(mixed)
    assert planned(mixed) == planned(rows)


# Tiles


def test_training_images_are_cut_into_tiles_and_the_others_stay_whole(small_data) -> None:
    small_data.write_recipe(shard={"tile_px": 10})
    small_data.run(*ALL)
    index = read_index(SHARDS)
    train = list(ShardReader(SHARDS, index.of_split("train")))
    assert {sample.image.shape for sample in train} == {(6, 8, 1)}
    for sample in train:
        key, _, place = sample.key.partition("@")
        top, left = (step * int(part) for step, part in zip((6, 8), place.split("-"), strict=True))
        image = read_image(read_file(str(small_data.source), f"images/{key}.png"), ImageConfig(channels=1))
        assert (sample.image == image[top : top + 6, left : left + 8]).all()
    assert index.num_samples("train") % 4 == 0
    for split in ("val", "test"):
        assert {sample.image.shape for sample in ShardReader(SHARDS, index.of_split(split))} == {(12, 16, 1)}
    statistics = index.train_statistics()
    small_data.write_recipe()
    small_data.run("shard")
    assert read_index(SHARDS).train_statistics() == statistics


def test_png_shards_hold_the_same_pixels(sharded) -> None:
    raw = {sample.key: sample for sample in ShardReader(SHARDS, read_index(SHARDS).shards)}
    before = tars()
    sharded.write_recipe(shard={"codec": "png"})
    sharded.run("shard")
    assert not set(before.values()) & set(tars().values())
    for sample in ShardReader(SHARDS, read_index(SHARDS).shards):
        assert (sample.image == raw[sample.key].image).all()
        assert (sample.mask == raw[sample.key].mask).all()
    assert files() == shards_at_once()


def test_original_files_pass_through_and_are_read_to_the_same_samples(sharded) -> None:
    index = read_index(SHARDS)
    raw = {sample.key: sample for sample in ShardReader(SHARDS, index.shards)}
    sharded.write_recipe(shard={"codec": "original"})
    sharded.run("shard")
    found = read_index(SHARDS)
    assert found.train_statistics() == index.train_statistics()
    for split in SPLITS:
        assert found.class_pixels(split) == index.class_pixels(split)
    reader = ShardReader(SHARDS, found.shards)
    for number in range(len(reader)):
        sample, part = reader.read(number), reader.read(number, Window(top=3, left=2, height=5, width=7))
        assert (sample.image == raw[sample.key].image).all()
        assert (sample.mask == raw[sample.key].mask).all()
        assert sample.mask.dtype == raw[sample.key].mask.dtype
        assert (part.image == sample.image[3:8, 2:9]).all()
        assert (part.mask == sample.mask[3:8, 2:9]).all()
    with tarfile.open(SHARDS / shard_of("s00")) as tar:
        member = tar.extractfile("s00.image.png")
        assert member is not None
        assert member.read() == (sharded.source / "images/s00.png").read_bytes()
    assert files() == shards_at_once()


def test_original_files_are_decoded_by_validation_only(sharded, monkeypatch: pytest.MonkeyPatch) -> None:
    sharded.write_recipe(shard={"codec": "original"})
    monkeypatch.setattr("unet_core.images.decode", lambda *_: pytest.fail("decoded"))
    sharded.run("shard")


@pytest.mark.parametrize(("change", "text"), [
    ({"tile_px": 0}, r"^shard.tile_px: 0: must be at least 1, or null.$"),
    ({"codec": "zip"}, r"^shard.codec: 'zip': choose one of raw, png, original.$"),
    ({"codec": "original", "tile_px": 64}, r"^shard.tile_px: 64: original files can't be cut. Set it to null, or choose"),
])  # fmt: skip
def test_impossible_knobs_are_refused(change: dict[str, object], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        ShardConfig(**{"target_mb": 1.0, "tile_px": None, "codec": "raw", **change})


def test_a_key_that_a_tile_could_have_is_refused_where_images_are_cut(small_data) -> None:
    for folder in ("images", "masks"):
        path = small_data.source / folder / "s00.png"
        shutil.copy(path, path.with_name("s00@0-0.png"))
    small_data.write_recipe(shard={"tile_px": 10})
    small_data.record()
    with pytest.raises(DataError, match=r"^a key that a tile could have: s00@0-0\. Rename the sample"):
        small_data.run(*ALL)


def test_an_accepted_sample_that_split_did_not_decide_on_is_an_error(sharded) -> None:
    table = Path("data/splits.csv")
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if "s03" not in line))
    with pytest.raises(
        DataError, match=r"^1 accepted samples have no split, such as 's03'\. Run `dvc repro -f -s split`"
    ):
        sharded.run("shard")
