"""The index of shards: what it tells of the data, and what is refused in it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unet_core.sharded import FIRST_SHARD, index_of
from unet_core.errors import DataError, StorageError
from unet_core.index import INDEX_NAME, ShardEntry, read_index, write_index
from unet_core.packing import pack_all
from unet_core.samples import ClassMap, Sample
from unet_core.shards import write_shard


def test_index_comes_back_as_it_was_written(
    tmp_path: Path, write_samples: Callable[..., ShardEntry], samples: list[Sample], cells_map: ClassMap
) -> None:
    index = index_of(cells_map, write_samples(samples))
    write_index(tmp_path, index)
    found = read_index(tmp_path)
    assert found == index
    assert found.class_map.names == ("background", "cell", "nucleus")
    assert not list(tmp_path.rglob("*.partial"))


def test_index_counts_samples_and_class_pixels_of_a_split(shapes_dir: Path, draw_sample: Callable[..., Sample]) -> None:
    index = read_index(shapes_dir)
    assert [index.num_samples(split) for split in ("train", "val", "test")] == [13, 3, 0]
    masks = np.stack([draw_sample(number).mask for number in range(13, 16)])
    assert list(index.class_pixels("val").values()) == masks.sum(axis=(0, 1, 2)).tolist()
    assert set(index.class_pixels("test").values()) == {0}


def test_statistics_are_those_of_all_training_pixels(
    write_samples: Callable[..., ShardEntry], samples: list[Sample], cells_map: ClassMap
) -> None:
    entry = write_samples(samples)
    other = replace(entry, split="val", channel_sums=(0, 0, 0))
    mean, deviation = index_of(cells_map, entry, other).train_statistics()
    pixels = np.concatenate([sample.image.reshape(-1, 3) for sample in samples]) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(deviation, pixels.std(axis=0), rtol=1e-9)


def test_deviation_of_a_constant_channel_is_one_grey_level(
    write_samples: Callable[..., ShardEntry], cells_map: ClassMap
) -> None:
    white = Sample(key="a", image=np.full((4, 4, 1), 255, np.uint8), mask=np.zeros((4, 4), np.uint8))
    mean, deviation = index_of(cells_map, write_samples([white]), channels=1).train_statistics()
    assert mean == (1.0,)
    assert deviation == (1 / 255,)


def test_statistics_without_training_samples_are_refused(
    write_samples: Callable[..., ShardEntry], samples: list[Sample], cells_map: ClassMap
) -> None:
    with pytest.raises(DataError, match="no training samples"):
        index_of(cells_map, replace(write_samples(samples), split="val")).train_statistics()


def test_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_index(tmp_path)
    assert str(caught.value) == f"no shards: {tmp_path / INDEX_NAME} is missing. Run `dvc repro shard`."


@pytest.mark.parametrize(
    "content",
    [b"", b'{"format": 2, "chan', b"\xff\xfe\0 not text", b"[]", b"null", b'{"format": 2}', b'{"format": 2, "shards": 3}'],
    ids=["empty", "cut off", "not text", "a list", "null", "nothing but a format", "shards are a number"],
)  # fmt: skip
def test_damaged_index_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / INDEX_NAME).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_index(tmp_path)
    assert str(caught.value).startswith(f"index of shards is damaged: {tmp_path / INDEX_NAME}: ")
    assert str(caught.value).endswith("Run `dvc repro -f -s shard`.")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("masks", {"kind": "multiclass", "classes": {"a": 0}}),
        ("masks", {"kind": "multiclass", "classes": ["a", "b"]}),
        ("shards", ["train/a.tar"]),
        ("shards", [{"name": "train/a.tar"}]),
    ],
    ids=["impossible class map", "classes are a list", "shards are names", "half a shard"],
)
def test_index_with_impossible_entries_is_named_as_damaged(
    tmp_path: Path, left_shards: list[ShardEntry], name: str, value: object
) -> None:
    # A DataError and no other: finished_shards builds anew for that one only.
    path = tmp_path / INDEX_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(DataError, match=r"index of shards is damaged: .*index\.json: "):
        read_index(tmp_path)


def test_index_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text(json.dumps({"format": 1}))
    with pytest.raises(DataError) as caught:
        read_index(tmp_path)
    assert str(caught.value) == (
        f"shards of another format: {tmp_path / INDEX_NAME}: version 1, this code reads 2. Run `dvc repro -f -s shard`."
    )


@pytest.mark.parametrize("name", ["/etc/a.tar", "../a.tar", "train/../../a.tar", "train\\a.tar", "C:/a.tar"])
def test_index_that_names_a_file_outside_is_refused(
    tmp_path: Path, left_shards: list[ShardEntry], cells_map: ClassMap, name: str
) -> None:
    write_index(tmp_path, index_of(cells_map, replace(left_shards[0], name=name)))
    with pytest.raises(DataError) as caught:
        read_index(tmp_path)
    assert str(caught.value) == (
        f"an index names a file outside its folder: {tmp_path / INDEX_NAME}: {name}. "
        "Don't use these shards; get them anew from where you trust."
    )


def test_statistics_of_16_bits_are_in_units_of_full_scale(tmp_path: Path, cells_map: ClassMap) -> None:
    image = np.random.default_rng(0).integers(60_000, 65_536, (20, 20, 2), dtype=np.uint16)
    entry = write_shard(
        tmp_path,
        FIRST_SHARD,
        "c",
        pack_all([Sample(key="a", image=image, mask=np.zeros((20, 20), np.uint8))], cells_map),
    )
    mean, deviation = index_of(cells_map, entry, channels=2).train_statistics()
    np.testing.assert_allclose(mean, image.mean(axis=(0, 1)) / 65535, rtol=1e-12)
    np.testing.assert_allclose(deviation, image.std(axis=(0, 1)) / 65535, rtol=1e-9)


def test_full_disk_keeps_the_old_index(
    small_disk: Path, random_sample: Callable[..., Sample], cells_map: ClassMap
) -> None:
    entry = write_shard(small_disk, FIRST_SHARD, "content", pack_all([random_sample("a")], cells_map))
    write_index(small_disk, index_of(cells_map, entry))
    before = (small_disk / INDEX_NAME).read_bytes()
    fill(small_disk)
    many = index_of(cells_map, *[replace(entry, name=f"train/{number}.tar") for number in range(100)])
    with pytest.raises(StorageError, match=r"(?s)index\.json.*(disk full|No space left)|disk full.*index\.json"):
        write_index(small_disk, many)
    assert (small_disk / INDEX_NAME).read_bytes() == before
    assert not list(small_disk.rglob("*.partial"))


def fill(disk: Path) -> None:
    """Leave no room on a disk."""
    with (disk / "ballast").open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            pass
