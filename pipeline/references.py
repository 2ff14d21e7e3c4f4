"""A sample's references -> its bytes, wherever they lie, compared with what was recorded when they arrived."""

import hashlib
from collections.abc import Sequence

from pipeline.catalog import CatalogRow
from pipeline.coco import REFERENCE, read_annotations
from pipeline.storage import read_file
from unet_core.errors import DataError
from unet_core.images import FileBytes


def read_reference(source: str, reference: str) -> FileBytes:
    """The bytes of an image or a mask: a path below the source, or FILE.json#ID for an image's COCO annotations."""
    annotations = REFERENCE.fullmatch(reference)
    if annotations is not None:
        return read_annotations(source, annotations.group(1), int(annotations.group(2)))
    return read_file(source, reference)


def hash_image(image: FileBytes) -> str:
    """What ledger and catalog call `image_sha256`."""
    return hashlib.sha256(image.data).hexdigest()


def hash_masks(masks: Sequence[FileBytes]) -> str:
    """What ledger and catalog call `mask_sha256`: the hash of the hashes of all masks."""
    return hashlib.sha256("".join(hashlib.sha256(mask.data).hexdigest() for mask in masks).encode()).hexdigest()


def read_row(source: str, row: CatalogRow) -> tuple[FileBytes, list[FileBytes]]:
    """A sample's image and masks; DataError if they are not the bytes that were recorded."""
    image = read_reference(source, row.image)
    masks = [read_reference(source, mask) for mask in row.masks]
    if (hash_image(image), hash_masks(masks)) != (row.image_sha256, row.mask_sha256):
        raise DataError(
            f"a recorded sample has changed: {row.key}: {row.image} or its mask is not what the catalog says. "
            "Record the change with `unet add`, or restore the file."
        )
    return image, masks
