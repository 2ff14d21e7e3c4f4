import dataclasses
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.ledger import (
    Arrival,
    append,
    batch_pixels,
    compare,
    count_batches,
    count_pixels,
    hash_pair,
    present,
    read_ledger,
    same_files,
)
from pipeline.source import Pair
from unet_core.errors import DataError
from unet_core.images import FileBytes


def pair_of(key: str) -> Pair:
    return Pair(key=key, image=f"images/{key}.png", masks=(f"masks/{key}.png",))


def put(source: Path, key: str, image: str = "image", mask: str = "mask") -> None:
    for folder, text in (("images", image), ("masks", mask)):
        (source / folder).mkdir(parents=True, exist_ok=True)
        (source / folder / f"{key}.png").write_text(f"{text} of {key}", encoding="utf-8")


def record(ledger: Path, source: Path, keys: list[str]) -> int:
    """Record what lies in the source; how many lines that gave."""
    old = read_ledger(ledger) if ledger.exists() else []
    changes = compare(old, [pair_of(key) for key in keys], str(source))
    lines = [*changes.new, *changes.changed, *changes.missing]
    append(ledger, lines)
    return len(lines)


def arrival(key: str, *, batch: int = 1, image: str = "1", removed: bool = False) -> Arrival:
    return Arrival(
        batch=batch,
        key=key,
        image=f"images/{key}.png",
        masks=(f"masks/{key}.png",),
        image_sha256=image,
        mask_sha256="m",
        removed=removed,
    )


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    ledger = tmp_path / "arrivals" / "raw.jsonl"
    first, second = arrival("a"), arrival("b", batch=2, removed=True)
    append(ledger, [first])
    append(ledger, [second])
    assert read_ledger(ledger) == [first, second]
    assert not list(ledger.parent.glob("*.partial"))


def test_appending_leaves_earlier_lines_byte_identical(tmp_path: Path) -> None:
    ledger = tmp_path / "raw.jsonl"
    append(ledger, [arrival("a")])
    before = ledger.read_bytes()
    append(ledger, [arrival("größe 1", batch=2)])
    assert ledger.read_bytes().startswith(before)
    assert read_ledger(ledger)[1].key == "größe 1"


def test_appending_makes_a_new_file_and_leaves_a_linked_copy_alone(tmp_path: Path) -> None:
    ledger, cached = tmp_path / "raw.jsonl", tmp_path / "cache"
    append(ledger, [arrival("a")])
    cached.hardlink_to(ledger)
    before = cached.read_bytes()
    append(ledger, [arrival("b")])
    assert cached.read_bytes() == before


def test_a_changed_sample_keeps_its_first_batch() -> None:
    now = present([arrival("a", batch=1), arrival("a", batch=3, image="2")])
    assert now == {"a": arrival("a", batch=1, image="2")}


def test_a_removed_sample_is_gone_and_comes_back_in_a_new_batch() -> None:
    removed = [arrival("a"), arrival("b"), arrival("a", batch=2, removed=True)]
    assert present(removed) == {"b": arrival("b")}
    assert present([*removed, arrival("a", batch=3)])["a"].batch == 3


def test_the_first_batch_is_number_one(tmp_path: Path) -> None:
    put(tmp_path, "a")
    assert compare([], [pair_of("a")], str(tmp_path)).new[0].batch == 1


