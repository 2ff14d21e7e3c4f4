"""An image file and its mask files -> a sample, once they are found to belong together."""

from collections.abc import Sequence

from unet_core.errors import DataError
from unet_core.images import FileBytes, ImageConfig, read_image
from unet_core.masks import read_mask
from unet_core.samples import ClassMap, Sample


def read_sample(
    key: str, image: FileBytes, masks: Sequence[FileBytes], config: ImageConfig, class_map: ClassMap
) -> Sample:
    """Read one image-mask pair and check that they belong together; DataError says what is wrong."""
    pixels = read_image(image, config)
    encoded = read_mask(masks, class_map)
    if pixels.shape[:2] != encoded.shape[:2]:
        raise DataError(
            f"mask size differs from image: {key}: image {pixels.shape[1]}x{pixels.shape[0]}, "
            f"mask {encoded.shape[1]}x{encoded.shape[0]}. Export the mask again, or remove the pair."
        )
    return Sample(key=key, image=pixels, mask=encoded)
