import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from unet_core.border import BorderWeight, border_weights
from unet_core.errors import RecipeError, TrainingError
from unet_core.index import read_index
from unet_core.loader import Batch, LaneLoader
from unet_core.packing import pack_all
from unet_core.plan import EpochPlan, Oversampling, plan_epoch
from unet_core.reader import ShardReader
from unet_core.samples import ClassMap, Sample
from unet_core.shards import write_shard
from unet_core.transforms import AugmentConfig

LANES = range(4)
CROP = AugmentConfig(crop_px=20)
AUGMENTED = AugmentConfig(
    crop_px=20,
    transforms=(
        {"name": "HorizontalFlip", "p": 0.5},
        {"name": "VerticalFlip", "p": 0.5},
        {"name": "RandomBrightnessContrast", "p": 0.5},
    ),
)


@pytest.fixture(scope="module")
def reader(shapes_dir: Path) -> ShardReader:
    return ShardReader(shapes_dir, read_index(shapes_dir).of_split("train"))


@pytest.fixture(scope="module")
def make_loader(reader: ShardReader, shapes_map: ClassMap) -> Callable[..., LaneLoader]:
    def make(augment: AugmentConfig = CROP, *, seed: int = 0, threads: int = 1) -> LaneLoader:
        return LaneLoader(reader, shapes_map, augment, seed=seed, threads=threads)

    return make


def plan(epoch: int = 0, samples_per_lane: int = 1) -> EpochPlan:
    """13 samples in 4 lanes of 3."""
    return plan_epoch([5, 4, 4], seed=0, epoch=epoch, lanes=4, samples_per_lane=samples_per_lane, block_shards=2)


def assert_same_steps(first: Sequence[Sequence[Batch]], second: Sequence[Sequence[Batch]]) -> None:
    assert len(first) == len(second)
    for lanes, other_lanes in zip(first, second, strict=True):
        for batch, other in zip(lanes, other_lanes, strict=True):
            assert batch.keys == other.keys
            assert torch.equal(batch.images, other.images)
            assert torch.equal(batch.masks, other.masks)


def test_batches_follow_the_plan(make_loader: Callable[..., LaneLoader], reader: ShardReader) -> None:
    made = plan(samples_per_lane=2)
    steps = list(make_loader().steps(made, epoch=0, lanes=LANES))
    assert len(steps) == made.num_steps == 2
    for number, batches in enumerate(steps):
        for lane, batch in zip(LANES, batches, strict=True):
            assert batch.keys == tuple(reader.entry(n).key for n in made.step(number)[lane])
    assert [len(batch.keys) for batch in steps[1]] == [1] * 4  # what is left


def test_a_sample_that_comes_again_is_cropped_and_augmented_anew(make_loader: Callable[..., LaneLoader]) -> None:
    # The first two samples of each shard stand for all others.
    again = Oversampling(shares={0: 1.0}, presence=lambda shard: np.arange((5, 4, 4)[shard])[:, None] < 2)
    made = plan_epoch([5, 4, 4], seed=0, epoch=0, lanes=4, samples_per_lane=1, block_shards=2, oversampling=again)
    found: dict[str, list[bytes]] = {}
    for batches in make_loader(AUGMENTED).steps(made, epoch=0, lanes=LANES):
        for batch in batches:
            found.setdefault(batch.keys[0], []).append(batch.images.numpy().tobytes())
    assert set(found) <= {f"shape_{number:04d}" for number in (0, 1, 5, 6, 9, 10)}
    assert sum(map(len, found.values())) == 12
    assert all(len(set(images)) == len(images) for images in found.values())


def test_presence_of_classes_is_that_of_the_masks(reader: ShardReader) -> None:
    seen = [sample.mask.any(axis=(0, 1)) for sample in reader]
    np.testing.assert_array_equal(np.concatenate([reader.class_presence(shard) for shard in range(3)]), seen)


def test_objects_come_as_foreground_and_sixteen_bits_as_they_are(tmp_path: Path) -> None:
    objects = ClassMap(kind="instances", classes={"background": 0, "cell": 1}, background="background")
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            key=f"s{number}",
            image=rng.integers(0, 65_536, (24, 24, 1), dtype=np.uint16),
            mask=rng.integers(0, 700, (24, 24), dtype=np.uint16) * (rng.random((24, 24)) < 0.5),
        )
        for number in range(4)
    ]
    entry = write_shard(tmp_path, "train/b0001-00000.tar", "content", pack_all(samples, objects))
    loader = LaneLoader(ShardReader(tmp_path, [entry]), objects, AugmentConfig(crop_px=None), seed=0)
    made = plan_epoch([4], seed=0, epoch=0, lanes=4, samples_per_lane=1, block_shards=1)
    (batches,) = loader.steps(made, epoch=0, lanes=LANES)
    by_key = {sample.key: sample for sample in samples}
    for batch in batches:
        sample = by_key[batch.keys[0]]
        assert (batch.images.dtype, batch.masks.dtype) == (torch.uint16, torch.uint8)
        np.testing.assert_array_equal(batch.images[0, 0].numpy(), sample.image[..., 0])
        np.testing.assert_array_equal(batch.masks[0].numpy(), sample.mask > 0)


