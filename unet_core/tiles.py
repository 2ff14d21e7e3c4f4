"""Cuts large training images into an even grid of tiles, without overlap, before they go into shards.

Validation and test images are never cut: a score is per image, and no pixel counts twice.
"""

from collections.abc import Iterator

from unet_core.samples import Sample


def borders(size_px: int, tile_px: int) -> list[int]:
    """Where a side is cut: the fewest parts of at most `tile_px`, as equal as whole pixels allow."""
    parts = -(-size_px // tile_px)
    # Halves up, in integers: Python's round() goes to the even neighbour.
    return [(2 * part * size_px + parts) // (2 * parts) for part in range(parts + 1)]


def cut_tiles(sample: Sample, tile_px: int | None) -> Iterator[Sample]:
    """The tiles of a sample, row by row, named KEY@ROW-COLUMN; the sample itself where it is no larger than a tile."""
    height, width = sample.image.shape[:2]
    if tile_px is None or max(height, width) <= tile_px:
        yield sample
        return
    rows, columns = borders(height, tile_px), borders(width, tile_px)
    for row in range(len(rows) - 1):
        for column in range(len(columns) - 1):
            part = slice(rows[row], rows[row + 1]), slice(columns[column], columns[column + 1])
            yield Sample(key=f"{sample.key}@{row}-{column}", image=sample.image[part], mask=sample.mask[part])
