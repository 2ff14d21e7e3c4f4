import numpy as np
import pytest
from PIL import Image

from tests.unet_core.pictures import COLOUR, named, stored
from unet_core.errors import DataError
from unet_core.images import ImageConfig
from unet_core.pairs import read_sample, reading_hashes
from unet_core.samples import IGNORE_INDEX, ClassMap

ONE = ImageConfig(channels=1)


def test_sample_has_image_and_mask_of_one_size(cells_map: ClassMap) -> None:
    mask = stored(np.array([[0, 1, 7], [200, 0, 1]], dtype=np.uint8))
    sample = read_sample("scan", named(stored(COLOUR)), [named(mask)], ImageConfig(channels=3), cells_map)
    assert sample.key == "scan"
    np.testing.assert_array_equal(sample.image, COLOUR)
    np.testing.assert_array_equal(sample.mask, [[0, 1, 2], [IGNORE_INDEX, 0, 1]])


def test_mask_of_another_size_is_refused(cells_map: ClassMap) -> None:
    image, mask = stored(np.zeros((512, 512), np.uint8)), stored(np.zeros((510, 512), np.uint8))
    with pytest.raises(DataError) as caught:
        read_sample("scan_017", named(image), [named(mask)], ONE, cells_map)
    assert str(caught.value) == (
        "mask size differs from image: scan_017: image 512x512, mask 512x510. "
        "Export the mask again, or remove the pair."
    )


def test_mask_of_a_turned_image_that_was_not_turned_is_named_so(cells_map: ClassMap) -> None:
    exif = Image.Exif()
    exif[274] = 6
    image = stored(np.zeros((4, 6), np.uint8), "JPEG", exif=exif)
    with pytest.raises(DataError) as caught:
        read_sample("photo", named(image), [named(stored(np.zeros((4, 6), np.uint8)))], ONE, cells_map)
    assert str(caught.value) == (
        "mask size differs from image: photo: image 4x6, mask 6x4. The image was turned, as its EXIF orientation says, "
        "and the mask was not. Export the mask again, or remove the pair."
    )


def test_every_module_that_reads_files_is_hashed() -> None:
    hashes = reading_hashes()
    assert len(set(hashes)) == len(hashes) == 11
    assert [text.split()[0] for text in hashes[8:]] == ["pillow", "imagecodecs", "tifffile"]
