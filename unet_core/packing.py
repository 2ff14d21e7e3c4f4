"""A sample -> the members it has in a shard and what is counted of it: decoded and encoded anew, or file by file.

`pack_all` takes decoded samples; `pass_through` puts files into a shard as they came, with counts that were taken when
they were checked, so that nothing is decoded.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unet_core.coco import is_coco
from unet_core.codecs import Codec, Pixels, codec_of_mask, encode_array
from unet_core.decode import file_ending
from unet_core.images import FileBytes
from unet_core.index import Originals
from unet_core.masks import read_mask
from unet_core.samples import ClassMap, Sample, count_class_pixels

#: Pixels whose squares are added at once: 2**18 * 65535**2 is below 2**53, so float64 adds them exactly.
EXACT_PIXELS = 2**18


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What is counted of a sample, in whole numbers."""

    class_pixels: tuple[int, ...]
    channel_sums: tuple[int, ...]
    """Sum of the pixel values of each channel."""
    channel_square_sums: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PackedArray:
    """A member of the tar."""

    data: bytes
    begin: int
    """At which byte the payload begins, behind an npy header."""
    ending: str
    """Of the member's name."""
    shape: tuple[int, ...]
    dtype: str
    codec: Codec


@dataclass(frozen=True, kw_only=True)
class PackedSample:
    """A sample as it goes into a shard."""

    key: str
    image: PackedArray
    mask: PackedArray
    counts: Counts


def pack_all(samples: Iterable[Sample], class_map: ClassMap, codec: Codec = "raw") -> Iterator[PackedSample]:
    """Encode decoded samples one by one; `codec` is raw or png. DataError for what the codec has no place for."""
    return (_pack(sample, class_map, codec) for sample in samples)


def _pack(sample: Sample, class_map: ClassMap, codec: Codec) -> PackedSample:
    mask_codec = codec_of_mask(sample.mask, codec)
    return PackedSample(
        key=sample.key,
        image=_pack_array(sample.image, codec, where=sample.key),
        mask=_pack_array(sample.mask, mask_codec, where=sample.key),
        counts=count(sample, class_map),
    )


def pass_through(
    key: str,
    image: FileBytes,
    masks: Sequence[FileBytes],
    shape: tuple[int, int, int],
    counts: Counts,
    originals: Originals,
) -> PackedSample:
    """Take the files as they are; a mask made of several files or of annotations is drawn, and stored as PNG.

    `shape`: (H, W, C) of the image once it is read; it and `counts` are those of the checked files.
    """
    class_map = originals.masks
    if class_map.kind != "multilabel" and len(masks) == 1 and not is_coco(masks[0].data):
        mask = _original(masks[0], shape[:2], "uint16" if class_map.kind == "instances" else "uint8")
    else:
        drawn = read_mask(masks, class_map)
        mask = _pack_array(drawn, codec_of_mask(drawn, "png"), where=key)
    image_bits = f"uint{originals.images.bits}"
    return PackedSample(key=key, image=_original(image, shape, image_bits), mask=mask, counts=counts)


def count(sample: Sample, class_map: ClassMap) -> Counts:
    """Count a sample's pixels by class, and add up the values of its channels."""
    sums, squares = channel_sums(sample.image)
    return Counts(
        class_pixels=count_class_pixels(sample.mask, class_map), channel_sums=sums, channel_square_sums=squares
    )


def channel_sums(image: Pixels) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sums of values and of their squares for each channel of (H, W, C), exact for 8 and 16 bits."""
    pixels = image.reshape(-1, image.shape[-1])
    sums, squares = [0] * pixels.shape[1], [0] * pixels.shape[1]
    for start in range(0, len(pixels), EXACT_PIXELS):
        for channel in range(pixels.shape[1]):
            values = pixels[start : start + EXACT_PIXELS, channel].astype(np.float64)
            sums[channel] += int(values.sum())
            # Not `values @ values`: BLAS' threads wait for each other, which took ten times as long on one core.
            squares[channel] += int(np.einsum("i,i->", values, values))
    return tuple(sums), tuple(squares)


def _pack_array(array: Pixels, codec: Codec, *, where: str) -> PackedArray:
    data, begin = encode_array(array, codec, where=where)
    ending = "npy" if codec == "raw" else "png"
    return PackedArray(
        data=data, begin=begin, ending=ending, shape=array.shape, dtype=array.dtype.name, codec=codec
    )  # fmt: skip


def _original(file: FileBytes, shape: tuple[int, ...], dtype: str) -> PackedArray:
    return PackedArray(
        data=file.data, begin=0, ending=file_ending(file.data), shape=shape, dtype=dtype, codec="original"
    )
