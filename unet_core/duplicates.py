"""Which images show the same picture? Fingerprints, candidates among millions of them, and the proof on pixels.

`validate` finds duplicates with it, so that `split` can keep them together. Three sieves, each finer than the last: a
perceptual hash of 64 bits (`hamming.py` finds the near ones), a thumbnail with the picture's brightness and contrast,
and `confirm` on whole images, since dark images, scans of one device and portraits all look alike to a hash.
Flipped and turned copies are not looked for: no camera makes them.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage, sparse

from unet_core.hamming import find_near_pairs

Image = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float64]
Kind = Literal["exact", "near"]

#: Bits by which hashes of one picture may differ: of DSB2018's images, 3 px cut off on all sides change at most 8 bits
#: in 99.7 %, JPEG at quality 60, other brightness or another size in all.
MAX_DISTANCE_BITS = 8
#: Side of the picture in which `confirm` compares; farther apart than this, copies may be shifted in it.
CONFIRM_SIDE_PX, CONFIRM_SHIFT_PX = 128, 4
#: Correlation of details from which two pictures are one. Measured: copies that were cut, scaled or compressed at
#: least 0.86, neighbouring slices of ISBI 2012 at most 0.63, different images of DSB2018 at most 0.49 (and 0.91 for two
#: neighbouring slices of one embryo, which should stay together).
MIN_DETAIL_CORRELATION = 0.8
#: The same for thumbnails, which only save reading whole images; copies reach 0.9.
MIN_THUMBNAIL_CORRELATION = 0.75
#: Brightness may differ by as many of 255 steps, contrast by this factor.
MAX_MEAN_DIFFERENCE, MAX_CONTRAST_RATIO = 32.0, 1.5
#: Proportions may differ by this factor: a few pixels that were cut off.
MAX_ASPECT_RATIO = 1.1

_THUMBNAIL_PX = 32
#: An image with less contrast between 32 x 32 areas (in 255 steps) shows nothing that could be recognised.
_FLAT_DEVIATION = {np.dtype(np.uint8): 0.5, np.dtype(np.uint16): 0.03}
_MAX_PILLARS, _FREE_PILLARS, _MAX_COMPARED, _MAX_PARTNERS = 256, 16, 1024, 8


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What is kept of an image: a good kilobyte."""

    perceptual: int
    """64 bits: the lowest frequencies, each above or below their median."""
    thumbnail: bytes
    """32 x 32 uint8: gray, the mean at 128, 32 steps to a standard deviation."""
    mean: float
    """Brightness, 0 to 255, also of images with 16 bits."""
    deviation: float
    """Contrast: standard deviation of the 32 x 32 areas, in the same steps."""
    is_comparable: bool
    """Whether it is large and varied enough to be recognised; if not, only the same pixels make a duplicate."""
    sha256: str
    """Of pixels, shape and type, in hexadecimal digits."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Two images, by their place in the sequence, that seem to be one picture."""

    first: int
    second: int
    """Came later than the first."""
    kind: Kind
    """exact: the pixels are the same. near: to be confirmed on pixels."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What a search found."""

    pairs: tuple[Candidate, ...]
    num_crowded: int
    """Images that were not compared with all that have a hash like theirs, since these are too many."""


def fingerprint(image: Image) -> Fingerprint:
    """Fingerprint of an image (H, W, C) uint8 or uint16, the same bits on every machine.

    Sums are of whole numbers that floating point holds exactly, so that no order of adding matters; what is rounded
    comes after the last sum.
    """
    full = np.iinfo(image.dtype).max
    totals = _area_sums(image, _THUMBNAIL_PX)
    # In 1/256 of a step of 8 bits: whole numbers again.
    gray = np.rint(totals * (255 * 256 / full) / image.size)
    centred = gray * gray.size - gray.sum()
    deviation = float(np.sqrt((centred**2).sum() / gray.size)) / gray.size
    scaled = np.rint(centred / gray.size * (32 / deviation)) if deviation else np.zeros_like(gray)
    digest = hashlib.sha256(f"{image.shape} {image.dtype.name}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return Fingerprint(
        perceptual=_hash_bits(gray),
        thumbnail=np.clip(scaled + 128, 0, 255).astype(np.uint8).tobytes(),
        mean=float(gray.sum()) / gray.size / 256,
        deviation=deviation / 256,
        is_comparable=deviation / 256 >= _FLAT_DEVIATION[image.dtype] and min(image.shape[:2]) >= _THUMBNAIL_PX,
        sha256=digest.hexdigest(),
    )


