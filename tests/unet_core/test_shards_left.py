"""What an earlier run left of its shards: finished_shards trusts what is whole, and removes the rest."""

import hashlib
from pathlib import Path

import pytest

from tests.unet_core.sharded import index_of
from unet_core.errors import DataError
from unet_core.index import INDEX_NAME, ShardEntry, write_index
from unet_core.packing import pack_all
from unet_core.reader import ShardReader
from unet_core.samples import ClassMap, Sample
from unet_core.shards import finished_shards, write_shard


def test_whole_shards_are_found_by_their_content(tmp_path: Path, left_shards: list[ShardEntry]) -> None:
    with finished_shards(tmp_path) as finished:
        assert finished == {"first": left_shards[0], "second": left_shards[1]}
    assert all((tmp_path / entry.name).is_file() for entry in left_shards)


def test_shard_whose_bytes_changed_is_not_trusted(tmp_path: Path, left_shards: list[ShardEntry]) -> None:
    path = tmp_path / left_shards[0].name
    data = bytearray(path.read_bytes())
    data[ShardReader(tmp_path, left_shards).entry(0).image.offset] ^= 1  # one bit of one pixel; the size stays
    path.write_bytes(data)
    with finished_shards(tmp_path) as finished:
        assert set(finished) == {"second"}


def test_missing_shard_is_not_trusted(tmp_path: Path, left_shards: list[ShardEntry]) -> None:
    (tmp_path / left_shards[0].name).unlink()
    with finished_shards(tmp_path) as finished:
        assert set(finished) == {"second"}


def test_half_written_shards_are_removed_at_once(tmp_path: Path, left_shards: list[ShardEntry]) -> None:
    partial = tmp_path / "train" / "b0000-00002.tar.partial"
    partial.write_bytes(b"half")
    with finished_shards(tmp_path):
        assert not partial.exists()


def test_shards_that_the_new_index_does_not_name_are_removed(
    tmp_path: Path, left_shards: list[ShardEntry], cells_map: ClassMap
) -> None:
    stranger = tmp_path / "old" / "b0009-00000.tar"
    stranger.parent.mkdir()
    stranger.write_bytes(b"from long ago")
    with finished_shards(tmp_path) as finished:
        write_index(tmp_path, index_of(cells_map, finished["second"]))
        assert (tmp_path / left_shards[0].name).exists()  # until the end: what fails must lose nothing
    assert not (tmp_path / left_shards[0].name).exists()
    assert not stranger.exists()
    assert (tmp_path / left_shards[1].name).exists()


def test_a_run_that_fails_removes_no_shard(tmp_path: Path, left_shards: list[ShardEntry], cells_map: ClassMap) -> None:
    with pytest.raises(DataError, match="of the run"), finished_shards(tmp_path):
        write_index(tmp_path, index_of(cells_map))
        raise DataError("of the run")
    assert all((tmp_path / entry.name).exists() for entry in left_shards)


@pytest.mark.parametrize("content", [None, b"{", b'{"format": 1}', b"\xff\xfe\0", b"[]"])
def test_without_a_readable_index_finished_shards_are_found_by_their_sidecars(
    tmp_path: Path, left_shards: list[ShardEntry], cells_map: ClassMap, content: bytes | None
) -> None:
    # A run that was killed before it wrote the index; and `dvc repro -f -s shard`, which a damaged index names, must work.
    (tmp_path / INDEX_NAME).unlink()
    if content is not None:
        (tmp_path / INDEX_NAME).write_bytes(content)
    with finished_shards(tmp_path) as finished:
        assert finished == {"first": left_shards[0], "second": left_shards[1]}
        write_index(tmp_path, index_of(cells_map, left_shards[0]))
    assert {path.name for path in (tmp_path / "train").iterdir()} == {"b0000-00000.tar", "b0000-00000.jsonl"}


def test_first_run_finds_nothing(tmp_path: Path, cells_map: ClassMap) -> None:
    with finished_shards(tmp_path) as finished:
        assert finished == {}
        write_index(tmp_path, index_of(cells_map))


def test_building_in_two_steps_gives_the_bytes_of_one(
    tmp_path: Path, samples: list[Sample], cells_map: ClassMap
) -> None:
    def build(directory: Path, contents: dict[str, list[Sample]]) -> None:
        directory.mkdir(exist_ok=True)
        with finished_shards(directory) as finished:
            entries = [
                finished.get(content)
                or write_shard(directory, f"train/{content}.tar", content, pack_all(part, cells_map))
                for content, part in contents.items()
            ]
            write_index(directory, index_of(cells_map, *entries))

    build(tmp_path / "steps", {"first": samples[:2]})
    build(tmp_path / "steps", {"first": samples[:2], "second": samples[2:]})
    build(tmp_path / "once", {"first": samples[:2], "second": samples[2:]})
    hashes = [
        {
            str(path.relative_to(tmp_path / name)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("steps", "once")
    ]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 5
