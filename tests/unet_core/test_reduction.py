from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from unet_core.model import ModelSpec, UNet
from unet_core.reduction import BatchStatistics, GradientTree, LaneTree, PartialSums

LANES = 8


@pytest.fixture
def leaves() -> list[Tensor]:
    """One vector a lane, of sizes so different that the order of their sum shows in many elements."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1000, generator=generator) * 10.0 ** (number % 4) for number in range(LANES)]


def tree_sum(leaves: list[Tensor]) -> Tensor:
    """The fixed tree, said as simply as can be."""
    if len(leaves) == 1:
        return leaves[0]
    half = len(leaves) // 2
    return tree_sum(leaves[:half]) + tree_sum(leaves[half:])


def partial_sum(leaves: list[Tensor]) -> Tensor:
    sums = PartialSums()
    for leaf in leaves:
        sums.push([leaf.clone()])
    (total,) = sums.pop_total()
    return total


# Partial sums


@pytest.mark.parametrize("num_leaves", [1, 2, 4, 8])
def test_partial_sums_follow_the_fixed_tree(leaves: list[Tensor], num_leaves: int) -> None:
    assert torch.equal(partial_sum(leaves[:num_leaves]), tree_sum(leaves[:num_leaves]))


def test_adding_one_after_the_other_gives_other_bits(leaves: list[Tensor]) -> None:
    # Otherwise the tests of the tree would prove nothing.
    one_by_one = leaves[0].clone()
    for leaf in leaves[1:]:
        one_by_one += leaf
    assert (one_by_one != partial_sum(leaves)).sum() > 100


def test_smallest_sum_whose_order_matters() -> None:
    # 2**24 + 1 is no float32: one by one both ones are lost, as a pair they arrive.
    leaves = [torch.tensor([value]) for value in (2.0**24, 0.0, 1.0, 1.0)]
    assert float(partial_sum(leaves)) == 2**24 + 2
    assert float(leaves[0] + leaves[1] + leaves[2] + leaves[3]) == 2**24


def test_lists_of_tensors_are_summed_each_for_itself() -> None:
    sums = PartialSums()
    for number in range(4):
        sums.push([torch.tensor([float(number)]), torch.full((2, 2), 10.0 * number)])
    first, second = sums.pop_total()
    assert float(first) == 6
    assert (second == 60).all()


def test_waiting_parts_are_those_that_the_last_leaf_meets(leaves: list[Tensor]) -> None:
    sums = PartialSums()
    for leaf in leaves[:7]:
        sums.push([leaf.clone()])
    waiting = sums.waiting(0)
    assert [
        torch.equal(a, b)
        for a, b in zip(waiting, [leaves[6], tree_sum(leaves[4:6]), tree_sum(leaves[:4])], strict=True)
    ] == [True] * 3
    total = leaves[7]
    for part in waiting:
        total = part + total
    assert torch.equal(total, tree_sum(leaves))


def test_no_more_parts_are_held_than_the_tree_is_deep(leaves: list[Tensor]) -> None:
    sums = PartialSums()
    most = 0
    for leaf in leaves:
        sums.push([leaf.clone()])
        most = max(most, len(sums.waiting(0)))
    assert most == 3
    sums.clear()
    assert sums.waiting(0) == []


# The tree above the workers


def test_each_worker_carries_its_share() -> None:
    assert [LaneTree(lanes=8, rank=rank, world_size=3).lanes for rank in range(3)] == [
        range(4),
        range(4, 6),
        range(6, 8),
    ]
    assert LaneTree(lanes=8).lanes == range(8)


def test_alone_a_sum_over_all_workers_is_ones_own(leaves: list[Tensor]) -> None:
    assert torch.equal(LaneTree(lanes=8).all_reduce(leaves[0]), leaves[0])


# Gradients


def test_gradient_is_the_mean_of_the_lanes_along_the_tree(make_spec: Callable[..., ModelSpec]) -> None:
    torch.manual_seed(0)
    model = UNet(make_spec(norm="none"))
    lanes = [torch.randint(0, 256, (1, 1, 8, 8), generator=torch.Generator().manual_seed(n)) for n in range(4)]
    gradients = GradientTree(model, LaneTree(lanes=4))
    separate = []
    for lane in lanes:
        model(lane).square().mean().backward()
        separate.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
        gradients.keep()
        assert all(parameter.grad is None for parameter in model.parameters())
    gradients.finish_alone()
    for number, parameter in enumerate(model.parameters()):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, tree_sum([lane[number] for lane in separate]) / 4)


# Batch statistics


def test_running_statistics_move_once_a_step_towards_the_mean_of_the_lanes() -> None:
    norm = nn.BatchNorm2d(2)
    lanes = [torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(n)) * (n + 1) for n in range(2)]
    statistics = BatchStatistics(norm)
    statistics.begin()
    read = []
    for lane in lanes:
        norm(lane)
        read.append(statistics.read_lane())
    statistics.finish((read[0] + read[1]) / 2)
    means = torch.stack([lane.mean(dim=(0, 2, 3)) for lane in lanes]).mean(dim=0)
    variances = torch.stack([lane.var(dim=(0, 2, 3)) for lane in lanes]).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, 0.1 * means)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variances)
    assert norm.momentum == 0.1


def test_number_of_lanes_leaves_no_trace_in_the_buffers() -> None:
    norm = nn.BatchNorm2d(1)
    statistics = BatchStatistics(norm)
    for _ in range(2):
        statistics.begin()
        norm(torch.ones(1, 1, 2, 2))
        statistics.finish(statistics.read_lane())
    assert int(norm.num_batches_tracked) == 0  # type: ignore[arg-type]


def test_statistics_of_the_second_step_go_on_from_the_first() -> None:
    norm = nn.BatchNorm2d(1)
    statistics = BatchStatistics(norm)
    for _ in range(2):
        statistics.begin()
        norm(torch.tensor([0.0, 2.0]).view(1, 1, 1, 2))  # mean 1
        statistics.finish(statistics.read_lane())
    torch.testing.assert_close(norm.running_mean, torch.tensor([0.1 + 0.9 * 0.1]))


def test_network_without_batch_norm_has_nothing_to_update() -> None:
    statistics = BatchStatistics(nn.Conv2d(1, 1, 1))
    statistics.begin()
    assert statistics.read_lane().shape == (0,)
    statistics.finish(torch.zeros(0))
