import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.stages.shard import ShardConfig
from pipeline.storage import read_file
from unet_core.errors import DataError, RecipeError
from unet_core.images import ImageConfig, read_image
from unet_core.shards import INDEX_NAME, ShardReader, read_index

SHARDS = Path("data/shards")
ALL = ("ingest", "validate", "split", "shard")


def files() -> dict[str, bytes]:
    return {path.relative_to(SHARDS).as_posix(): path.read_bytes() for path in SHARDS.rglob("*") if path.is_file()}


def tars() -> dict[str, bytes]:
    return {name: body for name, body in files().items() if name.endswith(".tar")}


def marks() -> dict[str, tuple[int, int]]:
    """Which file lies under each tar's name, and when it was written."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in SHARDS.rglob("*.tar")}


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
    assert names[:2] == ["train/b0001-00000.tar", "train/b0001-00001.tar"]
    assert set(names) == set(tars())
    assert {name.partition("/")[0] for name in names} == {"train", "val", "test"}


def test_a_shard_is_closed_at_its_decoded_size(sharded) -> None:
    assert {len(shard.samples) for shard in read_index(SHARDS).shards} <= {1, 2}
    sharded.write_recipe(shard={"target_mb": 1.0})
    sharded.run("shard")
    assert len(read_index(SHARDS).shards) == 3
    assert len(tars()) == 3


def test_a_sample_above_the_target_has_a_shard_of_its_own(small_data) -> None:
    small_data.write_recipe(shard={"target_mb": 0.00001})
    small_data.run(*ALL)
    assert {len(shard.samples) for shard in read_index(SHARDS).shards} == {1}


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
    (holder,) = (shard.name for shard in read_index(SHARDS).shards if "s05" in {sample.key for sample in shard.samples})
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
    assert "s05" not in {sample.key for shard in read_index(SHARDS).shards for sample in shard.samples}
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
    (SHARDS / "train" / "b0001-00000.tar").unlink()
    damaged = SHARDS / "train" / "b0001-00001.tar"
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
        ShardConfig(target_mb=target_mb)
