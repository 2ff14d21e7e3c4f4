import json
from pathlib import Path

import pytest

from pipeline.stages.split import read_splits
from unet_core.errors import DataError, RecipeError

SPLITS, METRICS = Path("data/splits.csv"), Path("metrics/split.json")


def test_every_accepted_sample_gets_a_split(small_data) -> None:
    small_data.run("ingest", "validate", "split")
    splits = read_splits(SPLITS)
    assert sorted(splits) == [f"s{number:02d}" for number in range(12)]
    counts = json.loads(METRICS.read_text(encoding="utf-8"))
    assert list(counts) == ["train", "val", "test"]
    assert counts == {split: list(splits.values()).count(split) for split in ("train", "val", "test")}


def test_adding_samples_moves_no_old_one(small_data) -> None:
    small_data.run("ingest", "validate", "split")
    before = read_splits(SPLITS)
    small_data.add_pairs([f"t{number:02d}" for number in range(12)])
    small_data.record()
    small_data.run("ingest", "validate", "split")
    after = read_splits(SPLITS)
    assert len(after) == 24
    assert {key: after[key] for key in before} == before


def test_a_group_stays_together(tree) -> None:
    keys = [f"s{number:02d}" for number in range(24)]
    tree.add_pairs(keys)
    lines = [f"{key},p{number // 3}" for number, key in enumerate(keys)]
    (tree.source / "t.csv").write_text("\n".join(["key,patient", *lines]), encoding="utf-8")
    tree.write_recipe(ingest={"table": "t.csv", "group_column": "patient"}, split={"seed": 1})
    tree.record()
    tree.run("ingest", "validate", "split")
    splits = read_splits(SPLITS)
    assert all(len({splits[key] for key in keys[start : start + 3]}) == 1 for start in range(0, 24, 3))
    assert len(set(splits.values())) == 3


def declare(tree, declared: dict[str, str], words: list[str]) -> None:
    keys = [f"s{number:02d}" for number in range(len(words))]
    tree.add_pairs(keys)
    lines = [f"{word} {key}" for word, key in zip(words, keys, strict=True)]
    (tree.source / "splits.txt").write_text("\n".join(lines), encoding="utf-8")
    about = {"table": "splits.txt", "table_columns": ["split", "key"], "split_column": "split"}
    tree.write_recipe(ingest=about, split={"declared": declared})
    tree.record()
    tree.run("ingest", "validate")


def test_declared_splits_are_taken_as_declared(tree) -> None:
    declare(tree, {"a": "train", "b": "val", "c": "test"}, ["a", "b", "c", "a"])
    tree.run("split")
    assert read_splits(SPLITS) == {"s00": "train", "s01": "val", "s02": "test", "s03": "train"}


def test_a_declared_word_that_the_recipe_does_not_know_is_named(tree) -> None:
    declare(tree, {"a": "train", "b": "val", "c": "test"}, ["a", "b", "c", "d"])
    with pytest.raises(RecipeError, match=r"^unknown split: s03: the source says 'd', split.declared knows \['a', 'b'"):
        tree.run("split")


def test_too_few_images_for_three_splits(tree) -> None:
    tree.add_pairs(["a", "b"])
    tree.write_recipe()
    tree.record()
    tree.run("ingest", "validate")
    with pytest.raises(DataError) as caught:
        tree.run("split")
    text = str(caught.value)
    assert text.startswith("too few images for three splits: 2 groups give ")
    assert "Add images, raise split." in text
    assert text.endswith("_fraction, try another split.seed, or declare splits (ingest.split_column).")
    assert not SPLITS.exists()


def test_the_remedy_for_missing_training_images_names_a_key_that_exists(tree) -> None:
    declare(tree, {"val": "val", "test": "test"}, ["val", "test"] * 2)
    with pytest.raises(
        DataError, match=r"^too few images for three splits: 4 groups give 0 train, 2 val, 2 test"
    ) as caught:
        tree.run("split")
    assert "split.train_fraction" not in str(caught.value)


def test_equal_catalogs_give_equal_bytes(small_data) -> None:
    small_data.run("ingest", "validate", "split")
    first = SPLITS.read_bytes()
    small_data.run("split")
    assert SPLITS.read_bytes() == first
    assert first.startswith(b"key,split\ns00,")
