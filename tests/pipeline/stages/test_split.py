import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.catalog import CatalogRow, read_catalog, write_catalog
from pipeline.duplicates_table import DuplicatePair, write_duplicates
from pipeline.stages.split import read_splits
from unet_core.errors import DataError, RecipeError

SPLITS, METRICS = Path("data/splits.csv"), Path("metrics/split.json")
ACCEPTED, QUARANTINED = Path("data/accepted.parquet"), Path("data/split_quarantined.json")


def test_every_accepted_sample_gets_a_split(small_data) -> None:
    small_data.run("ingest", "validate", "split")
    splits = read_splits(SPLITS)
    assert sorted(splits) == [f"s{number:02d}" for number in range(12)]
    assert json.loads(METRICS.read_text(encoding="utf-8")) == {
        "samples": {split: list(splits.values()).count(split) for split in ("train", "val", "test")},
        "quarantined": 0,
        "exact_pairs": 0,
        "near_pairs": 0,
        "pairs_in_blocks": 0,
        "leaks": 0,
    }
    assert json.loads(QUARANTINED.read_text(encoding="utf-8")) == []


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
    assert first.startswith(b'"key","split"\n"s00","')


def say_near(*pairs: tuple[str, str]) -> None:
    """What `validate` would have found."""
    write_duplicates(
        Path("data/duplicates.csv"), [DuplicatePair(a=a, b=b, kind="near", masks_agree=True) for a, b in pairs]
    )


def change_rows(change: Callable[[int, CatalogRow], CatalogRow]) -> None:
    write_catalog(ACCEPTED, [change(number, row) for number, row in enumerate(read_catalog(ACCEPTED))])


def bridge(tree) -> tuple[str, str, str]:
    """A new sample that resembles an old one in train and an old one in test."""
    tree.run("ingest", "validate", "split")
    splits = read_splits(SPLITS)
    train, test = (next(key for key in sorted(splits) if splits[key] == split) for split in ("train", "test"))
    tree.add_pair("new")
    tree.record()
    tree.run("ingest", "validate")
    say_near((train, "new"), (test, "new"))
    return "new", train, test


def test_near_duplicates_are_kept_together(small_data) -> None:
    small_data.run("ingest", "validate")
    keys = [f"s{number:02d}" for number in range(12)]
    say_near(("s00", "s05"), ("s05", "s09"))
    small_data.run("split")
    splits = read_splits(SPLITS)
    assert sorted(splits) == keys
    assert splits["s00"] == splits["s05"] == splits["s09"]
    assert json.loads(METRICS.read_text(encoding="utf-8"))["near_pairs"] == 2


def test_a_bridge_between_splits_stops_the_stage_and_is_named(small_data) -> None:
    new, train, test = bridge(small_data)
    SPLITS.unlink()
    with pytest.raises(DataError) as caught:
        small_data.run("split")
    reason = (
        f"bridges splits: by duplicates or groups it belongs to {train} (train) and {test} (test), itself or "
        "through others of batch 2. Leave it out, or remove one side."
    )
    assert str(caught.value) == (
        "1 of 13 samples belong to two splits, split.max_quarantined_fraction allows 0. All reasons are in "
        f"data/split_quarantined.json; remove them or raise the limit.\n  {new}: {reason}"
    )
    assert json.loads(QUARANTINED.read_text(encoding="utf-8")) == [{"key": new, "reason": reason}]
    assert not SPLITS.exists()


def test_a_bridge_that_the_recipe_allows_is_left_out_of_splits_and_shards(small_data) -> None:
    small_data.write_recipe(split={"max_quarantined_fraction": 0.1})
    new, *_ = bridge(small_data)
    small_data.run("split", "shard")
    assert read_splits(SPLITS)[new] is None
    assert len(read_splits(SPLITS)) == 13
    assert json.loads(METRICS.read_text(encoding="utf-8"))["quarantined"] == 1


def leak(tree, *, words: Sequence[str], **split: str) -> None:
    declare(tree, {"a": "train", "b": "val", "c": "test"}, list(words))
    tree.write_recipe(
        ingest={"table": "splits.txt", "table_columns": ["split", "key"], "split_column": "split"},
        split={"declared": {"a": "train", "b": "val", "c": "test"}, **split},
    )
    say_near(*((f"s{number:02d}", f"s{number + 1:02d}") for number in range(len(words) - 1)))


def test_leaks_between_declared_splits_stop_the_stage_and_name_pairs(tree) -> None:
    leak(tree, words="abcabcab")
    with pytest.raises(DataError) as caught:
        tree.run("split")
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        "leaks between declared splits: 7 pairs of samples that belong together are in two splits, so that scores "
        "would flatter. Correct the declared splits or groups, or set split.leaks to report."
    )
    assert lines[1] == "  s00 (train) and s01 (val): duplicates"
    assert len(lines) == 7
    assert lines[6] == "  ... and 2 more in data/leaks.json"
    assert not SPLITS.exists()