def test_comparing_finds_new_changed_and_missing(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    for key in "abcd":
        put(tmp_path, key)
    record(ledger, tmp_path, ["a", "b", "c", "d"])
    put(tmp_path, "b", image="another image")
    put(tmp_path, "c", mask="another mask")
    put(tmp_path, "e")
    changes = compare(read_ledger(ledger), [pair_of(key) for key in "abce"], str(tmp_path))
    assert [line.key for line in changes.new] == ["e"]
    assert [line.key for line in changes.changed] == ["b", "c"]
    assert [(line.key, line.removed) for line in changes.missing] == [("d", True)]
    assert {line.batch for line in (*changes.new, *changes.changed, *changes.missing)} == {2}


def test_comparing_again_after_recording_finds_nothing(tmp_path: Path) -> None:
    put(tmp_path, "a")
    assert record(tmp_path / "ledger.jsonl", tmp_path, ["a"]) == 1
    assert record(tmp_path / "ledger.jsonl", tmp_path, ["a"]) == 0


def test_the_hash_of_masks_depends_on_every_file_and_their_order(tmp_path: Path) -> None:
    put(tmp_path, "a")
    put(tmp_path, "b")
    one, other = "masks/a.png", "masks/b.png"
    hashes = {
        hash_pair(Pair(key="a", image="images/a.png", masks=masks), str(tmp_path), 1).mask_sha256
        for masks in ((one,), (other,), (one, other), (other, one))
    }
    assert len(hashes) == 4


def test_pixels_of_a_batch_never_change() -> None:
    first = [dataclasses.replace(arrival("a"), pixels=10), dataclasses.replace(arrival("b"), pixels=5)]
    assert batch_pixels(first) == {1: 15}
    later = [
        dataclasses.replace(arrival("a", batch=2, image="2"), pixels=99),
        dataclasses.replace(arrival("b", batch=2, removed=True), pixels=5),
        dataclasses.replace(arrival("c", batch=2), pixels=7),
        dataclasses.replace(arrival("b", batch=3), pixels=6),
    ]
    assert batch_pixels([*first, *later]) == {1: 15, 2: 7, 3: 6}


def test_pixels_come_from_the_header_and_damage_counts_none() -> None:
    stream = io.BytesIO()
    Image.new("L", (30, 20)).save(stream, format="PNG")
    assert count_pixels(FileBytes(name="a.png", data=stream.getvalue())) == 600
    assert count_pixels(FileBytes(name="a.png", data=stream.getvalue()[:50])) == 600
    assert count_pixels(FileBytes(name="a.png", data=b"")) == 0
    assert count_pixels(FileBytes(name="a.png", data=stream.getvalue()[:20])) == 0


def test_a_line_from_before_pixels_were_recorded_is_read(tmp_path: Path) -> None:
    ledger = tmp_path / "l.jsonl"
    body = dataclasses.asdict(arrival("a"))
    del body["pixels"]
    ledger.write_text(json.dumps(body) + "\n", encoding="utf-8")
    assert read_ledger(ledger) == [arrival("a")]


def test_a_missing_ledger_says_where_it_may_come_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^no ledger of arrivals: .*l.jsonl. Run `dvc pull` if a colleague recorded"):
        read_ledger(tmp_path / "l.jsonl")


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", '"text"', '{"key": "a"}', '{"masks": []}', "", '{"batch": 1, "key": "a", "masks": [], "more": 1}'],
)
def test_a_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    ledger = tmp_path / "l.jsonl"
    append(ledger, [arrival("a")])
    ledger.write_text(ledger.read_text(encoding="utf-8") + damage + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"^ledger is damaged: .*l.jsonl: line 2: .*Run `dvc checkout`.$"):
        read_ledger(ledger)


def test_bytes_that_are_no_text_are_a_damaged_ledger(tmp_path: Path) -> None:
    ledger = tmp_path / "l.jsonl"
    ledger.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"^ledger is damaged: "):
        read_ledger(ledger)


def test_two_lines_of_equal_files_are_the_same_whatever_their_batch() -> None:
    assert same_files(arrival("a", batch=1), arrival("a", batch=9))
    assert not same_files(arrival("a"), arrival("a", image="2"))


KEYS = ("a", "b", "c", "d")
Step = tuple[str, str | None]
#: A batch of acts: key, and the text that its files then hold (None: removed).
batches = st.lists(
    st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(["x", "y", None])), max_size=5), max_size=6
)


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(batches)
def test_replaying_the_ledger_gives_the_state_of_the_source(history: list[list[Step]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source, ledger = Path(scratch), Path(scratch) / "ledger.jsonl"
        there: dict[str, str] = {}
        first_batch: dict[str, int] = {}
        number = 0
        for batch in history:
            before = dict(there)
            for key, text in batch:
                if text is None:
                    there.pop(key, None)
                else:
                    there[key] = text
                    put(source, key, image=text, mask=text)
            lines = record(ledger, source, sorted(there))
            assert lines == sum(before.get(key) != there.get(key) for key in KEYS)
            number += lines > 0
            for key in KEYS:
                if key in there and key not in before:
                    first_batch[key] = number
            now = present(read_ledger(ledger))
            assert set(now) == set(there)
            assert all(same_files(now[key], hash_pair(pair_of(key), str(source), 0)) for key in there)
            assert {key: now[key].batch for key in there} == {key: first_batch[key] for key in there}


def test_a_batch_counts_what_is_new_changed_and_removed() -> None:
    def line(batch: int, key: str, *, removed: bool = False) -> Arrival:
        return Arrival(
            batch=batch, key=key, image=key, masks=(key,), image_sha256="i", mask_sha256="m", pixels=1, removed=removed
        )

    lines = [line(1, "a"), line(1, "b"), line(2, "a"), line(2, "b", removed=True), line(3, "b"), line(3, "c")]
    assert count_batches(lines) == [
        {"batch": 1, "new": 2, "changed": 0, "removed": 0},
        {"batch": 2, "new": 0, "changed": 1, "removed": 1},
        {"batch": 3, "new": 2, "changed": 0, "removed": 0},
    ]


def test_pixels_of_many_channels_count_as_others_do() -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((20, 30, 5), np.float32), photometric="minisblack", planarconfig="contig")
    assert count_pixels(FileBytes(name="a.tif", data=stream.getvalue())) == 600


def test_a_bomb_counts_no_pixels() -> None:
    stream = io.BytesIO()
    Image.new("L", (30, 20)).save(stream, format="PNG")
    data = stream.getvalue()
    claim = data[:16] + (2**31 - 1).to_bytes(4, "big") * 2 + data[24:]
    assert count_pixels(FileBytes(name="bomb.png", data=claim)) == 0
