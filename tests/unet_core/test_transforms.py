import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_core.errors import RecipeError
from unet_core.samples import IGNORE_INDEX, Array, ClassMap, Sample
from unet_core.transforms import Augmentation, AugmentConfig, draw_window, pad_to, sample_seed, turn

FLIPS = ({"name": "HorizontalFlip", "p": 0.5}, {"name": "VerticalFlip", "p": 0.5})
RICH = (*FLIPS, {"name": "RandomRotate90", "p": 1.0}, {"name": "RandomBrightnessContrast", "p": 0.5})


def augmentation(class_map: ClassMap, transforms: Sequence[dict[str, Any]]) -> Augmentation:
    return Augmentation(AugmentConfig(crop_px=None, transforms=transforms), class_map)


def same(first: Sample, second: Sample) -> bool:
    return np.array_equal(first.image, second.image) and np.array_equal(first.mask, second.mask)


def flips_of(original: Array, flipped: Array) -> tuple[bool, bool]:
    """Whether an image was flipped left to right and upside down."""
    for horizontal in (False, True):
        for vertical in (False, True):
            if np.array_equal(original[:: -1 if vertical else 1, :: -1 if horizontal else 1], flipped):
                return horizontal, vertical
    raise AssertionError("neither the image nor a flip of it")


# Seeds


@given(st.integers(0, 2**40), st.integers(0, 10**6), st.text(max_size=10))
def test_sample_seed_is_a_63_bit_number(seed: int, epoch: int, key: str) -> None:
    assert 0 <= sample_seed(seed=seed, epoch=epoch, key=key) < 2**63


def test_sample_seed_differs_by_seed_epoch_and_key() -> None:
    seeds = {sample_seed(seed=s, epoch=e, key=k) for s in range(5) for e in range(5) for k in ("a", "b", "ab", "1:a")}
    assert len(seeds) == 100


# Crops


@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**63 - 1)
)  # fmt: skip
def test_crop_lies_inside_the_image(height: int, width: int, crop_px: int, seed: int) -> None:
    window = draw_window((height, width, 3), crop_px, seed)
    assert (window.height, window.width) == (min(height, crop_px), min(width, crop_px))
    assert 0 <= window.top <= height - window.height
    assert 0 <= window.left <= width - window.width


def test_crops_reach_every_place() -> None:
    windows = [draw_window((5, 4, 1), 3, seed) for seed in range(300)]
    assert {(window.top, window.left) for window in windows} == {(top, left) for top in range(3) for left in range(2)}


def test_crop_depends_on_its_seed_only() -> None:
    first = [draw_window((50, 50), 20, seed) for seed in range(10)]
    assert [draw_window((50, 50), 20, seed) for seed in reversed(range(10))] == first[::-1]
    assert len(set(first)) > 5


# Padding


def test_small_image_is_padded_by_its_mirror(cells_map: ClassMap) -> None:
    image = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)
    padded = pad_to(Sample(key="a", image=image[..., None], mask=image + 10), 4, cells_map)
    expected = np.array([[1, 2, 3, 3], [4, 5, 6, 6], [4, 5, 6, 6], [1, 2, 3, 3]])
    np.testing.assert_array_equal(padded.image[..., 0], expected)
    np.testing.assert_array_equal(padded.mask, expected + 10)


def test_planes_are_padded_like_the_image(shapes_map: ClassMap, draw_sample: Callable[..., Sample]) -> None:
    sample = draw_sample(0, height=20, width=33)
    padded = pad_to(sample, 32, shapes_map)
    assert padded.image.shape == (32, 33, 1)
    assert padded.mask.shape == (32, 33, 6)
    np.testing.assert_array_equal(padded.mask[:20], sample.mask)
    np.testing.assert_array_equal(padded.mask[20:], sample.mask[:7:-1])


