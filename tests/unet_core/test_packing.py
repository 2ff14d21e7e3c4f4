import io

import numpy as np
import pytest
from PIL import Image

from unet_core.decode import file_ending
from unet_core.errors import DataError
from unet_core.images import FileBytes, ImageConfig, read_image
from unet_core.index import Originals
from unet_core.packing import count, pass_through
from unet_core.pairs import read_sample
from unet_core.reader import ShardReader
from unet_core.samples import ClassMap
from unet_core.shards import write_shard

NAME = "train/b0001-00000.tar"
OBJECTS = ClassMap(kind="instances", classes={"background": 0, "cell": 1}, background="background")


def picture(pixels: np.ndarray, kind: str = "PNG", name: str = "a", **options: object) -> FileBytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=kind, **options)
    return FileBytes(name=name, data=stream.getvalue())


def write(tmp_path, image: FileBytes, masks: list[FileBytes], originals: Originals):
    sample = read_sample("a", image, masks, originals.images, originals.masks)
    packed = pass_through("a", image, masks, sample.image.shape, count(sample, originals.masks), originals)
    return sample, write_shard(tmp_path, NAME, "content", [packed], originals=originals)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"])
def test_a_files_ending_follows_from_its_content(kind: str) -> None:
    file = picture(np.zeros((4, 4), np.uint8), kind)
    ending = {"PNG": "png", "JPEG": "jpg", "TIFF": "tif", "BMP": "bmp", "GIF": "gif", "WEBP": "webp"}[kind]
    assert file_ending(file.data) == ending


def test_a_photograph_and_its_ids_come_back_as_they_are_read_from_their_files(tmp_path) -> None:
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[274] = 6
    image = picture(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8), "JPEG", exif=exif)
    ids = picture(rng.integers(0, 900, (20, 12), dtype=np.uint16))
    originals = Originals(images=ImageConfig(channels=3), masks=OBJECTS)
    sample, entry = write(tmp_path, image, [ids], originals)
    found = ShardReader(tmp_path, [entry]).read(0)
    assert sample.image.shape == (20, 12, 3)
    np.testing.assert_array_equal(found.image, sample.image)
    np.testing.assert_array_equal(found.mask, sample.mask)
    assert found.mask.dtype == np.uint16
    assert image.data in (tmp_path / NAME).read_bytes()


def test_masks_of_several_files_are_drawn(tmp_path, shapes_map: ClassMap) -> None:
    rng = np.random.default_rng(0)
    masks = [picture((rng.random((8, 8)) > 0.5).astype(np.uint8) * 255, name=name) for name in shapes_map.names]
    originals = Originals(images=ImageConfig(channels=1), masks=shapes_map)
    sample, entry = write(tmp_path, picture(np.zeros((8, 8), np.uint8)), masks, originals)
    reader = ShardReader(tmp_path, [entry])
    assert reader.entry(0).mask.codec == "raw"
    np.testing.assert_array_equal(reader.read(0).mask, sample.mask)


def test_16_bits_are_scaled_as_the_entry_says(tmp_path) -> None:
    config = ImageConfig(channels=1, bits=16, value_range=(100, 5000))
    image = picture(np.random.default_rng(0).integers(0, 6000, (9, 9), dtype=np.uint16))
    _, entry = write(tmp_path, image, [picture(np.zeros((9, 9), np.uint8))], Originals(images=config, masks=OBJECTS))
    np.testing.assert_array_equal(ShardReader(tmp_path, [entry]).read(0).image, read_image(image, config))


def test_a_file_that_is_not_what_the_index_says_is_refused(tmp_path) -> None:
    originals = Originals(images=ImageConfig(channels=1), masks=OBJECTS)
    image, mask = picture(np.zeros((8, 8), np.uint8)), picture(np.zeros((8, 8), np.uint8))
    sample = read_sample("a", image, [mask], originals.images, OBJECTS)
    packed = pass_through("a", image, [mask], (9, 8, 1), count(sample, OBJECTS), originals)
    entry = write_shard(tmp_path, NAME, "content", [packed], originals=originals)
    with pytest.raises(
        DataError, match=r"^a shard is damaged: .*, a: uint8 \(8, 8, 1\), the index says uint8 \(9, 8, 1\)"
    ):
        ShardReader(tmp_path, [entry]).read(0)


def test_a_shard_of_files_that_does_not_say_how_to_read_them_is_refused(tmp_path) -> None:
    originals = Originals(images=ImageConfig(channels=1), masks=OBJECTS)
    image, mask = picture(np.zeros((8, 8), np.uint8)), picture(np.zeros((8, 8), np.uint8))
    sample = read_sample("a", image, [mask], originals.images, OBJECTS)
    packed = pass_through("a", image, [mask], sample.image.shape, count(sample, OBJECTS), originals)
    entry = write_shard(tmp_path, NAME, "content", [packed])
    with pytest.raises(DataError, match=r"^a shard is damaged: .*: it does not say how its files are read\."):
        ShardReader(tmp_path, [entry]).read(0)
