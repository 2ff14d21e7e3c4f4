import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unet_core.codecs import Codec
from unet_core.errors import DataError, StorageError
from unet_core.hashing import hash_file
from unet_core.index import INDEX_NAME, ShardEntry, ShardIndex, read_index, sidecar_name, write_index
from unet_core.packing import pack_all
from unet_core.reader import ShardReader
from unet_core.samples import ClassMap, Sample, Window, count_class_pixels
from unet_core.shards import finished_shards, member_name, shard_content, shard_number, write_shard

NAME = "train/b0000-00000.tar"


@pytest.fixture
def samples(random_sample: Callable[..., Sample]) -> list[Sample]:
    """Three multiclass samples of different sizes."""
    return [random_sample(key, height=height, width=width) for key, height, width in SIZES]


SIZES = (("a", 9, 11), ("b", 1, 1), ("c", 16, 5))


@pytest.fixture
def write(tmp_path: Path, cells_map: ClassMap) -> Callable[..., ShardEntry]:
    """Write samples as a shard below tmp_path."""

    def write(samples: list[Sample], name: str = NAME, content: str = "content") -> ShardEntry:
        return write_shard(tmp_path, name, content, pack_all(samples, cells_map))

    return write


def index_of(class_map: ClassMap, *entries: ShardEntry, channels: int = 3) -> ShardIndex:
    return ShardIndex(class_map=class_map, channels=channels, shards=entries)


def assert_same(first: Sample, second: Sample) -> None:
    assert first.key == second.key
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)


# Writing


def test_equal_samples_give_equal_bytes(
    tmp_path: Path, write: Callable[..., ShardEntry], samples: list[Sample]
) -> None:
    first = write(samples)
    lines = (tmp_path / sidecar_name(first.name)).read_bytes().partition(b"\n")[2]
    # Another memory layout of the same pixels.
    turned = [replace(s, image=np.asfortranarray(s.image), mask=np.asfortranarray(s.mask)) for s in samples]
    second = write(turned, "val/b0000-00000.tar")
    assert (tmp_path / first.name).read_bytes() == (tmp_path / second.name).read_bytes()
    assert first.sha256 == second.sha256
    assert (tmp_path / sidecar_name(second.name)).read_bytes().endswith(lines)
    assert first.samples_sha256 == second.samples_sha256


def test_bytes_of_a_shard_are_those_of_every_release(write: Callable[..., ShardEntry]) -> None:
    # Written down: were the format to change, old shards would be written and uploaded again.
    ramp = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    entry = write([Sample(key="a", image=ramp, mask=np.array([[0, 1], [2, 255]], dtype=np.uint8))])
    assert entry.sha256 == "f2eedfb9087e351b15ffc29b3a9ef9a500e7d099d32462c10b7ccdc8525cde68"


def test_members_are_sorted_and_their_headers_fixed(
    tmp_path: Path, write: Callable[..., ShardEntry], samples: list[Sample]
) -> None:
    write(samples)
    with tarfile.open(tmp_path / NAME) as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == [
        f"{sample.key}.{extension}" for sample in samples for extension in ("image.npy", "json", "mask.npy")
    ]
    assert {(member.mtime, member.uname, member.gname, member.uid, member.gid) for member in members} == {
        (0, "unet", "unet", 0, 0)
    }


def test_entry_tells_hash_and_size_of_the_file(
    tmp_path: Path, write: Callable[..., ShardEntry], samples: list[Sample]
) -> None:
    entry = write(samples)
    assert entry.sha256 == hash_file(tmp_path / NAME)
    assert entry.num_bytes == (tmp_path / NAME).stat().st_size
    assert entry.name == NAME
    assert not list(tmp_path.rglob("*.partial"))