def test_single_pixel_fills_the_whole_square(cells_map: ClassMap) -> None:
    pixel = Sample(key="a", image=np.full((1, 1, 3), 9, np.uint8), mask=np.full((1, 1), 2, np.uint8))
    padded = pad_to(pixel, 5, cells_map)
    assert padded.image.shape == (5, 5, 3)
    assert (padded.image == 9).all()
    assert (padded.mask == 2).all()


def test_large_image_is_left_alone(cells_map: ClassMap, random_sample: Callable[..., Sample]) -> None:
    sample = random_sample("a", height=8, width=8)
    assert pad_to(sample, 8, cells_map) is sample


# Draws


def test_without_transforms_a_sample_stays_as_it_is(shapes_map: ClassMap, draw_sample: Callable[..., Sample]) -> None:
    sample = draw_sample(0)
    assert augmentation(shapes_map, ()).apply(sample, 5) is sample


def test_draw_depends_on_its_seed_and_not_on_earlier_draws(
    cells_map: ClassMap, random_sample: Callable[..., Sample]
) -> None:
    sample = random_sample("a")
    one = augmentation(cells_map, RICH)
    forward = [one.apply(sample, seed) for seed in range(30)]
    backward = [one.apply(sample, seed) for seed in reversed(range(30))][::-1]
    fresh = [augmentation(cells_map, RICH).apply(sample, seed) for seed in (3, 29)]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert same(forward[3], fresh[0])
    assert same(forward[29], fresh[1])
    assert len({done.image.tobytes() for done in forward}) > 10


def test_draw_does_not_depend_on_global_random_states(
    cells_map: ClassMap, random_sample: Callable[..., Sample]
) -> None:
    import random

    sample, done = random_sample("a"), []
    for state in (1, 2):
        random.seed(state)
        np.random.seed(state)
        done.append([augmentation(cells_map, RICH).apply(sample, seed) for seed in range(10)])
    assert all(same(a, b) for a, b in zip(*done, strict=True))


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that take turns as often as they can, so that what they share shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_draws_in_several_threads_are_those_of_one(cells_map: ClassMap, random_sample: Callable[..., Sample]) -> None:
    sample = random_sample("a", height=32, width=32)
    one = augmentation(cells_map, RICH)
    expected = [one.apply(sample, seed) for seed in range(500)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: one.apply(sample, seed), range(500)))
    assert [seed for seed in range(500) if not same(found[seed], expected[seed])] == []


def test_two_flips_of_probability_one_half_are_independent(
    cells_map: ClassMap, random_sample: Callable[..., Sample]
) -> None:
    sample = random_sample("a")
    one = augmentation(cells_map, FLIPS)
    counts = dict.fromkeys([(a, b) for a in (False, True) for b in (False, True)], 0)
    for number in range(400):
        done = one.apply(sample, sample_seed(seed=0, epoch=0, key=str(number)))
        counts[flips_of(sample.image, done.image)] += 1
    # 100 of each are expected; 60 to 140 is 4.6 standard deviations.
    assert all(60 <= count <= 140 for count in counts.values()), counts


def test_mask_moves_with_the_image(cells_map: ClassMap, random_sample: Callable[..., Sample]) -> None:
    mask = random_sample("a").image[..., 0]
    sample = Sample(key="a", image=np.stack([mask] * 3, axis=-1), mask=mask)
    one = augmentation(cells_map, [*FLIPS, {"name": "RandomRotate90", "p": 1.0}])
    for seed in range(30):
        done = one.apply(sample, seed)
        np.testing.assert_array_equal(done.image[..., 0], done.mask)


