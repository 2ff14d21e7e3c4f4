from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_core.errors import RecipeError
from unet_core.splits import SplitConfig, assign_split

PLAIN = SplitConfig(seed=0, val_fraction=0.1, test_fraction=0.15)
GROUPS = [f"patient_{number}" for number in range(4000)]


def shares(config: SplitConfig, declared: str | None = None) -> dict[str, float]:
    counts = Counter(assign_split(group, declared, config) for group in GROUPS)
    return {split: counts[split] / len(GROUPS) for split in ("train", "val", "test")}


@given(
    old=st.sets(st.text("aß1:", max_size=5), max_size=20),
    new=st.lists(st.text("aß1:", max_size=5), max_size=20),
    seed=st.integers(0, 5),
)
def test_adding_groups_never_moves_an_old_one(old: set[str], new: list[str], seed: int) -> None:
    config = SplitConfig(seed=seed, val_fraction=0.3, test_fraction=0.3)
    before = {group: assign_split(group, None, config) for group in old}
    after = {group: assign_split(group, None, config) for group in [*new, *sorted(old)]}
    assert {group: after[group] for group in old} == before


def test_split_of_a_group_is_the_same_in_every_release() -> None:
    # Written down: were the hash to change, samples would move from test to train.
    config = SplitConfig(seed=7, val_fraction=0.25, test_fraction=0.25)
    assert [assign_split(group, None, config) for group in ("a", "b", "c", "d", "e", "f", "ü", "")] == [
        "train", "train", "test", "train", "test", "train", "train", "val",
    ]  # fmt: skip


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.15), (0.3, 0.3), (0.0, 0.5), (0.0, 0.0)])
def test_splits_have_about_the_fractions_of_the_recipe(val: float, test: float) -> None:
    found = shares(SplitConfig(seed=1, val_fraction=val, test_fraction=test))
    # Four standard deviations of a share of 4000.
    assert found["val"] == pytest.approx(val, abs=4 * (val * (1 - val) / len(GROUPS)) ** 0.5)
    assert found["test"] == pytest.approx(test, abs=4 * (test * (1 - test) / len(GROUPS)) ** 0.5)


def test_another_seed_gives_another_division() -> None:
    other = SplitConfig(seed=1, val_fraction=0.1, test_fraction=0.15)
    assert [assign_split(group, None, PLAIN) for group in GROUPS] != [
        assign_split(group, None, other) for group in GROUPS
    ]


def test_more_validation_data_never_takes_from_the_test_split() -> None:
    more = SplitConfig(seed=0, val_fraction=0.5, test_fraction=0.15)
    tested = {group for group in GROUPS if assign_split(group, None, PLAIN) == "test"}
    assert {group for group in GROUPS if assign_split(group, None, more) == "test"} == tested


def test_declared_words_decide() -> None:
    config = SplitConfig(
        seed=0,
        val_fraction=0.3,
        test_fraction=0.3,
        declared={"training": "train", "dev": "val", "stage1_test": "test"},
    )
    for word, split in config.declared.items():
        assert {assign_split(group, word, config) for group in GROUPS[:200]} == {split}


def test_missing_validation_split_is_taken_from_the_declared_training_groups() -> None:
    config = SplitConfig(seed=0, val_fraction=0.2, test_fraction=0.2, declared={"train": "train", "test": "test"})
    found = shares(config, "train")
    assert found["val"] == pytest.approx(0.2, abs=0.03)
    assert found["test"] == 0
    assert shares(config, "test")["test"] == 1


def test_both_missing_splits_are_taken_from_the_declared_training_groups() -> None:
    found = shares(SplitConfig(seed=0, val_fraction=0.1, test_fraction=0.2, declared={"all": "train"}), "all")
    assert found["val"] == pytest.approx(0.1, abs=0.02)
    assert found["test"] == pytest.approx(0.2, abs=0.03)


def test_unknown_declared_word_is_named() -> None:
    config = SplitConfig(seed=0, val_fraction=0.1, test_fraction=0.1, declared={"train": "train", "test": "test"})
    with pytest.raises(RecipeError) as caught:
        assign_split("patient_7", "Test", config)
    assert str(caught.value) == (
        "unknown split: patient_7: the source says 'Test', split.declared knows ['test', 'train']. "
        "Add the word to split.declared in params.yaml."
    )


def test_declared_word_is_refused_where_the_recipe_knows_none() -> None:
    with pytest.raises(RecipeError, match=r"unknown split: patient_7: the source says 'train', .* knows \[\]"):
        assign_split("patient_7", "train", PLAIN)


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.2), (0.2, -0.1), (1.0, 0.0)])
def test_fractions_that_leave_nothing_to_train_on_are_refused(val: float, test: float) -> None:
    with pytest.raises(RecipeError) as caught:
        SplitConfig(seed=0, val_fraction=val, test_fraction=test)
    assert str(caught.value) == (
        f"split: val_fraction {val} and test_fraction {test} leave nothing to train on. "
        "Choose two numbers from 0 whose sum is below 1."
    )


def test_declared_word_for_no_split_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"split.declared: 'validation' is no split. Choose from \['train', 'val'"):
        SplitConfig(seed=0, val_fraction=0.1, test_fraction=0.1, declared={"dev": "validation"})