def test_border_weights_are_those_of_the_mask_as_the_network_sees_it(
    tmp_path: Path, random_sample: Callable[..., Sample], cells_map: ClassMap
) -> None:
    entry = write_shard(tmp_path, "train/a.tar", "content", pack_all([random_sample(key) for key in "abcd"], cells_map))
    reader, weight = ShardReader(tmp_path, [entry]), BorderWeight(w0=10, sigma_px=2)
    augment = AugmentConfig(crop_px=8, transforms=[{"name": "D4", "p": 1.0}])
    made = plan_epoch([4], seed=0, epoch=0, lanes=2, samples_per_lane=2, block_shards=1)
    plain = LaneLoader(reader, cells_map, augment, seed=0)
    weighted = LaneLoader(reader, cells_map, augment, seed=0, border=weight, threads=2)
    for without, batch in zip(
        *(next(iter(loader.steps(made, epoch=0, lanes=range(2)))) for loader in (plain, weighted)), strict=True
    ):
        assert without.border is None
        assert torch.equal(batch.masks, without.masks)
        assert batch.border is not None
        expected = [border_weights(mask.numpy(), cells_map, weight) for mask in batch.masks]
        np.testing.assert_array_equal(batch.border, np.stack(expected))


def test_whole_images_come_as_they_are(
    make_loader: Callable[..., LaneLoader], draw_sample: Callable[..., Sample]
) -> None:
    ((batch, *_), *_) = make_loader(AugmentConfig(crop_px=None)).steps(plan(samples_per_lane=2), epoch=0, lanes=LANES)
    samples = [draw_sample(int(key.removeprefix("shape_"))) for key in batch.keys]
    np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1), np.stack([s.image for s in samples]))
    np.testing.assert_array_equal(batch.masks.permute(0, 2, 3, 1), np.stack([s.mask for s in samples]))


def test_crop_is_the_same_part_of_image_and_mask(
    make_loader: Callable[..., LaneLoader], draw_sample: Callable[..., Sample]
) -> None:
    for step in make_loader().steps(plan(), epoch=0, lanes=LANES):
        for batch in step:
            sample = draw_sample(int(batch.keys[0].removeprefix("shape_")))
            places = [
                (top, left)
                for top in range(13)
                for left in range(13)
                if np.array_equal(sample.image[top : top + 20, left : left + 20], batch.images[0].permute(1, 2, 0))
                and np.array_equal(sample.mask[top : top + 20, left : left + 20], batch.masks[0].permute(1, 2, 0))
            ]
            assert places


def test_images_smaller_than_the_crop_are_padded(make_loader: Callable[..., LaneLoader]) -> None:
    ((batch, *_), *_) = make_loader(AugmentConfig(crop_px=40)).steps(plan(), epoch=0, lanes=LANES)
    assert batch.images.shape == (1, 1, 40, 40)
    assert batch.masks.shape == (1, 6, 40, 40)
    torch.testing.assert_close(batch.images[..., 32:, :32], batch.images[..., 24:32, :32].flip(2))


