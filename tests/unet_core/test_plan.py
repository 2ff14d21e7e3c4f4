import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_core.errors import TrainingError
from unet_core.plan import SPARE_BLOCKS, EpochPlan, Oversampling, lanes_of_workers, plan_epoch

POWERS = (1, 2, 4, 8, 16)


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, object]:
    """Arguments of `plan_epoch` with enough samples."""
    lanes = draw(st.sampled_from(POWERS))
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) >= lanes))
    return {
        "shard_sizes": sizes,
        "seed": draw(st.integers(0, 2**31)),
        "epoch": draw(st.integers(0, 1000)),
        "lanes": lanes,
        "samples_per_lane": draw(st.integers(1, 5)),
        "block_shards": draw(st.integers(1, 13)),
    }


def plan(**changes: object) -> EpochPlan:
    plain = {"shard_sizes": [9, 10, 11, 7], "seed": 0, "epoch": 0, "lanes": 4, "samples_per_lane": 2, "block_shards": 2}
    return plan_epoch(**{**plain, **changes})  # type: ignore[arg-type]


@given(arguments())
def test_every_sample_is_read_once_or_rests(values: dict[str, object]) -> None:
    made = plan_epoch(**values)  # type: ignore[arg-type]
    numbers = np.concatenate([made.lanes.ravel(), made.resting()])
    np.testing.assert_array_equal(np.sort(numbers), np.arange(sum(values["shard_sizes"])))  # type: ignore[call-overload]


@given(arguments())
def test_lanes_are_equal_and_fewer_samples_than_lanes_rest(values: dict[str, object]) -> None:
    made = plan_epoch(**values)  # type: ignore[arg-type]
    total, lanes = sum(values["shard_sizes"]), values["lanes"]  # type: ignore[call-overload]
    assert made.lanes.shape == (lanes, total // lanes)
    assert len(made.resting()) == made.num_resting == total % lanes


@given(arguments())
def test_plan_is_a_pure_function(values: dict[str, object]) -> None:
    np.random.seed(values["epoch"])
    first = plan_epoch(**values)  # type: ignore[arg-type]
    second = plan_epoch(**values)  # type: ignore[arg-type]
    np.testing.assert_array_equal(first.lanes, second.lanes)
    np.testing.assert_array_equal(first.resting(), second.resting())


@given(arguments())
def test_steps_one_after_the_other_are_the_lanes(values: dict[str, object]) -> None:
    made = plan_epoch(**values)  # type: ignore[arg-type]
    steps = [made.step(number) for number in range(made.num_steps)]
    np.testing.assert_array_equal(np.concatenate(steps, axis=1), made.lanes)
    assert {step.shape[1] for step in steps[:-1]} <= {values["samples_per_lane"]}
    assert 1 <= steps[-1].shape[1] <= values["samples_per_lane"]  # type: ignore[operator]


@given(arguments(), st.randoms(use_true_random=False))
def test_any_step_can_be_jumped_to(values: dict[str, object], order: object) -> None:
    through = plan_epoch(**values)  # type: ignore[arg-type]
    expected = [through.step(number).copy() for number in range(through.num_steps)]
    numbers = list(range(through.num_steps))
    order.shuffle(numbers)  # type: ignore[attr-defined]
    for number in numbers:
        fresh = plan_epoch(**values)  # type: ignore[arg-type]
        np.testing.assert_array_equal(fresh.step(number), expected[number])


def test_step_is_taken_from_every_lane_at_the_same_place() -> None:
    made = plan()
    np.testing.assert_array_equal(made.step(1), made.lanes[:, 2:4])


def test_last_step_takes_what_is_left() -> None:
    made = plan()  # 37 samples, 9 a lane, 2 a step
    assert made.num_steps == 5
    assert made.step(4).shape == (4, 1)


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 1}])
def test_another_epoch_or_seed_gives_another_order(change: dict[str, int]) -> None:
    assert (plan().lanes != plan(**change).lanes).any()


def test_seed_and_epoch_are_not_added_up() -> None:
    assert (plan(seed=1, epoch=2).lanes != plan(seed=2, epoch=1).lanes).any()


def test_samples_per_lane_does_not_change_the_order() -> None:
    np.testing.assert_array_equal(plan().lanes, plan(samples_per_lane=5).lanes)


def test_the_resting_samples_rotate() -> None:
    # 3 of 7 samples are left over; in 40 epochs each of them rests at some time.
    rested = [set(plan(shard_sizes=[3, 4], lanes=4, epoch=epoch).resting()) for epoch in range(40)]
    assert all(len(numbers) == 3 for numbers in rested)
    assert set(chain.from_iterable(rested)) == set(range(7))
    assert len({frozenset(numbers) for numbers in rested}) > 5


