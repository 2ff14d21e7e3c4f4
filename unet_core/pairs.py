"""An image file and its mask files -> a sample, once they are found to belong together."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import unet_core.coco
import unet_core.decode
import unet_core.images
import unet_core.masks
import unet_core.picture
import unet_core.png
import unet_core.tiff
from unet_core.errors import DataError
from unet_core.hashing import hash_file
from unet_core.images import FileBytes, ImageConfig, convert_image, read_picture
from unet_core.masks import read_mask
from unet_core.samples import ClassMap, Sample

#: Libraries whose next version may decode a file to other pixels.
DECODERS = ("pillow", "imagecodecs", "tifffile")


def read_sample(
    key: str, image: FileBytes, masks: Sequence[FileBytes], config: ImageConfig, class_map: ClassMap
) -> Sample:
    """Read one image-mask pair and check that they belong together; DataError says what is wrong."""
    picture = read_picture(image, "image", config.page)
    pixels = convert_image(picture, config, where=image.name)
    encoded = read_mask(masks, class_map)
    if pixels.shape[:2] != encoded.shape[:2]:
        turned = (
            " The image was turned, as its EXIF orientation says, and the mask was not." if picture.is_turned else ""
        )
        raise DataError(
            f"mask size differs from image: {key}: image {pixels.shape[1]}x{pixels.shape[0]}, "
            f"mask {encoded.shape[1]}x{encoded.shape[0]}.{turned} Export the mask again, or remove the pair."
        )
    return Sample(key=key, image=pixels, mask=encoded)


def reading_hashes() -> list[str]:
    """Hashes and versions of what turns files into samples: files that are read in another way are other shards."""
    modules = (
        unet_core.coco,
        unet_core.decode,
        unet_core.images,
        unet_core.masks,
        unet_core.picture,
        unet_core.png,
        unet_core.tiff,
    )
    own = [hash_file(Path(str(module.__file__))) for module in modules] + [hash_file(Path(__file__))]
    return own + [f"{name} {version(name)}" for name in DECODERS]