@pytest.mark.parametrize(
    "transform",
    [
        {"name": "HorizontalFlip", "p": 1.0},
        {"name": "Affine", "rotate": [-30, 30], "p": 1.0},
        {"name": "ElasticTransform", "alpha": 20, "sigma": 5, "p": 1.0},
        {"name": "GaussianBlur", "p": 1.0},
        {"name": "RandomBrightnessContrast", "p": 1.0},
    ],
    ids=lambda entry: entry["name"],
)
def test_gray_image_with_six_planes_keeps_shape_and_type(
    shapes_map: ClassMap, draw_sample: Callable[..., Sample], transform: dict[str, Any]
) -> None:
    sample = draw_sample(1)
    done = augmentation(shapes_map, [transform]).apply(sample, 3)
    assert done.key == sample.key
    assert done.image.shape == sample.image.shape
    assert done.mask.shape == sample.mask.shape
    assert done.image.dtype == done.mask.dtype == np.uint8
    assert set(np.unique(done.mask)) <= {0, 1}


def test_applying_does_not_change_the_sample(cells_map: ClassMap, random_sample: Callable[..., Sample]) -> None:
    sample, untouched = random_sample("a"), random_sample("a")
    one = augmentation(cells_map, RICH)
    for seed in range(10):
        one.apply(sample, seed)
    assert same(sample, untouched)


def test_pixels_turned_in_from_outside_are_ignored(cells_map: ClassMap) -> None:
    sample = Sample(key="a", image=np.full((16, 16, 3), 9, np.uint8), mask=np.ones((16, 16), np.uint8))
    done = augmentation(cells_map, [{"name": "Affine", "rotate": [45, 45], "p": 1.0}]).apply(sample, 0)
    assert set(np.unique(done.mask)) == {1, IGNORE_INDEX}
    assert done.mask[0, 0] == IGNORE_INDEX


def test_pixels_turned_in_from_outside_are_what_the_recipe_says(cells_map: ClassMap) -> None:
    sample = Sample(key="a", image=np.full((16, 16, 3), 9, np.uint8), mask=np.ones((16, 16), np.uint8))
    entry = {"name": "Affine", "rotate": [45, 45], "fill_mask": 2, "p": 1.0}
    assert set(np.unique(augmentation(cells_map, [entry]).apply(sample, 0).mask)) == {1, 2}


# Refusals


def test_unknown_transform_is_named_with_the_nearest_one(cells_map: ClassMap) -> None:
    with pytest.raises(RecipeError) as caught:
        augmentation(cells_map, [FLIPS[0], {"name": "VerticleFlip", "p": 0.5}])
    assert str(caught.value) == ("unknown transform: augment.transforms[1]: 'VerticleFlip'. Did you mean VerticalFlip?")


@pytest.mark.parametrize("entry", [{"name": "Qqqqzzzz"}, {"p": 0.5}], ids=["nothing near", "no name"])
def test_transform_like_no_other_points_to_the_list(cells_map: ClassMap, entry: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"unknown transform: augment.transforms\[0\]: .* See the list"):
        augmentation(cells_map, [entry])


def test_unknown_argument_is_named(cells_map: ClassMap) -> None:
    with pytest.raises(RecipeError) as caught:
        augmentation(cells_map, [{"name": "HorizontalFlip", "probability": 0.5}])
    text = str(caught.value)
    assert text.startswith("bad argument of a transform: augment.transforms[0]: HorizontalFlip: ")
    assert "probability" in text
    assert text.endswith("Correct the entry in params.yaml.")


@pytest.mark.parametrize("value", [2.0, "often"])
def test_impossible_argument_is_named(cells_map: ClassMap, value: Any) -> None:
    with pytest.raises(
        RecipeError, match=r"bad argument of a transform: augment.transforms\[0\]: HorizontalFlip: .*\bp\b"
    ):
        augmentation(cells_map, [{"name": "HorizontalFlip", "p": value}])


