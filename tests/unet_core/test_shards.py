import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from tests.unet_core.sharded import FIRST_SHARD, assert_same
from unet_core.errors import DataError, StorageError
from unet_core.hashing import hash_file
from unet_core.index import ShardEntry, sidecar_name
from unet_core.packing import pack_all
from unet_core.reader import ShardReader
from unet_core.samples import ClassMap, Sample, count_class_pixels
from unet_core.shards import member_name, shard_content, shard_number, write_shard

KEYS = st.text(st.characters(exclude_categories=()), min_size=1, max_size=30)


# What is written


def test_equal_samples_give_equal_bytes(
    tmp_path: Path, write_samples: Callable[..., ShardEntry], samples: list[Sample]
) -> None:
    first = write_samples(samples)
    lines = (tmp_path / sidecar_name(first.name)).read_bytes().partition(b"\n")[2]
    # Another memory layout of the same pixels.
    turned = [replace(s, image=np.asfortranarray(s.image), mask=np.asfortranarray(s.mask)) for s in samples]
    second = write_samples(turned, "val/b0000-00000.tar")
    assert (tmp_path / first.name).read_bytes() == (tmp_path / second.name).read_bytes()
    assert first.sha256 == second.sha256
    assert (tmp_path / sidecar_name(second.name)).read_bytes().endswith(lines)
    assert first.samples_sha256 == second.samples_sha256


def test_bytes_of_a_shard_are_those_of_every_release(write_samples: Callable[..., ShardEntry]) -> None:
    # Written down: were the format to change, old shards would be written and uploaded again.
    ramp = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    entry = write_samples([Sample(key="a", image=ramp, mask=np.array([[0, 1], [2, 255]], dtype=np.uint8))])
    assert entry.sha256 == "f2eedfb9087e351b15ffc29b3a9ef9a500e7d099d32462c10b7ccdc8525cde68"


def test_members_are_sorted_and_their_headers_fixed(
    tmp_path: Path, write_samples: Callable[..., ShardEntry], samples: list[Sample]
) -> None:
    write_samples(samples)
    with tarfile.open(tmp_path / FIRST_SHARD) as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == [
        f"{sample.key}.{extension}" for sample in samples for extension in ("image.npy", "json", "mask.npy")
    ]
    assert {(member.mtime, member.uname, member.gname, member.uid, member.gid) for member in members} == {
        (0, "unet", "unet", 0, 0)
    }


def test_entry_tells_hash_and_size_of_the_file(
    tmp_path: Path, write_samples: Callable[..., ShardEntry], samples: list[Sample]
) -> None:
    entry = write_samples(samples)
    assert entry.sha256 == hash_file(tmp_path / FIRST_SHARD)
    assert entry.num_bytes == (tmp_path / FIRST_SHARD).stat().st_size
    assert entry.name == FIRST_SHARD
    assert not list(tmp_path.rglob("*.partial"))


def test_entry_counts_pixels_of_classes_and_sums_of_channels(
    tmp_path: Path, write_samples: Callable[..., ShardEntry], samples: list[Sample], cells_map: ClassMap
) -> None:
    entry = write_samples(samples)
    pixels = np.concatenate([sample.image.reshape(-1, 3) for sample in samples]).astype(int)
    assert entry.channel_sums == tuple(pixels.sum(axis=0))
    assert entry.channel_square_sums == tuple((pixels**2).sum(axis=0))
    assert (entry.num_samples, entry.num_pixels, entry.dtype) == (3, len(pixels), "uint8")
    assert (entry.heights, entry.widths) == ((1, 16), (1, 11))
    counts = [count_class_pixels(sample.mask, cells_map) for sample in samples]
    assert entry.class_pixels == tuple(np.sum(counts, axis=0))
    reader = ShardReader(tmp_path, [entry])
    assert [reader.entry(number).class_pixels for number in range(3)] == counts


@pytest.mark.parametrize("which", ["multiclass", "multilabel"])
def test_webdataset_reads_the_arrays_without_code_of_ours(
    tmp_path: Path,
    write_samples: Callable[..., ShardEntry],
    samples: list[Sample],
    shapes_dir: Path,
    draw_sample: Callable[..., Sample],
    which: str,
) -> None:
    path = tmp_path / FIRST_SHARD
    if which == "multiclass":
        write_samples(samples)
    else:
        path, samples = shapes_dir / FIRST_SHARD, [draw_sample(number) for number in range(5)]
    found = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    assert len(found) == len(samples)
    for item, sample in zip(found, samples, strict=True):
        assert item["__key__"] == sample.key
        assert item["json"] == {"key": sample.key, "height": sample.image.shape[0], "width": sample.image.shape[1]}
        for name, array in (("image.npy", sample.image), ("mask.npy", sample.mask)):
            assert item[name].dtype == np.uint8
            np.testing.assert_array_equal(item[name], array)


