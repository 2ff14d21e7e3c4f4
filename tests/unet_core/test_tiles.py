import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_core.packing import channel_sums
from unet_core.samples import Sample
from unet_core.tiles import borders, cut_tiles


def sample_of(height: int, width: int) -> Sample:
    image = np.arange(height * width * 2, dtype=np.uint16).reshape(height, width, 2)
    return Sample(key="a", image=image, mask=np.arange(height * width).reshape(height, width).astype(np.uint8))


@given(st.integers(1, 10_000), st.integers(1, 2_000))
def test_borders_make_the_fewest_parts_as_equal_as_can_be(size: int, tile: int) -> None:
    cuts = borders(size, tile)
    parts = np.diff(cuts)
    assert (cuts[0], cuts[-1]) == (0, size)
    assert len(parts) == -(-size // tile)
    assert parts.max() <= tile
    assert parts.max() - parts.min() <= 1


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 70))
def test_no_pixel_is_lost_or_comes_twice(height: int, width: int, tile: int) -> None:
    sample = sample_of(height, width)
    tiles = list(cut_tiles(sample, tile))
    seen = np.concatenate([part.image.reshape(-1, 2) for part in tiles])
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, sample.image.reshape(-1, 2).tolist()))
    assert len({part.key for part in tiles}) == len(tiles)
    assert all(part.image.shape[:2] == part.mask.shape for part in tiles)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 30))
def test_statistics_of_the_tiles_sum_to_those_of_the_image(height: int, width: int, tile: int) -> None:
    sample = sample_of(height, width)
    sums = [channel_sums(part.image) for part in cut_tiles(sample, tile)]
    assert tuple(map(tuple, np.sum(sums, axis=0).tolist())) == channel_sums(sample.image)


def test_keys_say_row_and_column() -> None:
    assert [part.key for part in cut_tiles(sample_of(5, 9), 5)] == ["a@0-0", "a@0-1"]
    assert [part.key for part in cut_tiles(sample_of(9, 5), 5)] == ["a@0-0", "a@1-0"]


@pytest.mark.parametrize("tile", [None, 9, 100])
def test_an_image_no_larger_than_a_tile_stays_as_it_is(tile: int | None) -> None:
    sample = sample_of(5, 9)
    assert list(cut_tiles(sample, tile)) == [sample]