@pytest.mark.parametrize("element", ["e", "r90", "r180", "r270", "v", "hvt", "h", "t"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (6, 6, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_quick_turns_are_those_of_albumentations(element: str, shape: tuple[int, ...], dtype: type) -> None:
    from albumentations.augmentations.geometric.functional import d4

    array = np.random.default_rng(0).integers(0, 250, shape).astype(dtype)
    turned = turn(array, element)
    np.testing.assert_array_equal(turned, d4(array, element))
    assert turned.dtype == dtype


def test_d4_of_many_planes_is_that_of_the_image(shapes_map: ClassMap, draw_sample: Callable[..., Sample]) -> None:
    config = AugmentConfig(crop_px=None, transforms=({"name": "D4", "p": 1.0},))
    augmentation = Augmentation(config, shapes_map)
    gray = draw_sample(3)
    sample = Sample(key="a", image=gray.mask[..., :3].copy(), mask=gray.mask)
    seen = set()
    for seed in range(60):
        done = augmentation.apply(sample, seed)
        np.testing.assert_array_equal(done.image, done.mask[..., :3])
        seen.add(done.image.tobytes())
    assert len(seen) == 8


GROUND_LAST = ClassMap(kind="multiclass", classes={"cell": 255, "ground": 0}, background="ground")


def test_pixels_turned_in_from_outside_are_background_where_nothing_is_ignored() -> None:
    sample = Sample(key="a", image=np.full((16, 16, 3), 9, np.uint8), mask=np.ones((16, 16), np.uint8))
    done = augmentation(GROUND_LAST, [{"name": "Affine", "rotate": [45, 45], "p": 1.0}]).apply(sample, 0)
    assert (done.mask == 1).all()


def test_pixels_of_no_class_are_refused_unless_mirrored() -> None:
    neither = ClassMap(kind="multiclass", classes={"cell": 255, "ground": 0})
    with pytest.raises(
        RecipeError, match=r"^a transform brings in pixels of no class: augment.transforms\[0\]: Affine\. "
    ):
        augmentation(neither, [{"name": "Affine", "rotate": [45, 45], "p": 1.0}])
    augmentation(neither, [{"name": "Affine", "rotate": [45, 45], "border_mode": 4, "p": 1.0}])
    augmentation(neither, [{"name": "Affine", "rotate": [45, 45], "fill_mask": 1, "p": 1.0}])


def test_threads_that_begin_to_transform_leave_the_filters_of_warnings_alone(
    cells_map: ClassMap, random_sample: Callable[..., Sample]
) -> None:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        before = list(warnings.filters)
        for _ in range(10):
            one = augmentation(cells_map, RICH)
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda seed, one=one: one.apply(random_sample("a"), seed), range(8)))
        assert list(warnings.filters) == before


@pytest.mark.parametrize(
    ("shape", "dtype", "entry", "text"),
    [
        (
            (8, 12, 3),
            np.uint8,
            {"name": "D4", "p": 0.1},
            r"^a transform changes the size: augment.transforms\[0\]: D4: ",
        ),
        (
            (8, 8, 5),
            np.uint8,
            {"name": "CLAHE"},
            r"^a transform can't work on these images: .*: CLAHE: uint8 \(8, 8, 5\)",
        ),
        (
            (8, 8, 3),
            np.uint8,
            {"name": "DualTransform"},
            r"^a transform can't work on these images: .*: DualTransform: ",
        ),
        ((8, 8, 3), np.uint8, {"name": "ToFloat"}, r"^a transform changes the kind of number: "),
    ],
)
def test_a_transform_that_cannot_work_is_found_before_training(
    cells_map: ClassMap, shape: tuple[int, ...], dtype: type, entry: dict[str, Any], text: str
) -> None:
    blank = Sample(key="", image=np.zeros(shape, dtype), mask=np.zeros(shape[:2], np.uint8))
    with pytest.raises(RecipeError, match=text):
        augmentation(cells_map, [entry]).check(blank)


def test_transforms_that_work_pass_the_check(cells_map: ClassMap) -> None:
    blank = Sample(key="", image=np.zeros((32, 32, 3), np.uint8), mask=np.zeros((32, 32), np.uint8))
    augmentation(cells_map, RICH).check(blank)