def test_entry_counts_pixels_of_classes_and_sums_of_channels(
    tmp_path: Path, write: Callable[..., ShardEntry], samples: list[Sample], cells_map: ClassMap
) -> None:
    entry = write(samples)
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
    write: Callable[..., ShardEntry],
    samples: list[Sample],
    shapes_dir: Path,
    draw_sample: Callable[..., Sample],
    which: str,
) -> None:
    path = tmp_path / NAME
    if which == "multiclass":
        write(samples)
    else:
        path, samples = shapes_dir / NAME, [draw_sample(number) for number in range(5)]
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
    tmp_path: Path, write: Callable[..., ShardEntry], random_sample: Callable[..., Sample], key: str
) -> None:
    sample = random_sample(key)
    entry = write([sample])
    assert write([sample], "train/again.tar").sha256 == entry.sha256
    assert_same(ShardReader(tmp_path, [entry]).read(0), sample)
    (found,) = webdataset.WebDataset(str(tmp_path / NAME), shardshuffle=False)
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
    tmp_path: Path, write: Callable[..., ShardEntry], samples: list[Sample], cells_map: ClassMap
) -> None:
    entry = write(samples)

    def broken() -> Iterator[Sample]:
        yield samples[0]
        raise DataError("image can't be read")

    with pytest.raises(DataError, match="image can't be read"):
        write_shard(tmp_path, NAME, "other", pack_all(broken(), cells_map))
    assert hash_file(tmp_path / NAME) == entry.sha256
    assert not list(tmp_path.rglob("*.partial"))


# A full disk


def test_full_disk_leaves_no_half_written_shard(
    small_disk: Path, random_sample: Callable[..., Sample], cells_map: ClassMap
) -> None:
    large = (random_sample(f"large_{number}", height=300, width=300) for number in range(6))
    with pytest.raises(StorageError) as caught:
        write_shard(small_disk, NAME, "content", pack_all(large, cells_map))
    assert str(caught.value) == (
        f"disk full while writing a shard: {small_disk / NAME}. Nothing half-written was kept; free some space and "
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
        write_shard(small_disk, NAME, "content", pack_all(large, cells_map))
    sample = random_sample("small", height=300, width=300)
    entry = write_shard(small_disk, NAME, "content", pack_all([sample], cells_map))
    reader = ShardReader(small_disk, [entry])
    assert_same(reader.read(0), sample)
    del reader  # unmaps the file, or the disk could not be unmounted


def test_full_disk_keeps_the_old_index(
    small_disk: Path, random_sample: Callable[..., Sample], cells_map: ClassMap
) -> None:
    entry = write_shard(small_disk, NAME, "content", pack_all([random_sample("a")], cells_map))
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


# Reading


def test_reader_gives_the_samples_that_were_written(
    tmp_path: Path, write: Callable[..., ShardEntry], samples: list[Sample]
) -> None:
    entries = [write(samples[:2]), write(samples[2:], "train/b0000-00001.tar")]
    reader = ShardReader(tmp_path, entries)
    assert len(reader) == 3
    for found, sample in zip(reader, samples, strict=True):
        assert_same(found, sample)
    assert list(reader.keys()) == ["a", "b", "c"]


def test_offsets_of_the_index_lead_to_the_pixels(
    tmp_path: Path, write: Callable[..., ShardEntry], samples: list[Sample]
) -> None:
    entry = write(samples)
    data = (tmp_path / NAME).read_bytes()
    reader = ShardReader(tmp_path, [entry])
    for number, sample in enumerate(samples):
        place = reader.entry(number)
        for where, array in ((place.image, sample.image), (place.mask, sample.mask)):
            assert where.shape == array.shape
            assert data[where.offset : where.offset + array.size] == array.tobytes()


@pytest.mark.parametrize(
    "window",
    [
        Window(top=0, left=0, height=9, width=11),
        Window(top=0, left=0, height=1, width=1),
        Window(top=8, left=10, height=1, width=1),
        Window(top=2, left=3, height=4, width=5),
        Window(top=5, left=0, height=4, width=11),
    ],
    ids=["whole", "first pixel", "last pixel", "middle", "lower rows"],
)
def test_window_is_the_same_part_of_image_and_mask(
    tmp_path: Path, write: Callable[..., ShardEntry], samples: list[Sample], window: Window
) -> None:
    found = ShardReader(tmp_path, [write(samples)]).read(0, window)
    rows, columns = (
        slice(window.top, window.top + window.height),
        slice(window.left, window.left + window.width),
    )
    np.testing.assert_array_equal(found.image, samples[0].image[rows, columns])
    np.testing.assert_array_equal(found.mask, samples[0].mask[rows, columns])


def test_window_of_planes_has_all_planes(shapes_dir: Path, draw_sample: Callable[..., Sample]) -> None:
    reader = ShardReader(shapes_dir, read_index(shapes_dir).of_split("train"))
    found = reader.read(7, Window(top=4, left=8, height=16, width=20))
    np.testing.assert_array_equal(found.mask, draw_sample(7).mask[4:20, 8:28])


def test_what_was_read_may_be_changed_without_changing_the_shard(
    tmp_path: Path, write: Callable[..., ShardEntry], samples: list[Sample]
) -> None:
    reader = ShardReader(tmp_path, [write(samples)])
    reader.read(0).image[:] = 0
    reader.read(0, Window(top=0, left=0, height=2, width=2)).mask[:] = 0
    assert_same(reader.read(0), samples[0])


def test_missing_shard_is_named(tmp_path: Path, write: Callable[..., ShardEntry], samples: list[Sample]) -> None:
    entry = write(samples)
    (tmp_path / NAME).unlink()
    with pytest.raises(DataError) as caught:
        ShardReader(tmp_path, [entry]).read(0)
    with pytest.raises(DataError, match="a shard is missing"):
        ShardReader(tmp_path, [entry]).check_files()
    assert str(caught.value) == (f"a shard is missing: {tmp_path / NAME}. Run `dvc checkout` or `dvc repro shard`.")


def test_shard_of_another_size_is_named(
    tmp_path: Path, write: Callable[..., ShardEntry], samples: list[Sample]
) -> None:
    entry = write(samples)
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:-512])
    with pytest.raises(DataError) as caught:
        ShardReader(tmp_path, [entry]).check_files()
    assert str(caught.value) == (
        f"a shard is damaged: {tmp_path / NAME}: {entry.num_bytes - 512} bytes, the index says {entry.num_bytes}. "
        "Run `dvc repro -f -s shard`."
    )


