"""The shapes of the tutorial: white shapes on black, six overlapping masks a picture.

The built-in data set: `unet shapes` writes it as files, as if a user had brought it.
Each picture is a function of (seed, number) alone. The geometry follows the tutorial ("Cook your first
U-Net in PyTorch", Towards Data Science, 2023).
"""

from dataclasses import dataclass

import numpy as np

from unet_core.samples import Array

#: The masks, in the order of the tutorial.
SHAPE_NAMES = ("filled_square", "filled_circle", "triangle", "ring", "mesh_square", "plus")
#: Shapes in the order in which their places are drawn, and by what their size is multiplied.
SIZE_FACTORS = {
    "triangle": 1.0,
    "ring": 0.7,
    "filled_circle": 0.5,
    "mesh_square": 1.0,
    "filled_square": 0.8,
    "plus": 1.2,
}
#: Ranges of a centre, as a share of height or width, and of a size, as a share of the shorter side.
CENTRE_RANGE, SIZE_RANGE = (0.1, 0.9), (0.06, 0.12)

Plane = np.ndarray[tuple[int, int], np.dtype[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a shape lies: centre and size in pixels."""

    x: int
    y: int
    size: int


def draw_shapes(*, seed: int, number: int, height: int = 192, width: int = 192) -> tuple[Array, Array]:
    """Draw picture `number`: image (H, W) with 0 and 255, masks (H, W, 6) with 0 and 1."""
    rng = np.random.default_rng([seed, number])
    image = np.zeros((height, width), dtype=bool)
    planes = {}
    for name, factor in SIZE_FACTORS.items():
        planes[name] = shape_plane(name, _draw_place(rng, height, width, factor), height, width)
        image |= visible_part(name, planes[name])
    masks = np.stack([planes[name] for name in SHAPE_NAMES], axis=-1)
    return np.where(image, 255, 0).astype(np.uint8), masks.astype(np.uint8)


def _draw_place(rng: np.random.Generator, height: int, width: int, factor: float) -> Place:
    x = int(width * rng.uniform(*CENTRE_RANGE))
    y = int(height * rng.uniform(*CENTRE_RANGE))
    return Place(x=x, y=y, size=int(min(height, width) * rng.uniform(*SIZE_RANGE) * factor))


def shape_plane(name: str, place: Place, height: int, width: int) -> Plane:
    """The pixels (H, W) that are labelled as this shape."""
    # A row and a column, which broadcast: a tenth of the time that full grids take.
    dy, dx = np.arange(height)[:, None] - place.y, np.arange(width)[None, :] - place.x
    # The size is the side of a square, and the radius of a circle.
    half = place.size // 2
    in_square: Plane = (dx >= -half) & (dx < place.size - half) & (dy >= -half) & (dy < place.size - half)
    square_distance = dx**2 + dy**2
    if name == "triangle":
        return in_square & (dy >= dx)
    if name == "ring":
        return (square_distance <= place.size**2) & (square_distance > (0.7 * place.size) ** 2)
    if name == "filled_circle":
        return square_distance <= place.size**2
    if name == "plus":
        stroke_px = 2
        upright = (dx >= -stroke_px // 2) & (dx < stroke_px - stroke_px // 2)
        level = (dy >= -stroke_px // 2) & (dy < stroke_px - stroke_px // 2)
        return in_square & (upright | level)
    return in_square


def visible_part(name: str, plane: Plane) -> Plane:
    """The pixels of a labelled shape that are drawn: of the mesh square those in odd rows and columns."""
    if name != "mesh_square":
        return plane
    height, width = plane.shape
    return plane & (np.arange(height)[:, None] % 2 == 1) & (np.arange(width)[None, :] % 2 == 1)