def find_candidates(prints: Sequence[Fingerprint], *, max_distance: int = MAX_DISTANCE_BITS) -> Candidates:
    """Pairs that have the same pixels, or near hashes and like thumbnails; `prints` in the order of arrival.

    What an image is paired with depends on the images before it only: later data never change an old pair, or splits
    would move. For the same reason, and because 100,000 frames of one scene would be five billion pairs, a crowd of
    images with one hash is represented by its first 16 and by those that resembled none of these, 256 at most. A
    newcomer meets 1,024 at most and is paired with the 8 that it resembles most. So the work grows with the number of
    images, and what belongs together still hangs together. Exact copies are paired with their first only, and blank
    images (of one value) not at all.
    """
    first_of: dict[str, int] = {}
    pairs = []
    originals = []
    for number, one in enumerate(prints):
        if not one.deviation:
            # Blank images are alike without telling anything about each other; one of each patient would join them all.
            continue
        first = first_of.setdefault(one.sha256, number)
        if first != number:
            pairs.append(Candidate(first=first, second=number, kind="exact"))
        elif one.is_comparable:
            originals.append(number)
    found, num_crowded = _find_like(originals, prints, max_distance)
    pairs += [Candidate(first=first, second=second, kind="near") for first, second in found]
    pairs.sort(key=lambda pair: (pair.second, pair.first))
    return Candidates(pairs=tuple(pairs), num_crowded=num_crowded)


def confirm(image: Image, other: Image) -> bool:
    """Whether two images (H, W, C) show one picture, perhaps compressed again, resized, brighter, or cut by 1 to 3 px.

    Compared are the details between 1.5 and 8 of 128 px: layout alone (a bright disc in the middle) is shared by all
    images of a microscope or a fundus camera, and single pixels do not survive a cut.
    """
    if image.dtype == other.dtype and np.array_equal(image, other):
        return True
    aspects = [one.shape[0] / one.shape[1] for one in (image, other)]
    if max(aspects) > MAX_ASPECT_RATIO * min(aspects):
        return False
    gray, other_gray = (_confirmable(one) for one in (image, other))
    if not _alike(gray.mean() - other_gray.mean(), gray.std(), other_gray.std()):
        return False
    details, other_details = (_details(one) for one in (gray, other_gray))
    norm = float(np.sqrt((details**2).sum() * (other_details**2).sum()))
    return norm > 0 and _best_product(details, other_details) >= MIN_DETAIL_CORRELATION * norm


def _confirmable(image: Image) -> Floats:
    return _area_sums(image, CONFIRM_SIDE_PX) * (255 / np.iinfo(image.dtype).max) / image.size


def _details(gray: Floats) -> Floats:
    """Band-pass, evened out so that the sharp rim of a bright field does not outweigh everything in it."""
    details: Floats = ndimage.gaussian_filter(gray, 1.5) - ndimage.gaussian_filter(gray, 8.0)
    power = details**2
    # The share of the whole picture's power keeps noise in empty places small.
    evened = ndimage.gaussian_filter(power, 8.0) + 0.3 * power.mean()
    return details / np.sqrt(np.maximum(evened, np.finfo(np.float64).tiny))


def _best_product(one: Floats, other: Floats) -> float:
    """The largest scalar product over all small shifts."""
    products = fft.irfft2(fft.rfft2(one) * np.conj(fft.rfft2(other)), s=one.shape)
    near = np.arange(-CONFIRM_SHIFT_PX, CONFIRM_SHIFT_PX + 1)
    return float(products[np.ix_(near, near)].max())


def _alike(mean_difference: float, deviation: float, other_deviation: float) -> bool:
    low, high = sorted((float(deviation), float(other_deviation)))
    return abs(float(mean_difference)) <= MAX_MEAN_DIFFERENCE and 0 < high <= MAX_CONTRAST_RATIO * low