# The index


def test_index_comes_back_as_it_was_written(
    tmp_path: Path, write: Callable[..., ShardEntry], samples: list[Sample], cells_map: ClassMap
) -> None:
    index = index_of(cells_map, write(samples))
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
    write: Callable[..., ShardEntry], samples: list[Sample], cells_map: ClassMap
) -> None:
    entry = write(samples)
    other = replace(entry, split="val", channel_sums=(0, 0, 0))
    mean, deviation = index_of(cells_map, entry, other).train_statistics()
    pixels = np.concatenate([sample.image.reshape(-1, 3) for sample in samples]) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(deviation, pixels.std(axis=0), rtol=1e-9)


def test_deviation_of_a_constant_channel_is_one_grey_level(
    write: Callable[..., ShardEntry], cells_map: ClassMap
) -> None:
    white = Sample(key="a", image=np.full((4, 4, 1), 255, np.uint8), mask=np.zeros((4, 4), np.uint8))
    mean, deviation = index_of(cells_map, write([white]), channels=1).train_statistics()
    assert mean == (1.0,)
    assert deviation == (1 / 255,)


def test_statistics_without_training_samples_are_refused(
    write: Callable[..., ShardEntry], samples: list[Sample], cells_map: ClassMap
) -> None:
    with pytest.raises(DataError, match="no training samples"):
        index_of(cells_map, replace(write(samples), split="val")).train_statistics()


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
    tmp_path: Path, left: list[ShardEntry], name: str, value: object
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


# Shards that an earlier run left


@pytest.fixture
def left(
    tmp_path: Path, write: Callable[..., ShardEntry], samples: list[Sample], cells_map: ClassMap
) -> list[ShardEntry]:
    """Two shards and their index, as an earlier run left them."""
    entries = [write(samples[:2], content="first"), write(samples[2:], "train/b0000-00001.tar", "second")]
    write_index(tmp_path, index_of(cells_map, *entries))
    return entries


def test_whole_shards_are_found_by_their_content(tmp_path: Path, left: list[ShardEntry]) -> None:
    with finished_shards(tmp_path) as finished:
        assert finished == {"first": left[0], "second": left[1]}
    assert all((tmp_path / entry.name).is_file() for entry in left)