@pytest.mark.parametrize("key", ["Größe_μm", "k" * 140, "with space", "-dash"])
def test_unusual_keys_come_back(
    tmp_path: Path, write_samples: Callable[..., ShardEntry], random_sample: Callable[..., Sample], key: str
) -> None:
    sample = random_sample(key)
    entry = write_samples([sample])
    assert write_samples([sample], "train/again.tar").sha256 == entry.sha256
    assert_same(ShardReader(tmp_path, [entry]).read(0), sample)
    (found,) = webdataset.WebDataset(str(tmp_path / FIRST_SHARD), shardshuffle=False)
    assert found["__key__"] == key


def test_shard_content_depends_on_keys_hashes_order_and_encoding() -> None:
    plain = shard_content([("a", "1"), ("b", "2")], "encoding")
    assert plain == shard_content(iter([("a", "1"), ("b", "2")]), "encoding")
    others = {
        shard_content([("b", "2"), ("a", "1")], "encoding"),
        shard_content([("a", "1"), ("b", "3")], "encoding"),
        shard_content([("a", "1"), ("c", "2")], "encoding"),
        shard_content([("a", "1"), ("b", "2")], "another"),
        shard_content([("a", "1")], "encoding"),
    }
    assert len(others | {plain}) == 6


def test_failing_sample_leaves_an_older_shard_alone(
    tmp_path: Path, write_samples: Callable[..., ShardEntry], samples: list[Sample], cells_map: ClassMap
) -> None:
    entry = write_samples(samples)

    def broken() -> Iterator[Sample]:
        yield samples[0]
        raise DataError("image can't be read")

    with pytest.raises(DataError, match="image can't be read"):
        write_shard(tmp_path, FIRST_SHARD, "other", pack_all(broken(), cells_map))
    assert hash_file(tmp_path / FIRST_SHARD) == entry.sha256
    assert not list(tmp_path.rglob("*.partial"))


# A full disk


def test_full_disk_leaves_no_half_written_shard(
    small_disk: Path, random_sample: Callable[..., Sample], cells_map: ClassMap
) -> None:
    large = (random_sample(f"large_{number}", height=300, width=300) for number in range(6))
    with pytest.raises(StorageError) as caught:
        write_shard(small_disk, FIRST_SHARD, "content", pack_all(large, cells_map))
    assert str(caught.value) == (
        f"disk full while writing a shard: {small_disk / FIRST_SHARD}. Nothing half-written was kept; free some space and "
        "run `dvc repro` again, finished shards are not written twice."
    )
    assert caught.value.exit_code == 7
    assert isinstance(caught.value.__cause__, OSError)
    assert not list(small_disk.rglob("*.tar"))
    assert not list(small_disk.rglob("*.partial"))


def test_shard_that_fits_is_written_after_the_disk_was_full(
    small_disk: Path, random_sample: Callable[..., Sample], cells_map: ClassMap
) -> None:
    large = [random_sample("large", height=700, width=700)]
    with pytest.raises(StorageError):
        write_shard(small_disk, FIRST_SHARD, "content", pack_all(large, cells_map))
    sample = random_sample("small", height=300, width=300)
    entry = write_shard(small_disk, FIRST_SHARD, "content", pack_all([sample], cells_map))
    reader = ShardReader(small_disk, [entry])
    assert_same(reader.read(0), sample)
    del reader  # unmaps the file, or the disk could not be unmounted


# Keys


@given(st.lists(KEYS, min_size=1, max_size=6, unique=True))
def test_any_key_comes_back_and_webdataset_keeps_samples_apart(
    tmp_path_factory: pytest.TempPathFactory, cells_map: ClassMap, keys: list[str]
) -> None:
    directory = tmp_path_factory.mktemp("keys")
    image, mask = np.zeros((2, 3, 1), np.uint8), np.zeros((2, 3), np.uint8)
    samples = [Sample(key=key, image=image + number, mask=mask) for number, key in enumerate(keys)]
    entry = write_shard(directory, FIRST_SHARD, "content", pack_all(samples, cells_map))
    assert list(ShardReader(directory, [entry]).keys()) == keys
    found = list(webdataset.WebDataset(str(directory / FIRST_SHARD), shardshuffle=False).decode())
    assert [item["json"]["key"] for item in found] == keys
    assert [item["image.npy"][0, 0, 0] for item in found] == list(range(len(keys)))


def test_keys_that_differ_in_case_dots_or_percents_are_other_names() -> None:
    keys = ["a.b", "a%2Eb", "A.b", "a/b", "a b", "a\tb", "..", "a..b"]
    names = [member_name(key) for key in keys]
    assert len(set(names)) == len(keys)
    assert not [name for name in names if set(name) & set("./\t")]
    assert names[4] == "a b"


# Which shard a sample is in


@given(st.sets(KEYS, min_size=2, max_size=40), st.integers(1, 10))
def test_a_samples_shard_depends_on_its_key_alone(keys: set[str], num_shards: int) -> None:
    numbers = {key: shard_number(key, num_shards) for key in keys}
    assert all(0 <= number < num_shards for number in numbers.values())
    keys.pop()
    assert all(shard_number(key, num_shards) == numbers[key] for key in keys)


def test_samples_spread_over_the_shards() -> None:
    counts = np.bincount([shard_number(f"key {number}", 10) for number in range(10_000)], minlength=10)
    assert counts.min() > 850
