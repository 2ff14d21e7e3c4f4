from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unet_core.backward import AllAtOnce, Backward, LaneByLane, micro_batches
from unet_core.loader import Batch
from unet_core.model import ModelSpec, UNet
from unet_core.reduction import LaneTree
from unet_core.train_config import TrainConfig


def batch(size: int, seed: int = 0) -> Batch:
    """Noise of the shapes' kind."""
    draw = torch.Generator().manual_seed(seed)
    return Batch(
        keys=tuple(f"{seed}-{number}" for number in range(size)),
        images=torch.randint(0, 256, (size, 1, 16, 16), generator=draw, dtype=torch.uint8),
        masks=torch.randint(0, 2, (size, 6, 16, 16), generator=draw, dtype=torch.uint8),
        border=None,
    )


@pytest.fixture
def passes(
    make_spec: Callable[..., ModelSpec], make_config: Callable[..., TrainConfig]
) -> Callable[..., tuple[UNet, Backward]]:
    """A network and its passes, the same weights each time."""

    def make(kind: type = LaneByLane, *, norm: str = "none", **changes: object) -> tuple[UNet, Backward]:
        torch.manual_seed(0)
        spec, config = make_spec(norm=norm), make_config(samples_per_lane=8, **changes)
        model = UNet(spec)
        return model, kind(
            model, spec, config.make_loss(spec), LaneTree(lanes=config.lanes), torch.device("cpu"), config
        )

    return make


def gradients(model: UNet) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@given(st.integers(1, 40), st.sampled_from([1, 2, 4, 8, 16]))
def test_micro_batches_are_all_samples_in_their_order(size: int, count: int) -> None:
    whole = replace(batch(size), border=torch.rand(size, 16, 16))
    parts = micro_batches(whole, count)
    assert tuple(key for part, _ in parts for key in part.keys) == whole.keys
    assert torch.equal(torch.cat([part.images for part, _ in parts]), whole.images)
    assert torch.equal(torch.cat([part.masks for part, _ in parts]), whole.masks)
    assert torch.equal(torch.cat([part.border for part, _ in parts]), whole.border)
    assert len(parts) & (len(parts) - 1) == 0
    assert min(count, size) / 2 < len(parts) <= min(count, size)
    sizes = [len(part.keys) for part, _ in parts]
    assert max(sizes) - min(sizes) <= 1
    assert [share for _, share in parts] == [part_size / size for part_size in sizes]


@pytest.mark.parametrize("kind", [LaneByLane, AllAtOnce])
@pytest.mark.parametrize("sizes", [(8, 8), (5, 5), (3, 3), (1, 1)])
def test_accumulated_gradients_are_those_of_one_pass_to_rounding(
    passes: Callable[..., tuple[UNet, Backward]], kind: type, sizes: tuple[int, ...]
) -> None:
    batches = [batch(size, seed) for seed, size in enumerate(sizes)]
    model, backward = passes(kind, lanes=2)
    in_parts, accumulated = passes(kind, lanes=2, accumulate=4)
    assert accumulated.run(batches, 0) == pytest.approx(backward.run(batches, 0), rel=1e-5)
    for ours, theirs in zip(gradients(in_parts), gradients(model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_micro_batches_are_lanes_below_the_lane(passes: Callable[..., tuple[UNet, Backward]]) -> None:
    # The same leaves of the same tree: two lanes of four in two parts each, and four lanes of two.
    whole = [batch(4, seed) for seed in range(2)]
    halves = [part for lane in whole for part, _ in micro_batches(lane, 2)]
    in_parts, accumulated = passes(lanes=2, accumulate=2, norm="batch")
    in_lanes, lanes = passes(lanes=4, norm="batch")
    assert accumulated.run(whole, 0) == lanes.run(halves, 0)
    for ours, theirs in zip(gradients(in_parts), gradients(in_lanes), strict=True):
        assert torch.equal(ours, theirs)
    states = in_parts.state_dict(), in_lanes.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("kind", [LaneByLane, AllAtOnce])
def test_a_scale_multiplies_the_gradient_and_not_the_loss(
    passes: Callable[..., tuple[UNet, Backward]], kind: type
) -> None:
    batches = [batch(2, seed) for seed in range(2)]
    (plain, backward), (scaled, with_scale) = passes(kind, lanes=2), passes(kind, lanes=2)
    assert with_scale.run(batches, 0, scale=1024.0) == backward.run(batches, 0)
    for ours, theirs in zip(gradients(scaled), gradients(plain), strict=True):
        # A power of two changes the exponent only, apart from numbers next to nothing.
        torch.testing.assert_close(ours / 1024, theirs, rtol=0, atol=1e-30)


def test_the_losses_of_the_lanes_are_kept(passes: Callable[..., tuple[UNet, Backward]]) -> None:
    _, backward = passes(lanes=2, accumulate=2)
    mean = backward.run([batch(4, seed) for seed in range(2)], 0)
    assert float(torch.stack(backward.lane_losses).mean()) == pytest.approx(mean)
    assert len(set(map(float, backward.lane_losses))) == 2