def test_shard_whose_bytes_changed_is_not_trusted(tmp_path: Path, left: list[ShardEntry]) -> None:
    path = tmp_path / left[0].name
    data = bytearray(path.read_bytes())
    data[ShardReader(tmp_path, left).entry(0).image.offset] ^= 1  # one bit of one pixel; the size stays
    path.write_bytes(data)
    with finished_shards(tmp_path) as finished:
        assert set(finished) == {"second"}


def test_missing_shard_is_not_trusted(tmp_path: Path, left: list[ShardEntry]) -> None:
    (tmp_path / left[0].name).unlink()
    with finished_shards(tmp_path) as finished:
        assert set(finished) == {"second"}


def test_half_written_shards_are_removed_at_once(tmp_path: Path, left: list[ShardEntry]) -> None:
    partial = tmp_path / "train" / "b0000-00002.tar.partial"
    partial.write_bytes(b"half")
    with finished_shards(tmp_path):
        assert not partial.exists()


def test_shards_that_the_new_index_does_not_name_are_removed(
    tmp_path: Path, left: list[ShardEntry], cells_map: ClassMap
) -> None:
    stranger = tmp_path / "old" / "b0009-00000.tar"
    stranger.parent.mkdir()
    stranger.write_bytes(b"from long ago")
    with finished_shards(tmp_path) as finished:
        write_index(tmp_path, index_of(cells_map, finished["second"]))
        assert (tmp_path / left[0].name).exists()  # until the end: what fails must lose nothing
    assert not (tmp_path / left[0].name).exists()
    assert not stranger.exists()
    assert (tmp_path / left[1].name).exists()


def test_a_run_that_fails_removes_no_shard(tmp_path: Path, left: list[ShardEntry], cells_map: ClassMap) -> None:
    with pytest.raises(DataError, match="of the run"), finished_shards(tmp_path):
        write_index(tmp_path, index_of(cells_map))
        raise DataError("of the run")
    assert all((tmp_path / entry.name).exists() for entry in left)


@pytest.mark.parametrize("content", [None, b"{", b'{"format": 1}', b"\xff\xfe\0", b"[]"])
def test_without_a_readable_index_finished_shards_are_found_by_their_sidecars(
    tmp_path: Path, left: list[ShardEntry], cells_map: ClassMap, content: bytes | None
) -> None:
    # A run that was killed before it wrote the index; and `dvc repro -f -s shard`, which a damaged index names, must work.
    (tmp_path / INDEX_NAME).unlink()
    if content is not None:
        (tmp_path / INDEX_NAME).write_bytes(content)
    with finished_shards(tmp_path) as finished:
        assert finished == {"first": left[0], "second": left[1]}
        write_index(tmp_path, index_of(cells_map, left[0]))
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


# Sidecars


@pytest.mark.parametrize(
    "damage", [lambda body: body[:-3], lambda body: body.replace(b'"a"', b'"b"'), lambda body: b"{"]
)
def test_damaged_sidecar_is_named_and_its_shard_not_trusted(
    tmp_path: Path, left: list[ShardEntry], damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / sidecar_name(left[0].name)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        DataError, match=rf"^the sidecar of a shard is damaged: {path}: .*Run `dvc repro -f -s shard`.$"
    ):
        ShardReader(tmp_path, left).read(0)
    with finished_shards(tmp_path) as finished:
        assert set(finished) == {"second"}


def test_missing_sidecar_is_named_and_its_shard_not_trusted(tmp_path: Path, left: list[ShardEntry]) -> None:
    path = tmp_path / sidecar_name(left[0].name)
    path.unlink()
    with pytest.raises(DataError) as caught:
        ShardReader(tmp_path, left).read(0)
    assert str(caught.value) == (
        f"the sidecar of a shard is missing: {path}. Run `dvc checkout` or `dvc repro -f -s shard`."
    )
    with finished_shards(tmp_path) as finished:
        assert set(finished) == {"second"}


def test_sidecar_of_another_shard_is_refused(tmp_path: Path, left: list[ShardEntry]) -> None:
    with pytest.raises(DataError, match="is not the one that the index names"):
        ShardReader(tmp_path, [replace(left[0], content="another")]).read(0)


