"""`unet_core.splits.divide`: whole data sets, batch by batch. Single groups are in test_splits.py."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_core.errors import DataError, RecipeError
from unet_core.splits import Division, Leak, SplitConfig, Subject, assign_split, divide

PLAIN = SplitConfig(seed=0, val_fraction=0.25, test_fraction=0.25)
DECLARED = replace(PLAIN, declared={"train": "train", "val": "val", "test": "test"}, leaks="report")
WITHOUT_VAL = replace(PLAIN, declared={"train": "train", "test": "test"}, leaks="report")


def alone(key: str, **about: object) -> Subject:
    return replace(Subject(key=key, group=key), **about)  # type: ignore[arg-type]


def key_in(split: str, config: SplitConfig = PLAIN, *, skip: int = 0) -> str:
    """A name that the hash puts into a split."""
    names = (f"{split}{number}" for number in range(1000))
    return [name for name in names if assign_split(name, None, config) == split][skip]


TRAIN, TEST, VAL = (key_in(split) for split in ("train", "test", "val"))


@dataclass(frozen=True)
class Data:
    subjects: list[Subject]
    pairs: list[tuple[str, str]]

    def until(self, batch: int) -> "Data":
        kept = [subject for subject in self.subjects if subject.batch <= batch]
        keys = {subject.key for subject in kept}
        return Data(kept, [pair for pair in self.pairs if keys.issuperset(pair)])


@st.composite
def data_sets(draw: st.DrawFn, words: tuple[str | None, ...] = (None,)) -> Data:
    """Ten batches with random groups, strata and near duplicates, also of older samples."""
    count = draw(st.integers(2, 40))
    subjects = [
        Subject(
            key=f"k{number:02d}",
            group=draw(st.sampled_from([f"k{number:02d}", "p", "q", "r", "s", "t", "u"])),
            declared=draw(st.sampled_from(words)),
            batch=draw(st.integers(0, 9)),
            stratum=draw(st.sampled_from([None, "x", "y"])),
            position=number,
        )
        for number in range(count)
    ]
    places = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda pair: pair[0] != pair[1])
    pairs = [(f"k{one:02d}", f"k{other:02d}") for one, other in draw(st.lists(places, max_size=15))]
    return Data(subjects, pairs)


CONFIGS = st.sampled_from([PLAIN, replace(PLAIN, block=7), replace(PLAIN, seed=1, val_fraction=0.4)])


@given(data_sets(), CONFIGS)
def test_ten_batches_never_move_an_old_sample(data: Data, config: SplitConfig) -> None:
    before: Division | None = None
    for batch in range(10):
        grown = data.until(batch)
        after = divide(grown.subjects, grown.pairs, config)
        assert {*after.splits, *after.quarantined} == {subject.key for subject in grown.subjects}
        assert not set(after.splits) & set(after.quarantined)
        if before is not None:
            assert {key: after.splits.get(key) for key in before.splits} == before.splits
            assert {key: after.quarantined.get(key) for key in before.quarantined} == before.quarantined
        before = after


@given(data_sets(("train", "test", "val", None)), st.sampled_from([DECLARED, WITHOUT_VAL]))
def test_ten_batches_never_move_an_old_sample_where_splits_are_declared(data: Data, config: SplitConfig) -> None:
    if config is WITHOUT_VAL:
        data = replace(data, subjects=[replace(s, declared=s.declared and "train") for s in data.subjects])
    whole = divide(data.subjects, data.pairs, config)
    for batch in range(10):
        grown = data.until(batch)
        part = divide(grown.subjects, grown.pairs, config)
        assert {key: whole.splits.get(key) for key in part.splits} == part.splits
        assert set(part.leaks) <= set(whole.leaks) | {leak for leak in part.leaks if "group" in leak.bond}


def linked(data: Data, config: SplitConfig) -> list[tuple[str, str]]:
    """Keys that belong together directly."""

    def unit(subject: Subject) -> tuple[str, int]:
        return subject.group, (subject.position or 0) // config.block if config.block else 0

    about = {subject.key: subject for subject in data.subjects}
    groups = [(a.key, b.key) for a in data.subjects for b in data.subjects if unit(a) == unit(b)]
    near = [(a, b) for a, b in data.pairs if not config.block or about[a].group != about[b].group]
    return groups + near


@given(data_sets(), CONFIGS)
def test_what_belongs_together_is_in_one_split(data: Data, config: SplitConfig) -> None:
    found = divide(data.subjects, data.pairs, config)
    assert found.leaks == ()
    for one, other in linked(data, config):
        if one in found.splits and other in found.splits:
            assert found.splits[one] == found.splits[other]


@given(data_sets(("train", "test", "val", None)))
def test_what_belongs_together_is_in_one_split_or_a_reported_leak(data: Data) -> None:
    found = divide(data.subjects, data.pairs, DECLARED)
    near = {frozenset(leak.keys) for leak in found.leaks if leak.bond == "duplicates"}
    groups = {leak.bond for leak in found.leaks} - {"duplicates"}
    about = {subject.key: subject for subject in data.subjects}
    for subject in data.subjects:
        assert subject.declared is None or found.splits[subject.key] == subject.declared
    for one, other in linked(data, DECLARED):
        if found.splits.get(one, "") != found.splits.get(other, "") and {one, other} <= set(found.splits):
            same = about[one].group == about[other].group
            assert frozenset((one, other)) in near or (same and f"both of group {about[one].group}" in groups)
            assert any(about[key].declared for key in (one, other)) or same


@given(data_sets(("train", "test", None)), st.randoms(use_true_random=False))
def test_the_order_within_a_batch_does_not_matter(data: Data, random: object) -> None:
    first = divide(data.subjects, data.pairs, WITHOUT_VAL)
    subjects, pairs = list(data.subjects), [pair[::-1] for pair in data.pairs]
    random.shuffle(subjects)  # type: ignore[attr-defined]
    random.shuffle(pairs)  # type: ignore[attr-defined]
    assert divide(subjects, pairs, WITHOUT_VAL) == first


def test_a_sample_alone_has_the_split_of_its_hash() -> None:
    found = divide([alone(f"s{number}") for number in range(200)], [], PLAIN)
    assert found.splits == {f"s{number}": assign_split(f"s{number}", None, PLAIN) for number in range(200)}


def test_a_newcomer_inherits_the_split_of_what_it_duplicates() -> None:
    found = divide([alone(TEST), alone(TRAIN, batch=1)], [(TRAIN, TEST)], PLAIN)
    assert found.splits == {TEST: "test", TRAIN: "test"}


def test_a_newcomer_that_bridges_two_splits_is_quarantined_with_what_came_with_it() -> None:
    subjects = [alone(TRAIN), alone(TEST), *(alone(key, batch=1) for key in ("new", "friend", "other"))]
    found = divide(subjects, [("new", TRAIN), (TEST, "new"), ("friend", "new")], PLAIN)
    assert set(found.splits) == {TRAIN, TEST, "other"}
    reason = (
        f"bridges splits: by duplicates or groups it belongs to {TRAIN} (train) and {TEST} (test), itself or "
        "through others of batch 1. Leave it out, or remove one side."
    )
    assert found.quarantined == {"new": reason, "friend": reason}
    assert found.leaks == ()


def test_a_quarantined_sample_passes_nothing_on() -> None:
    subjects = [alone(TRAIN), alone(TEST), alone("bridge", batch=1), alone(VAL, batch=2)]
    found = divide(subjects, [("bridge", TRAIN), ("bridge", TEST), ("bridge", VAL)], PLAIN)
    assert found.splits[VAL] == "val"


def test_near_duplicates_in_one_batch_have_the_split_of_their_smallest_group() -> None:
    smallest, larger = sorted([TRAIN, TEST])
    found = divide([alone(larger), alone(smallest)], [(larger, smallest)], PLAIN)
    assert set(found.splits.values()) == {assign_split(smallest, None, PLAIN)}


def test_blocks_divide_a_volume_and_count_the_pairs_in_it() -> None:
    config = replace(PLAIN, block=10)
    slices = [Subject(key=f"z{number:03d}", group="volume", position=number) for number in range(200)]
    neighbours = [(f"z{number:03d}", f"z{number + 1:03d}") for number in range(199)]
    found = divide(slices, neighbours, config)
    assert found.num_pairs_in_blocks == 199
    assert found.leaks == ()
    assert set(found.splits.values()) == {"train", "val", "test"}
    for start in range(0, 200, 10):
        assert len({found.splits[f"z{number:03d}"] for number in range(start, start + 10)}) == 1
    assert set(divide(slices, neighbours, PLAIN).splits.values()) == {assign_split("volume", None, PLAIN)}


def test_blocks_need_positions() -> None:
    with pytest.raises(RecipeError) as caught:
        divide([alone("a")], [], replace(PLAIN, block=4))
    assert str(caught.value) == (
        "no position for a sample: a: split.block is 4, which needs the place of every sample in its group. "
        "Name the order column in section ingest, or set split.block to null."
    )


def test_every_stratum_is_divided_by_a_draw_of_its_own() -> None:
    subjects = [alone(f"s{number}", stratum=f"m{number % 4}") for number in range(2000)]
    found = divide(subjects, [], PLAIN)
    for name in ("m0", "m1", "m2", "m3"):
        counts = Counter(found.splits[subject.key] for subject in subjects if subject.stratum == name)
        assert counts["test"] / 500 == pytest.approx(0.25, abs=0.08)
        assert counts["val"] / 500 == pytest.approx(0.25, abs=0.08)
    other = divide([replace(subject, stratum="z") for subject in subjects], [], PLAIN)
    assert other.splits != found.splits


def test_declared_splits_that_share_a_picture_or_a_group_leak() -> None:
    subjects = [
        alone("a", declared="train"),
        alone("b", declared="test"),
        Subject(key="c", group="p", declared="train"),
        Subject(key="d", group="p", declared="val"),
        Subject(key="e", group="p", declared="train"),
    ]
    found = divide(subjects, [("b", "a"), ("c", "e")], DECLARED)
    assert found.splits == {"a": "train", "b": "test", "c": "train", "d": "val", "e": "train"}
    assert found.quarantined == {}
    assert found.leaks == (
        Leak(keys=("a", "b"), splits=("train", "test"), bond="duplicates"),
        Leak(keys=("c", "d"), splits=("train", "val"), bond="both of group p"),
    )


def test_a_declared_training_sample_is_never_tested_by_its_likeness() -> None:
    """Validation is drawn from the declared training samples; the test is closed to them."""
    found = divide(
        [alone(TEST, declared="test"), alone(TRAIN, declared="train", batch=1)], [(TRAIN, TEST)], WITHOUT_VAL
    )
    assert found.splits == {TEST: "test", TRAIN: "train"}
    # "test0" comes before "train0".
    assert found.leaks == (Leak(keys=(TEST, TRAIN), splits=("test", "train"), bond="duplicates"),)


def test_near_duplicates_among_declared_training_samples_stay_together_in_validation() -> None:
    subjects = [alone(VAL, declared="train"), alone(TRAIN, declared="train", batch=1)]
    found = divide(subjects, [(VAL, TRAIN)], WITHOUT_VAL)
    assert found.splits[TRAIN] == found.splits[VAL] == assign_split(VAL, "train", WITHOUT_VAL)


def test_an_unknown_declared_word_names_the_sample() -> None:
    with pytest.raises(RecipeError, match=r"^unknown split: a: the source says 'dev', split.declared knows \['test'"):
        divide([alone("a", declared="dev")], [], DECLARED)


def test_a_pair_of_an_unknown_sample_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        divide([alone("a")], [("a", "b")], PLAIN)
    assert str(caught.value) == (
        "a pair of duplicates with an unknown sample: a and b: b is not in the catalog. Run the stage validate again."
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"block": 0}, "split.block: 0: must be at least 1, or null."),
        (
            {"max_quarantined_fraction": 1.5},
            "split.max_quarantined_fraction: 1.5: choose a number from 0 to 1.",
        ),
    ],
)
def test_impossible_values_are_refused(change: dict[str, float], text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        replace(PLAIN, **change)  # type: ignore[arg-type]
    assert str(caught.value) == text


def test_copies_of_a_quarantined_sample_stay_together_in_one_batch_and_later() -> None:
    old = [alone(TRAIN), alone(TEST)]
    bridge = alone("bridge", batch=1)
    # By themselves they would be in two splits.
    copies = [alone(key_in("train", skip=1), batch=2), alone(key_in("test", skip=1), batch=2)]
    later = alone(key_in("val"), batch=3)
    pairs = [(TRAIN, "bridge"), (TEST, "bridge"), *(("bridge", copy.key) for copy in (*copies, later))]
    found = divide([*old, bridge, *copies, later], pairs, PLAIN)
    assert set(found.quarantined) == {"bridge"}
    assert len({found.splits[copy.key] for copy in (*copies, later)}) == 1
    assert found.leaks == ()


def test_declared_copies_of_a_quarantined_sample_in_two_splits_leak() -> None:
    old = [alone(TRAIN, declared="train"), alone(TEST, declared="test")]
    bridge = alone("bridge", batch=1)
    copies = [alone("c", batch=2, declared="train"), alone("d", batch=2, declared="test")]
    pairs = [(TRAIN, "bridge"), (TEST, "bridge"), ("bridge", "c"), ("bridge", "d")]
    found = divide([*old, bridge, *copies], pairs, DECLARED)
    assert [leak.bond for leak in found.leaks] == ["both duplicates of bridge"]