def test_leaks_are_reported_where_the_recipe_says_so(tree, caplog: pytest.LogCaptureFixture) -> None:
    leak(tree, words="abca", leaks="report")
    tree.run("split")
    assert read_splits(SPLITS) == {"s00": "train", "s01": "val", "s02": "test", "s03": "train"}
    assert json.loads(METRICS.read_text(encoding="utf-8"))["leaks"] == 3
    assert "3 leaks between declared splits:\n  s00 (train) and s01 (val): duplicates" in caplog.text


def test_strata_are_counted_and_those_without_test_or_validation_are_named(
    small_data, caplog: pytest.LogCaptureFixture
) -> None:
    small_data.run("ingest", "validate")
    change_rows(lambda number, row: dataclasses.replace(row, stratum="rare" if number == 0 else "common"))
    small_data.write_recipe(split={"seed": 2})
    small_data.run("split")
    strata = json.loads(METRICS.read_text(encoding="utf-8"))["strata"]
    assert list(strata) == ["common", "rare"]
    assert sum(strata["common"].values()) == 11
    assert sum(strata["rare"].values()) == 1
    assert "split: stratum rare (1 samples) has none in " in caplog.text
    assert "stratum common" not in caplog.text


def test_a_volume_is_divided_by_blocks(small_data) -> None:
    small_data.run("ingest", "validate")
    change_rows(lambda number, row: dataclasses.replace(row, group="volume", position=number))
    say_near(*((f"s{number:02d}", f"s{number + 1:02d}") for number in range(11)))
    small_data.write_recipe(split={"block": 2, "seed": 1})
    small_data.run("split")
    splits = read_splits(SPLITS)
    assert all(splits[f"s{number:02d}"] == splits[f"s{number + 1:02d}"] for number in range(0, 12, 2))
    assert set(splits.values()) == {"train", "val", "test"}
    metrics = json.loads(METRICS.read_text(encoding="utf-8"))
    assert (metrics["pairs_in_blocks"], metrics["near_pairs"], metrics["leaks"]) == (11, 11, 0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("key,split\na,train\nb,Test\n", r"line 3: \['b', 'Test'\]"),
        ("key,split\na,train\nc", r"line 3: \['c'\]"),
        ("key\na\n", r"its columns are \['key'\]"),
        ("", r"its columns are \[\]"),
    ],
)
def test_a_damaged_table_of_splits_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "splits.csv").write_text(text)
    with pytest.raises(DataError, match=rf"{told}.*Run `dvc repro -f -s split`"):
        read_splits(tmp_path / "splits.csv")


def test_every_leak_is_in_the_file_and_the_message_names_it(small_data) -> None:
    small_data.run("ingest", "validate")
    words = ["train", "val", "test"]
    change_rows(lambda number, row: dataclasses.replace(row, declared_split=words[number % 3]))
    say_near(*((f"s{number:02d}", f"s{number + 1:02d}") for number in range(7)))
    small_data.write_recipe(split={"declared": {word: word for word in words}})
    with pytest.raises(DataError, match=r"\.\.\. and 2 more in data/leaks.json"):
        small_data.run("split")
    leaks = json.loads(Path("data/leaks.json").read_text())
    assert len(leaks) == 7
    assert leaks[0] == {"keys": ["s00", "s01"], "splits": ["train", "val"], "bond": "duplicates"}


def test_a_sample_that_moves_since_the_last_run_is_named(small_data, caplog: pytest.LogCaptureFixture) -> None:
    small_data.run("ingest", "validate", "split")
    before = read_splits(SPLITS)
    small_data.run("split")
    assert "moved" not in caplog.text
    small_data.write_recipe(split={"seed": 5})
    small_data.run("split")
    moved = [key for key, split in read_splits(SPLITS).items() if before[key] != split]
    assert f"split: {len(moved)} samples moved since the last run" in caplog.text
    assert f"{moved[0]} ({before[moved[0]]} to {read_splits(SPLITS)[moved[0]]})" in caplog.text


def test_every_sign_of_a_name_survives_the_tables(small_data) -> None:
    small_data.run("ingest", "validate")
    name = 'a\rb,"c"\nd\te'
    change_rows(lambda number, row: dataclasses.replace(row, key=name, group=name) if number == 0 else row)
    small_data.run("split")
    assert name in read_splits(SPLITS)
    assert len(read_splits(SPLITS)) == 12
