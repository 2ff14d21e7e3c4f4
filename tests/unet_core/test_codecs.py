"""Depths and codecs of the arrays in shards."""

import io
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from tests.unet_core.sharded import FIRST_SHARD, assert_same
from unet_core.codecs import Codec
from unet_core.errors import DataError
from unet_core.packing import pack_all
from unet_core.reader import ShardReader
from unet_core.samples import ClassMap, Sample, Window
from unet_core.shards import write_shard


@pytest.mark.parametrize("codec", ["raw", "png"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_codecs_lose_nothing(tmp_path: Path, cells_map: ClassMap, codec: Codec, channels: int, dtype: type) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, np.iinfo(dtype).max, (13, 17, channels), dtype=dtype, endpoint=True)
    sample = Sample(key="a", image=image, mask=rng.integers(0, 3, (13, 17), dtype=np.uint8))
    entry = write_shard(tmp_path, FIRST_SHARD, "content", pack_all([sample], cells_map, codec))
    reader = ShardReader(tmp_path, [entry])
    assert_same(reader.read(0), sample)
    assert reader.read(0).image.dtype == dtype
    part = reader.read(0, Window(top=2, left=3, height=5, width=4))
    np.testing.assert_array_equal(part.image, image[2:7, 3:7])
    assert entry.channel_square_sums == tuple((image.reshape(-1, channels).astype(object) ** 2).sum(axis=0))


def test_png_without_a_place_for_the_channels_names_the_other_codec(tmp_path: Path, cells_map: ClassMap) -> None:
    sample = Sample(key="a", image=np.zeros((4, 4, 5), np.uint8), mask=np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError) as caught:
        write_shard(tmp_path, FIRST_SHARD, "content", pack_all([sample], cells_map, "png"))
    assert str(caught.value) == (
        "PNG has no place for this many channels: a: 5, it takes 1, 3 or 4. Set shard.codec: raw."
    )
    write_shard(tmp_path, FIRST_SHARD, "content", pack_all([sample], cells_map, "raw"))


@pytest.mark.parametrize("damage", [bytes(8), b"\x89PNG\r\n\x1a\n" + b"\xff" * 40])
def test_damaged_png_in_a_shard_is_named(
    tmp_path: Path, samples: list[Sample], cells_map: ClassMap, damage: bytes
) -> None:
    entry = write_shard(tmp_path, FIRST_SHARD, "content", pack_all(samples, cells_map, "png"))
    place = ShardReader(tmp_path, [entry]).entry(0).image
    data = bytearray((tmp_path / FIRST_SHARD).read_bytes())
    data[place.offset : place.offset + len(damage)] = damage
    (tmp_path / FIRST_SHARD).write_bytes(data)
    with pytest.raises(DataError, match=r"^a shard is damaged: .*: no image, the index says uint8 \(9, 11, 3\)\."):
        ShardReader(tmp_path, [entry]).read(0)


def test_images_of_two_depths_are_refused(tmp_path: Path, cells_map: ClassMap) -> None:
    mask = np.zeros((4, 4), np.uint8)
    samples = [Sample(key=str(t), image=np.zeros((4, 4, 1), t), mask=mask) for t in (np.uint8, np.uint16)]
    with pytest.raises(DataError, match="^images differ in depth: .*uint16, uint8 in one shard"):
        write_shard(tmp_path, FIRST_SHARD, "content", pack_all(samples, cells_map))


def test_webdataset_reads_png_shards(tmp_path: Path, samples: list[Sample], cells_map: ClassMap) -> None:
    write_shard(tmp_path, FIRST_SHARD, "content", pack_all(samples, cells_map, "png"))
    # As docs/shards.md says: "rgb8" for images; gray and index images as they are by a decoder of one line.
    url = str(tmp_path / FIRST_SHARD)
    for item, sample in zip(webdataset.WebDataset(url, shardshuffle=False).decode("rgb8"), samples, strict=True):
        np.testing.assert_array_equal(item["image.png"], sample.image)
        np.testing.assert_array_equal(item["mask.png"][..., 0], sample.mask)

    def png(data: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data)))

    plain = webdataset.WebDataset(url, shardshuffle=False).decode(webdataset.handle_extension("png", png))
    for item, sample in zip(plain, samples, strict=True):
        np.testing.assert_array_equal(item["image.png"], sample.image)
        np.testing.assert_array_equal(item["mask.png"], sample.mask)
