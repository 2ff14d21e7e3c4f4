"""What tests say of samples in shards."""

import numpy as np

from unet_core.index import ShardEntry, ShardIndex
from unet_core.samples import ClassMap, Sample

FIRST_SHARD = "train/b0000-00000.tar"


def index_of(class_map: ClassMap, *entries: ShardEntry, channels: int = 3) -> ShardIndex:
    """An index of these shards."""
    return ShardIndex(class_map=class_map, channels=channels, shards=entries)


def assert_same(first: Sample, second: Sample) -> None:
    assert first.key == second.key
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)