def _find_like(
    originals: Sequence[int], prints: Sequence[Fingerprint], max_distance: int
) -> tuple[list[tuple[int, int]], int]:
    """Pairs of originals with near hashes and like thumbnails, and how many met a crowd."""
    hashes = np.array([prints[number].perceptual for number in originals], dtype=np.uint64)
    _, firsts, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    # Hashes are numbered as they first came, so that neighbours can be cut off without looking ahead.
    order = np.argsort(firsts)
    neighbours = _neighbours(hashes[firsts[order]], max_distance)
    pillars: list[list[int]] = [[] for _ in order]
    pairs = []
    num_crowded = 0
    for number, place in zip(originals, np.argsort(order)[inverse].tolist(), strict=True):
        met = [*pillars[place], *(pillar for near in neighbours(place) for pillar in pillars[near])]
        like = _like_thumbnails(prints, number, met[:_MAX_COMPARED]) if met else []
        pairs += [(pillar, number) for pillar in like]
        room = len(pillars[place]) < (_FREE_PILLARS if like else _MAX_PILLARS)
        if room:
            pillars[place].append(number)
        num_crowded += len(met) > _MAX_COMPARED or not (room or like)
    return pairs, num_crowded


def _neighbours(hashes: npt.NDArray[np.uint64], max_distance: int) -> Callable[[int], list[int]]:
    """A function from the place of a hash to the places of those near it, ascending."""
    pairs = find_near_pairs(hashes, max_distance)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))].astype(np.int32)
    bounds = np.searchsorted(both[:, 0], np.arange(len(hashes) + 1)).tolist()
    return lambda place: both[bounds[place] : bounds[place + 1], 1].tolist()


def _like_thumbnails(prints: Sequence[Fingerprint], number: int, others: Sequence[int]) -> list[int]:
    """Those of `others` that look like image `number`, the most alike first."""
    one = prints[number]
    others = [
        other for other in others if _alike(prints[other].mean - one.mean, prints[other].deviation, one.deviation)
    ]
    bytes_ = b"".join(prints[place].thumbnail for place in (number, *others))
    pictures = np.frombuffer(bytes_, dtype=np.uint8).reshape(1 + len(others), -1).astype(np.float32) - 128
    # Whole numbers up to 128 * 128 * 1024 = 2 ** 24: exact also with 32 bits.
    products = (pictures @ pictures[0]).astype(np.float64)
    norms = np.einsum("np,np->n", pictures, pictures).astype(np.float64)
    correlations = products / np.sqrt(norms * norms[0])
    ranked = sorted(zip(-correlations[1:], others, strict=True))
    return [other for negative, other in ranked[:_MAX_PARTNERS] if -negative >= MIN_THUMBNAIL_CORRELATION]


def _area_sums(image: Image, side_px: int) -> Floats:
    """Sums over equal areas and all channels (side, side), in units in which every weight is a whole number."""
    height, width, channels = image.shape
    exact = np.float32 if height * np.iinfo(image.dtype).max < 2**24 else np.float64
    rows = _area_weights(height, side_px, 1).astype(exact) @ image.reshape(height, -1).astype(exact)
    sums: Floats = (_area_weights(width, side_px, channels) @ rows.T.astype(np.float64)).T
    return sums


@lru_cache(maxsize=64)
def _area_weights(length: int, side_px: int, channels: int) -> sparse.csr_array:
    """(side, length x channels): how much of a source pixel lies in a target pixel, in 1 / side of a source pixel."""
    edges = np.arange(side_px + 1) * length
    starts, ends = np.arange(length) * side_px, np.arange(1, length + 1) * side_px
    overlap = np.minimum(edges[1:, None], ends) - np.maximum(edges[:-1, None], starts)
    return sparse.csr_array(np.repeat(np.maximum(overlap, 0), channels, axis=1).astype(np.float64))


@lru_cache(maxsize=1)
def _cosines() -> tuple[Floats, npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The lowest cosine waves (11, 32) as whole numbers, and the 64 pairs of them with the lowest frequency, not 0."""
    angles = np.outer(np.arange(11), 2 * np.arange(_THUMBNAIL_PX) + 1) * (np.pi / (2 * _THUMBNAIL_PX))
    waves = ((u, v) for u in range(11) for v in range(11) if u + v)
    down, across = np.array(sorted(waves, key=lambda wave: (sum(wave), wave))[:64]).T
    return np.rint(np.cos(angles) * 4096), down, across


def _hash_bits(gray: Floats) -> int:
    cosines, down, across = _cosines()
    strengths = (cosines @ gray @ cosines.T)[down, across]
    middle = np.sort(strengths)[31:33].sum()
    return int(np.packbits(2 * strengths > middle).view(">u8")[0])