def test_multiclass_masks_are_small_indices_and_images_channels_last(
    tmp_path: Path, random_sample: Callable[..., Sample], cells_map: ClassMap
) -> None:
    samples = [random_sample(key) for key in "abcd"]
    entry = write_shard(tmp_path, "train/a.tar", "content", pack_all(samples, cells_map))
    loader = LaneLoader(ShardReader(tmp_path, [entry]), cells_map, AugmentConfig(crop_px=8), seed=0)
    made = plan_epoch([4], seed=0, epoch=0, lanes=2, samples_per_lane=2, block_shards=1)
    ((batch, _),) = loader.steps(made, epoch=0, lanes=range(2))
    assert batch.images.shape == (2, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert not batch.images.is_contiguous()
    assert batch.masks.shape == (2, 8, 8)
    assert batch.masks.dtype == torch.uint8


def test_three_threads_give_the_batches_of_one(make_loader: Callable[..., LaneLoader]) -> None:
    made = plan()
    one = list(make_loader(threads=1).steps(made, epoch=0, lanes=LANES))
    assert_same_steps(list(make_loader(threads=3).steps(made, epoch=0, lanes=LANES)), one)


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that take turns as often as they can, so that what they share shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_three_threads_give_the_augmented_batches_of_one(make_loader: Callable[..., LaneLoader]) -> None:
    one, three = make_loader(AUGMENTED, threads=1), make_loader(AUGMENTED, threads=3)
    for epoch in range(40):
        made = plan(epoch)
        expected = list(one.steps(made, epoch=epoch, lanes=LANES))
        assert_same_steps(list(three.steps(made, epoch=epoch, lanes=LANES)), expected)


@pytest.mark.parametrize(("augment", "threads"), [(CROP, 1), (CROP, 3), (AUGMENTED, 1)])
@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_beginning_at_a_step_gives_the_batches_of_running_through(
    make_loader: Callable[..., LaneLoader], augment: AugmentConfig, threads: int, first: int
) -> None:
    made = plan()
    through = list(make_loader(augment).steps(made, epoch=0, lanes=LANES))
    loader = make_loader(augment, threads=threads)
    assert_same_steps(list(loader.steps(made, epoch=0, lanes=LANES, first=first)), through[first:])


def test_lanes_of_two_workers_are_those_of_one(make_loader: Callable[..., LaneLoader]) -> None:
    made = plan()
    alone = list(make_loader().steps(made, epoch=0, lanes=LANES))
    workers = [list(make_loader().steps(made, epoch=0, lanes=lanes)) for lanes in (range(2), range(2, 4))]
    assert_same_steps([first + second for first, second in zip(*workers, strict=True)], alone)


def test_another_epoch_or_seed_draws_other_crops(make_loader: Callable[..., LaneLoader]) -> None:
    def pictures(loader: LaneLoader, epoch: int) -> dict[str, bytes]:
        steps = loader.steps(plan(), epoch=epoch, lanes=LANES)  # one plan, so that the samples are the same
        return {batch.keys[0]: batch.images.numpy().tobytes() for step in steps for batch in step}

    plain = pictures(make_loader(), 0)
    for other in (pictures(make_loader(), 1), pictures(make_loader(seed=1), 0)):
        assert set(other) == set(plain)
        assert sum(other[key] != plain[key] for key in plain) > len(plain) / 2


def test_leaving_in_the_middle_ends_the_threads(make_loader: Callable[..., LaneLoader]) -> None:
    import threading

    before = set(threading.enumerate())
    steps = make_loader(threads=2).steps(plan(), epoch=0, lanes=LANES)
    next(steps)
    assert set(threading.enumerate()) - before
    steps.close()
    assert not set(threading.enumerate()) - before


def test_error_of_a_sample_reaches_the_reader_of_batches(make_loader: Callable[..., LaneLoader]) -> None:
    beyond = plan_epoch([50, 40, 40], seed=0, epoch=0, lanes=4, samples_per_lane=1, block_shards=2)
    with pytest.raises(IndexError):
        list(make_loader(threads=2).steps(beyond, epoch=0, lanes=LANES))


@pytest.fixture
def uneven(tmp_path: Path, random_sample: Callable[..., Sample], cells_map: ClassMap) -> ShardReader:
    """Two images of different sizes."""
    samples = [random_sample("a", height=9, width=11), random_sample("b", height=16, width=5)]
    return ShardReader(tmp_path, [write_shard(tmp_path, "train/a.tar", "content", pack_all(samples, cells_map))])


def test_images_of_different_sizes_are_refused_without_a_crop(uneven: ShardReader, cells_map: ClassMap) -> None:
    with pytest.raises(TrainingError) as caught:
        LaneLoader(uneven, cells_map, AugmentConfig(crop_px=None), seed=0)
    assert str(caught.value) == (
        "training images differ in size: heights 9 to 16, widths 5 to 11 px. "
        "Set augment.crop_px in params.yaml, so that batches can be made."
    )


def test_images_of_different_sizes_make_batches_with_a_crop(uneven: ShardReader, cells_map: ClassMap) -> None:
    loader = LaneLoader(uneven, cells_map, AugmentConfig(crop_px=12), seed=0)
    made = plan_epoch([2], seed=0, epoch=0, lanes=1, samples_per_lane=2, block_shards=1)
    ((batch,),) = loader.steps(made, epoch=0, lanes=range(1))
    assert batch.images.shape == (2, 3, 12, 12)
    assert batch.masks.shape == (2, 12, 12)


def test_a_loader_tries_its_transforms_on_the_shape_of_the_data(
    tmp_path: Path, random_sample: Callable[..., Sample], cells_map: ClassMap
) -> None:
    samples = [random_sample("a", height=9, width=11)]
    reader = ShardReader(tmp_path, [write_shard(tmp_path, "train/a.tar", "content", pack_all(samples, cells_map))])
    turning = [{"name": "D4", "p": 1.0}]
    with pytest.raises(RecipeError, match=r"^a transform changes the size: .* becomes \(11, 9, 3\)"):
        LaneLoader(reader, cells_map, AugmentConfig(crop_px=None, transforms=turning), seed=0)
    LaneLoader(reader, cells_map, AugmentConfig(crop_px=8, transforms=turning), seed=0)