@pytest.mark.parametrize(
    "change",
    [{"offset": 10**9}, {"offset": -1}, {"offset": "3"}, {"dtype": "object"}, {"codec": "pickle"}, {"shape": [2, 2]},
     {"num_bytes": 1}],
)  # fmt: skip
def test_places_that_do_not_fit_are_refused_as_damaged(
    tmp_path: Path, left: list[ShardEntry], change: dict[str, object]
) -> None:
    # As from an untrusted place: every hash agrees.
    path = tmp_path / sidecar_name(left[0].name)
    head, first, second = (json.loads(line) for line in path.read_text().splitlines())
    first["image"].update(change)
    lines = b"".join(json.dumps(line).encode() + b"\n" for line in (first, second))
    head["samples_sha256"] = hashlib.sha256(lines).hexdigest()
    path.write_bytes(json.dumps(head).encode() + b"\n" + lines)
    forged = replace(left[0], samples_sha256=head["samples_sha256"])
    with pytest.raises(DataError, match="damaged"):
        ShardReader(tmp_path, [forged]).read(0)


@pytest.mark.parametrize("name", ["/etc/a.tar", "../a.tar", "train/../../a.tar", "train\\a.tar", "C:/a.tar"])
def test_index_that_names_a_file_outside_is_refused(
    tmp_path: Path, left: list[ShardEntry], cells_map: ClassMap, name: str
) -> None:
    write_index(tmp_path, index_of(cells_map, replace(left[0], name=name)))
    with pytest.raises(DataError) as caught:
        read_index(tmp_path)
    assert str(caught.value) == (
        f"an index names a file outside its folder: {tmp_path / INDEX_NAME}: {name}. "
        "Don't use these shards; get them anew from where you trust."
    )


def test_only_so_many_shards_stay_open(
    tmp_path: Path, write: Callable[..., ShardEntry], random_sample: Callable[..., Sample]
) -> None:
    samples = [random_sample(f"s{number}") for number in range(12)]
    entries = [write([sample], f"train/{number}.tar") for number, sample in enumerate(samples)]
    reader = ShardReader(tmp_path, entries, max_open=3)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(reader.read, list(range(12)) * 3))
    for number, sample in enumerate(found):
        assert_same(sample, samples[number % 12])
    assert len(reader._open) == 3


# Keys, depths, codecs

KEYS = st.text(st.characters(exclude_categories=()), min_size=1, max_size=30)


@given(st.lists(KEYS, min_size=1, max_size=6, unique=True))
def test_any_key_comes_back_and_webdataset_keeps_samples_apart(
    tmp_path_factory: pytest.TempPathFactory, cells_map: ClassMap, keys: list[str]
) -> None:
    directory = tmp_path_factory.mktemp("keys")
    image, mask = np.zeros((2, 3, 1), np.uint8), np.zeros((2, 3), np.uint8)
    samples = [Sample(key=key, image=image + number, mask=mask) for number, key in enumerate(keys)]
    entry = write_shard(directory, NAME, "content", pack_all(samples, cells_map))
    assert list(ShardReader(directory, [entry]).keys()) == keys
    found = list(webdataset.WebDataset(str(directory / NAME), shardshuffle=False).decode())
    assert [item["json"]["key"] for item in found] == keys
    assert [item["image.npy"][0, 0, 0] for item in found] == list(range(len(keys)))


def test_keys_that_differ_in_case_dots_or_percents_are_other_names() -> None:
    keys = ["a.b", "a%2Eb", "A.b", "a/b", "a b", "a\tb", "..", "a..b"]
    names = [member_name(key) for key in keys]
    assert len(set(names)) == len(keys)
    assert not [name for name in names if set(name) & set("./\t")]
    assert names[4] == "a b"