def test_samples_are_shuffled_among_the_shards_of_a_block_only() -> None:
    made = plan(shard_sizes=[10] * 6, lanes=1, block_shards=2)
    shards = made.lanes[0].reshape(3, 20) // 10
    assert [len(set(block)) for block in shards] == [2, 2, 2]
    # Inside its block a shard's samples lie scattered.
    assert all((np.diff(block) != 0).sum() > 3 for block in shards)


def test_one_block_of_all_shards_mixes_everything() -> None:
    made = plan(shard_sizes=[10] * 6, lanes=1, block_shards=6)
    assert len(set(made.lanes[0, :20] // 10)) > 3


@given(arguments())
def test_lanes_read_ranges_of_neighbouring_blocks(values: dict[str, object]) -> None:
    made = plan_epoch(**values)  # type: ignore[arg-type]
    sizes, block_shards = values["shard_sizes"], values["block_shards"]
    shard_of = np.repeat(np.arange(len(sizes)), sizes)  # type: ignore[arg-type]
    sequence = shard_of[np.concatenate([made.lanes.ravel(), made.resting()])]
    # In the order in which shards first occur, a block's shards lie together.
    seen: list[set[int]] = []
    place = 0
    while place < len(sequence):
        shards: set[int] = set()
        end = place
        while end < len(sequence) and (int(sequence[end]) in shards or len(shards) < block_shards):  # type: ignore[operator]
            shards.add(int(sequence[end]))
            end += 1
        assert end - place == sum(sizes[shard] for shard in shards)  # type: ignore[index]
        seen.append(shards)
        place = end
    assert sum(len(block) for block in seen) == len(sizes)  # type: ignore[arg-type]


@given(arguments())
def test_a_step_of_a_lane_is_its_row_of_the_step(values: dict[str, object]) -> None:
    made = plan_epoch(**values)  # type: ignore[arg-type]
    for number in {0, made.num_steps - 1}:
        rows = [made.lane_step(lane, number) for lane in range(made.num_lanes)]
        np.testing.assert_array_equal(np.stack(rows), made.step(number))


def test_steps_asked_for_by_several_threads_are_those_of_one() -> None:
    sizes = [7] * 300
    expected = plan(shard_sizes=sizes).lanes
    made = plan(shard_sizes=sizes)
    with ThreadPoolExecutor(4) as pool:
        steps = list(pool.map(made.step, range(made.num_steps)))
    np.testing.assert_array_equal(np.concatenate(steps, axis=1), expected)
    assert len(made._blocks) <= 4 + SPARE_BLOCKS


def test_a_hundred_million_samples_are_planned_without_a_list_of_them() -> None:
    tracemalloc.start()
    made = plan(shard_sizes=[1000] * 100_000, lanes=8)
    last = made.step(made.num_steps - 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.num_steps == 100_000_000 // 8 // 2
    assert len(np.unique(last)) == 16
    assert peak < 20e6


# Oversampling

#: Three samples of 37 have the only rare class: two of the first shard and one of the third.
HOLDERS = (1, 4, 20)


def sampling(sizes: Sequence[int], holders: Sequence[Sequence[int]], shares: Sequence[float]) -> Oversampling:
    """Each class occurs in the samples that are named for it."""
    firsts = np.cumsum(sizes) - np.asarray(sizes)

    def presence(shard: int) -> npt.NDArray[np.bool_]:
        numbers = np.arange(firsts[shard], firsts[shard] + sizes[shard])
        return np.stack([np.isin(numbers, list(of_class)) for of_class in holders], axis=1)

    return Oversampling(shares=dict(enumerate(shares)), presence=presence)


@st.composite
def oversampled(draw: st.DrawFn) -> dict[str, object]:
    """Arguments of `plan_epoch` with up to three rare classes."""
    values = draw(arguments())
    total = sum(values["shard_sizes"])  # type: ignore[call-overload]
    holders = draw(st.lists(st.lists(st.integers(0, total - 1)), min_size=1, max_size=3))
    shares = [draw(st.floats(0.01, 1 / len(holders))) for _ in holders]
    return {**values, "oversampling": sampling(values["shard_sizes"], holders, shares)}  # type: ignore[arg-type]


def draws(made: EpochPlan) -> npt.NDArray[np.int64]:
    """All draws of an epoch, block after block."""
    return np.concatenate([made._block(number) for number in range(len(made._starts) - 1)], axis=1)


@given(oversampled())
def test_oversampling_keeps_each_place_in_its_block(values: dict[str, object]) -> None:
    plain = plan_epoch(**{**values, "oversampling": None})  # type: ignore[arg-type]
    made = plan_epoch(**values)  # type: ignore[arg-type]
    assert (made.num_steps, made.lane_size, made.num_resting) == (plain.num_steps, plain.lane_size, plain.num_resting)
    for number in range(len(made._starts) - 1):
        assert set(made._block(number)[0]) <= set(plain._block(number)[0])


@given(oversampled())
def test_oversampling_changes_a_place_only_to_a_sample_of_a_rare_class(values: dict[str, object]) -> None:
    plain = plan_epoch(**{**values, "oversampling": None})  # type: ignore[arg-type]
    made = plan_epoch(**values)  # type: ignore[arg-type]
    presence = np.concatenate(
        [values["oversampling"].presence(shard) for shard in range(len(values["shard_sizes"]))]  # type: ignore[arg-type, attr-defined]
    )
    before, after = draws(plain)[0], draws(made)[0]
    assert presence[after[before != after]].any(axis=1).all()


@given(oversampled())
def test_oversampled_steps_can_be_jumped_to(values: dict[str, object]) -> None:
    whole = plan_epoch(**values)  # type: ignore[arg-type]
    for number in reversed(range(whole.num_steps)):
        fresh = plan_epoch(**values)  # type: ignore[arg-type]
        for lane in range(fresh.num_lanes):
            np.testing.assert_array_equal(fresh.lane_draws(lane, number), whole.lane_draws(lane, number))


@given(oversampled())
def test_each_draw_of_a_sample_has_another_number(values: dict[str, object]) -> None:
    found = draws(plan_epoch(**values))  # type: ignore[arg-type]
    assert len(set(map(tuple, found.T))) == found.shape[1]
    for sample in set(found[0]):
        np.testing.assert_array_equal(found[1, found[0] == sample], np.arange((found[0] == sample).sum()))


def test_a_third_of_an_epoch_is_drawn_among_the_rare() -> None:
    sizes = [300] * 4
    rare = [1, 5, 299, 600, 1100]
    made = plan_epoch(
        sizes, seed=0, epoch=0, lanes=4, samples_per_lane=2, block_shards=2, oversampling=sampling(sizes, [rare], [1 / 3])
    )  # fmt: skip
    counts = np.bincount(made.lanes.ravel(), minlength=1200)
    assert 400 <= counts[rare].sum() <= 400 + len(rare)
    assert counts[np.setdiff1d(np.arange(1200), rare)].max() == 1
    # Inside a block they take turns.
    for block in range(2):
        of_block = np.bincount(made._block(block)[0], minlength=1200)[rare]
        assert np.ptp(of_block[of_block > 0]) <= 2


def test_what_makes_room_is_another_sample_in_each_epoch() -> None:
    sizes = [9, 10, 11, 7]
    seen: set[int] = set()
    for epoch in range(12):
        made = plan(epoch=epoch, oversampling=sampling(sizes, [HOLDERS], [0.5]))
        seen |= set(made.lanes.ravel())
    assert seen == set(range(37))


def test_a_class_that_occurs_nowhere_near_changes_nothing() -> None:
    np.testing.assert_array_equal(plan(oversampling=sampling([9, 10, 11, 7], [()], [0.5])).lanes, plan().lanes)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(TrainingError) as caught:
        plan(shard_sizes=[2, 1], lanes=4)
    assert str(caught.value) == (
        "too few training samples: 3 for 4 lanes. "
        "Add data, or lower train.lanes (the largest number of workers) in params.yaml."
    )


def test_no_samples_at_all_are_refused() -> None:
    with pytest.raises(TrainingError, match="too few training samples: 0 for 1 lanes"):
        plan(shard_sizes=[], lanes=1)


def test_as_many_samples_as_lanes_are_enough() -> None:
    made = plan(shard_sizes=[2, 2])
    assert made.num_steps == 1
    assert len(made.resting()) == 0


ALL_GROUPS = [(lanes, workers) for lanes in POWERS for workers in range(1, lanes + 1)]


@pytest.mark.parametrize(("lanes", "workers"), ALL_GROUPS)
def test_workers_carry_all_lanes_in_order_as_aligned_subtrees(lanes: int, workers: int) -> None:
    shares = lanes_of_workers(lanes=lanes, workers=workers)
    assert len(shares) == workers
    assert list(chain.from_iterable(shares)) == list(range(lanes))
    for share in shares:
        size = len(share)
        assert size & (size - 1) == 0
        assert share.start % size == 0


@pytest.mark.parametrize(("lanes", "workers"), ALL_GROUPS)
def test_no_worker_carries_more_than_twice_as_much_as_another(lanes: int, workers: int) -> None:
    sizes = [len(share) for share in lanes_of_workers(lanes=lanes, workers=workers)]
    assert max(sizes) <= 2 * min(sizes)
    if workers & (workers - 1) == 0:
        assert len(set(sizes)) == 1


def test_three_workers_of_eight_lanes_carry_four_two_and_two() -> None:
    assert lanes_of_workers(lanes=8, workers=3) == [range(4), range(4, 6), range(6, 8)]


@pytest.mark.parametrize("workers", [0, 9, -1])
def test_impossible_number_of_workers_is_refused(workers: int) -> None:
    with pytest.raises(TrainingError) as caught:
        lanes_of_workers(lanes=8, workers=workers)
    assert str(caught.value) == (
        f"{workers} workers for 8 lanes: choose 1 to 8 workers (UNET_WORKERS), or raise train.lanes."
    )
