"""What is kept of the training images: when it counts, and when it is measured anew."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.drift_reference import MAX_KEPT, Reference, find_reference, hash_training_set
from pipeline.placement import read_placement
from unet_core.errors import DataError
from unet_core.index import ShardEntry, ShardIndex, read_index, write_index
from unet_core.samples import ClassMap
from unet_core.splits import Split

SHARDS, KEPT = Path("data/shards"), Path(".unet/drift")
CELLS = ClassMap(kind="multiclass", classes={"background": 0, "cell": 255}, background="background")


@pytest.fixture
def with_model(sharded, write_model_dir, monkeypatch: pytest.MonkeyPatch):
    """Shards of twelve pairs, and a model; training images are measured in this process."""
    write_model_dir(Path("model"))
    monkeypatch.setenv("UNET_PROCESSES", "1")
    return sharded


def find(*, model_sha256: str = "m", most: int = 3) -> Reference:
    return find_reference(
        "model", model_sha256=model_sha256, shards=SHARDS, most=most, placement=read_placement(), may_store=True
    )


def shard(content: str, split: Split) -> ShardEntry:
    """All that differs between shards of no images."""
    return ShardEntry(
        name=f"{split}/{content}.tar",
        split=split,
        content=content,
        sha256="",
        num_bytes=0,
        samples_sha256="",
        num_samples=0,
        num_pixels=0,
        dtype="uint8",
        heights=(1, 1),
        widths=(1, 1),
        class_pixels=(0, 0),
        channel_sums=(0,),
        channel_square_sums=(0,),
    )


def hash_of(train: list[str], val: list[str]) -> str:
    shards = [*(shard(content, "train") for content in train), *(shard(content, "val") for content in val)]
    return hash_training_set(ShardIndex(class_map=CELLS, channels=1, shards=tuple(shards)))


CONTENTS = st.lists(st.text("abcdef0123456789", min_size=64, max_size=64), max_size=4, unique=True)


@given(CONTENTS, CONTENTS, CONTENTS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_a_training_set_is_what_its_shards_hold_in_whatever_order_and_whatever_else_there_is(
    train: list[str], val: list[str], other: list[str], random
) -> None:
    shuffled = random.sample(train, len(train))
    assert hash_of(shuffled, other) == hash_of(train, val)
    assert (hash_of(other, val) == hash_of(train, val)) == (set(other) == set(train))


def test_without_shards_none_are_sought_in_what_was_kept(tree) -> None:
    with pytest.raises(DataError) as caught:
        find()
    assert str(caught.value) == "no shards: data/shards/index.json is missing. Run `dvc repro shard`."
    assert not KEPT.exists()


def test_another_model_or_another_choice_is_kept_beside(with_model) -> None:
    first = find()
    find()
    assert len(list(KEPT.iterdir())) == 1
    assert find(model_sha256="other") == first
    assert len(list(KEPT.iterdir())) == 2
    more = find(most=4)
    assert len(list(KEPT.iterdir())) == 3
    assert (len(first.images), len(more.images)) == (3, 4)
    assert first.num_images == more.num_images > 4
    # Nothing is left that was half written.
    assert {path.suffix for path in KEPT.iterdir()} == {".json"}


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"{}",
        b'{"num_images": 6}',
        b'{"num_images": 6, "images": [{}]}',
        b'{"num_images": 6, "images": [[]]}',
        b'{"num_images": 6, "images": 7}',
    ],
)
def test_what_is_damaged_is_measured_anew_and_put_right(with_model, damaged: bytes) -> None:
    first = find()
    (kept,) = KEPT.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damaged)
    assert find() == first
    assert kept.read_bytes() == whole


@pytest.mark.parametrize("num_before", [MAX_KEPT - 1, MAX_KEPT, MAX_KEPT + 5])
def test_the_newest_are_kept_and_older_ones_make_room(with_model, num_before: int) -> None:
    KEPT.mkdir(parents=True)
    # In the order of their ages, which is not that of their names; half of them by killed processes.
    before = [KEPT / f"{100 - number}.json{'.7.partial' * (number % 2)}" for number in range(num_before)]
    for number, path in enumerate(before):
        path.write_bytes(b"")
        # Times ahead: a clock that was put back must not cost what was just written.
        os.utime(path, (2e9 + number, 2e9 + number))
    first = find()
    left = set(KEPT.iterdir())
    assert len(left) == MAX_KEPT
    assert set(before) & left == set(before[num_before - MAX_KEPT + 1 :])
    Path("model").rename("gone")
    assert find() == first


def test_undefined_numbers_are_kept_as_such(with_model) -> None:
    find()
    (kept,) = KEPT.iterdir()
    body = json.loads(kept.read_text(encoding="utf-8"))
    body["images"][0] |= {"channel_range": None, "embedding": [None, 0.1]}
    kept.write_text(json.dumps(body), encoding="utf-8")
    assert (find().images[0].channel_range, find().images[0].embedding) == (None, (None, 0.1))


def test_shares_of_masks_leave_out_ignored_pixels_and_are_none_where_all_are(with_model) -> None:
    """What is kept depends on what the shards hold, so their index may be written by hand."""
    find()
    index = read_index(SHARDS)

    def shares(*of_each: int, kind: str = "multiclass") -> dict[str, float | None]:
        entries = [
            replace(entry, num_pixels=100, class_pixels=of_each) if entry.split == "train" else entry
            for entry in index.shards
        ]
        class_map = CELLS if kind == "multiclass" else ClassMap(kind="multilabel", classes={"background": 1, "cell": 2})
        write_index(SHARDS, replace(index, shards=tuple(entries), class_map=class_map))
        return dict(find().mask_shares)

    assert shares(20, 60) == {"background": 0.25, "cell": 0.75}
    assert shares(0, 0) == {"background": None, "cell": None}
    # Classes that overlap are each a part of all pixels.
    assert shares(90, 60, kind="multilabel") == {"background": 0.9, "cell": 0.6}