@pytest.mark.parametrize("codec", ["raw", "png"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_codecs_lose_nothing(tmp_path: Path, cells_map: ClassMap, codec: Codec, channels: int, dtype: type) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, np.iinfo(dtype).max, (13, 17, channels), dtype=dtype, endpoint=True)
    sample = Sample(key="a", image=image, mask=rng.integers(0, 3, (13, 17), dtype=np.uint8))
    entry = write_shard(tmp_path, NAME, "content", pack_all([sample], cells_map, codec))
    reader = ShardReader(tmp_path, [entry])
    assert_same(reader.read(0), sample)
    assert reader.read(0).image.dtype == dtype
    part = reader.read(0, Window(top=2, left=3, height=5, width=4))
    np.testing.assert_array_equal(part.image, image[2:7, 3:7])
    assert entry.channel_square_sums == tuple((image.reshape(-1, channels).astype(object) ** 2).sum(axis=0))


def test_statistics_of_16_bits_are_in_units_of_full_scale(tmp_path: Path, cells_map: ClassMap) -> None:
    image = np.random.default_rng(0).integers(60_000, 65_536, (20, 20, 2), dtype=np.uint16)
    entry = write_shard(
        tmp_path, NAME, "c", pack_all([Sample(key="a", image=image, mask=np.zeros((20, 20), np.uint8))], cells_map)
    )
    mean, deviation = index_of(cells_map, entry, channels=2).train_statistics()
    np.testing.assert_allclose(mean, image.mean(axis=(0, 1)) / 65535, rtol=1e-12)
    np.testing.assert_allclose(deviation, image.std(axis=(0, 1)) / 65535, rtol=1e-9)


def test_png_without_a_place_for_the_channels_names_the_other_codec(tmp_path: Path, cells_map: ClassMap) -> None:
    sample = Sample(key="a", image=np.zeros((4, 4, 5), np.uint8), mask=np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError) as caught:
        write_shard(tmp_path, NAME, "content", pack_all([sample], cells_map, "png"))
    assert str(caught.value) == (
        "PNG has no place for this many channels: a: 5, it takes 1, 3 or 4. Set shard.codec: raw."
    )
    write_shard(tmp_path, NAME, "content", pack_all([sample], cells_map, "raw"))


@pytest.mark.parametrize("damage", [bytes(8), b"\x89PNG\r\n\x1a\n" + b"\xff" * 40])
def test_damaged_png_in_a_shard_is_named(
    tmp_path: Path, samples: list[Sample], cells_map: ClassMap, damage: bytes
) -> None:
    entry = write_shard(tmp_path, NAME, "content", pack_all(samples, cells_map, "png"))
    place = ShardReader(tmp_path, [entry]).entry(0).image
    data = bytearray((tmp_path / NAME).read_bytes())
    data[place.offset : place.offset + len(damage)] = damage
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(DataError, match=r"^a shard is damaged: .*: no image, the index says uint8 \(9, 11, 3\)\."):
        ShardReader(tmp_path, [entry]).read(0)


def test_images_of_two_depths_are_refused(tmp_path: Path, cells_map: ClassMap) -> None:
    mask = np.zeros((4, 4), np.uint8)
    samples = [Sample(key=str(t), image=np.zeros((4, 4, 1), t), mask=mask) for t in (np.uint8, np.uint16)]
    with pytest.raises(DataError, match="^images differ in depth: .*uint16, uint8 in one shard"):
        write_shard(tmp_path, NAME, "content", pack_all(samples, cells_map))


def test_webdataset_reads_png_shards(tmp_path: Path, samples: list[Sample], cells_map: ClassMap) -> None:
    write_shard(tmp_path, NAME, "content", pack_all(samples, cells_map, "png"))
    # As docs/shards.md says: "rgb8" for images; gray and index images as they are by a decoder of one line.
    url = str(tmp_path / NAME)
    for item, sample in zip(webdataset.WebDataset(url, shardshuffle=False).decode("rgb8"), samples, strict=True):
        np.testing.assert_array_equal(item["image.png"], sample.image)
        np.testing.assert_array_equal(item["mask.png"][..., 0], sample.mask)

    def png(data: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data)))

    plain = webdataset.WebDataset(url, shardshuffle=False).decode(webdataset.handle_extension("png", png))
    for item, sample in zip(plain, samples, strict=True):
        np.testing.assert_array_equal(item["image.png"], sample.image)
        np.testing.assert_array_equal(item["mask.png"], sample.mask)


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
