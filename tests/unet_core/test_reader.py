"""ShardReader: samples and windows as they were written, and what is refused in shards and sidecars."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unet_core.sharded import FIRST_SHARD, assert_same
from unet_core.errors import DataError
from unet_core.index import ShardEntry, read_index, sidecar_name
from unet_core.reader import ShardReader
from unet_core.samples import Sample, Window
from unet_core.shards import finished_shards


def test_reader_gives_the_samples_that_were_written(
    tmp_path: Path, write_samples: Callable[..., ShardEntry], samples: list[Sample]
) -> None:
    entries = [write_samples(samples[:2]), write_samples(samples[2:], "train/b0000-00001.tar")]
    reader = ShardReader(tmp_path, entries)
    assert len(reader) == 3
    for found, sample in zip(reader, samples, strict=True):
        assert_same(found, sample)
    assert list(reader.keys()) == ["a", "b", "c"]


def test_offsets_of_the_index_lead_to_the_pixels(
    tmp_path: Path, write_samples: Callable[..., ShardEntry], samples: list[Sample]
) -> None:
    entry = write_samples(samples)
    data = (tmp_path / FIRST_SHARD).read_bytes()
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
    tmp_path: Path, write_samples: Callable[..., ShardEntry], samples: list[Sample], window: Window
) -> None:
    found = ShardReader(tmp_path, [write_samples(samples)]).read(0, window)
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
    tmp_path: Path, write_samples: Callable[..., ShardEntry], samples: list[Sample]
) -> None:
    reader = ShardReader(tmp_path, [write_samples(samples)])
    reader.read(0).image[:] = 0
    reader.read(0, Window(top=0, left=0, height=2, width=2)).mask[:] = 0
    assert_same(reader.read(0), samples[0])


def test_missing_shard_is_named(
    tmp_path: Path, write_samples: Callable[..., ShardEntry], samples: list[Sample]
) -> None:
    entry = write_samples(samples)
    (tmp_path / FIRST_SHARD).unlink()
    with pytest.raises(DataError) as caught:
        ShardReader(tmp_path, [entry]).read(0)
    with pytest.raises(DataError, match="a shard is missing"):
        ShardReader(tmp_path, [entry]).check_files()
    assert str(caught.value) == (
        f"a shard is missing: {tmp_path / FIRST_SHARD}. Run `dvc checkout` or `dvc repro shard`."
    )


def test_shard_of_another_size_is_named(
    tmp_path: Path, write_samples: Callable[..., ShardEntry], samples: list[Sample]
) -> None:
    entry = write_samples(samples)
    (tmp_path / FIRST_SHARD).write_bytes((tmp_path / FIRST_SHARD).read_bytes()[:-512])
    with pytest.raises(DataError) as caught:
        ShardReader(tmp_path, [entry]).check_files()
    assert str(caught.value) == (
        f"a shard is damaged: {tmp_path / FIRST_SHARD}: {entry.num_bytes - 512} bytes, the index says {entry.num_bytes}. "
        "Run `dvc repro -f -s shard`."
    )


@pytest.mark.parametrize(
    "damage", [lambda body: body[:-3], lambda body: body.replace(b'"a"', b'"b"'), lambda body: b"{"]
)
def test_damaged_sidecar_is_named_and_its_shard_not_trusted(
    tmp_path: Path, left_shards: list[ShardEntry], damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / sidecar_name(left_shards[0].name)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        DataError, match=rf"^the sidecar of a shard is damaged: {path}: .*Run `dvc repro -f -s shard`.$"
    ):
        ShardReader(tmp_path, left_shards).read(0)
    with finished_shards(tmp_path) as finished:
        assert set(finished) == {"second"}


def test_missing_sidecar_is_named_and_its_shard_not_trusted(tmp_path: Path, left_shards: list[ShardEntry]) -> None:
    path = tmp_path / sidecar_name(left_shards[0].name)
    path.unlink()
    with pytest.raises(DataError) as caught:
        ShardReader(tmp_path, left_shards).read(0)
    assert str(caught.value) == (
        f"the sidecar of a shard is missing: {path}. Run `dvc checkout` or `dvc repro -f -s shard`."
    )
    with finished_shards(tmp_path) as finished:
        assert set(finished) == {"second"}


def test_sidecar_of_another_shard_is_refused(tmp_path: Path, left_shards: list[ShardEntry]) -> None:
    with pytest.raises(DataError, match="is not the one that the index names"):
        ShardReader(tmp_path, [replace(left_shards[0], content="another")]).read(0)


@pytest.mark.parametrize(
    "change",
    [{"offset": 10**9}, {"offset": -1}, {"offset": "3"}, {"dtype": "object"}, {"codec": "pickle"}, {"shape": [2, 2]},
     {"num_bytes": 1}],
)  # fmt: skip
def test_places_that_do_not_fit_are_refused_as_damaged(
    tmp_path: Path, left_shards: list[ShardEntry], change: dict[str, object]
) -> None:
    # As from an untrusted place: every hash agrees.
    path = tmp_path / sidecar_name(left_shards[0].name)
    head, first, second = (json.loads(line) for line in path.read_text().splitlines())
    first["image"].update(change)
    lines = b"".join(json.dumps(line).encode() + b"\n" for line in (first, second))
    head["samples_sha256"] = hashlib.sha256(lines).hexdigest()
    path.write_bytes(json.dumps(head).encode() + b"\n" + lines)
    forged = replace(left_shards[0], samples_sha256=head["samples_sha256"])
    with pytest.raises(DataError, match="damaged"):
        ShardReader(tmp_path, [forged]).read(0)


def test_only_so_many_shards_stay_open(
    tmp_path: Path, write_samples: Callable[..., ShardEntry], random_sample: Callable[..., Sample]
) -> None:
    samples = [random_sample(f"s{number}") for number in range(12)]
    entries = [write_samples([sample], f"train/{number}.tar") for number, sample in enumerate(samples)]
    reader = ShardReader(tmp_path, entries, max_open=3)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(reader.read, list(range(12)) * 3))
    for number, sample in enumerate(found):
        assert_same(sample, samples[number % 12])
    assert len(reader._open) == 3
