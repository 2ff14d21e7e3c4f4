from pathlib import Path

import pytest

from pipeline.ancestry import changes, sample_changes, show_difference, show_lineage, tree
from pipeline.history import Move, move_champion
from pipeline.stages.split import read_splits


def test_a_tree_has_two_levels() -> None:
    assert list(tree([("model", ["a", "b"]), ("code", []), ("data", ["c"])])) == [
        "├─ model",
        "│  ├─ a",
        "│  └─ b",
        "├─ code",
        "└─ data",
        "   └─ c",
    ]


def test_only_what_differs_is_a_change() -> None:
    assert changes({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": 4}) == ["b: 2 -> 5", "c: 3 -> none", "d: none -> 4"]


def test_each_sample_that_changed_is_named_under_what_happened_to_it() -> None:
    before = {"train": {"a": ("i", "m"), "b": ("i", "m"), "c": ("i", "m")}, "val": {"d": ("i", "m")}, "test": {}}
    after = {"train": {"a": ("i", "m"), "b": ("i", "M"), "d": ("i", "m")}, "val": {"e": ("i", "m")}, "test": {}}
    assert sample_changes(before, after) == [
        "1 added: e",
        "1 removed: c",
        "1 relabelled: b",
        "1 in another split: d",
    ]
    assert sample_changes(before, before) == []


def test_of_many_samples_five_are_named() -> None:
    many = {"train": {f"s{number}": ("i", "m") for number in range(8)}}
    assert sample_changes({"train": {}}, many) == ["8 added: s0, s1, s2, s3, s4 and 3 more"]
    assert sample_changes(many, {"train": dict.fromkeys(many["train"], ("other", "m"))}) == [
        "8 with another image: s0, s1, s2, s3, s4 and 3 more"
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_models_are_told_apart_by_recipe_data_and_scores(
    registered, client, write_model_dir, capsys: pytest.CaptureFixture[str]
) -> None:
    move_champion(client, "unet", lambda _: Move(action="forced", version="1", reason="the first"))
    show_lineage("models:/unet@champion")
    said = capsys.readouterr().out
    assert said.startswith("unet version 1\n├─ model\n│  ├─ sha256 ")
    for words in ("train.learning_rate: 0.01", "├─ environment, at registration", "└─ history", ": the first\n"):
        assert words in said
    tested = next(key for key, split in read_splits(Path("data/splits.csv")).items() if split == "test")
    registered.add_pair("s99")
    registered.turn_file("masks", tested)
    registered.record()
    registered.write_recipe(train={"learning_rate": 0.5})
    registered.run("ingest", "validate", "split", "shard")
    write_model_dir(Path("models/final"), inverted=True)
    registered.run("register")
    for number, score in (("1", 0.5), ("2", 0.75)):
        run_id = client.get_model_version("unet", number).run_id
        client.log_metric(run_id, "test_dice", score)
    capsys.readouterr()
    show_difference("models:/unet/1", "models:/unet/2")
    assert capsys.readouterr().out.splitlines() == [
        "unet version 1 -> unet version 2",
        "├─ code",
        "│  └─ the same",
        "├─ recipe",
        "│  └─ train.learning_rate: 0.01 -> 0.5",
        "├─ data",
        "│  ├─ 1 added: s99",
        f"│  └─ 1 relabelled: {tested}",
        "├─ environment",
        "│  └─ the same",
        "└─ scores",
        "   ├─ test scores: of different test sets, not to be compared; ask `unet promote`",
        "   └─ test_dice: 0.5000 -> 0.7500",
    ]
    show_difference("models:/unet/2", "models:/unet/2")
    assert capsys.readouterr().out.splitlines()[-2:] == ["└─ scores", "   └─ the same"]
