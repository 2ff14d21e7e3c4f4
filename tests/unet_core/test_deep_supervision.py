from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from unet_core.deep_supervision import shrink, supervised_loss
from unet_core.errors import RecipeError
from unet_core.losses import LOSSES, weighted_loss
from unet_core.model import ModelSpec, UNet
from unet_core.samples import IGNORE_INDEX, ClassMap


def test_a_shrunken_mask_has_the_middle_pixel_of_each_square() -> None:
    mask = torch.arange(5 * 7).view(1, 5, 7)
    # Of squares of 2: pixels 1, 3 and the last; of squares of 4: pixels 2 and the last, 6 is the last but one column's.
    assert shrink(mask, 2).tolist() == [[[8, 10, 12, 13], [22, 24, 26, 27], [29, 31, 33, 34]]]
    assert shrink(mask, 4).tolist() == [[[16, 20], [30, 34]]]
    assert shrink(mask, 1) is mask


@pytest.mark.parametrize("size", [(1, 1), (8, 12), (21, 27)])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_a_shrunken_mask_has_the_size_of_the_logits(size: tuple[int, int], stride: int) -> None:
    assert shrink(torch.zeros(2, 3, *size), stride).shape == (2, 3, -(-size[0] // stride), -(-size[1] // stride))


def heads_and_mask() -> tuple[list[Tensor], Tensor]:
    """Logits of three heads, and a mask with ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(2, 3, side, side, generator=generator) for side in (8, 4, 2)]
    mask = torch.randint(0, 3, (2, 8, 8), generator=generator)
    mask[:, :3] = IGNORE_INDEX
    return outputs, mask


@pytest.mark.parametrize(
    ("weights", "shares"), [(None, (4 / 7, 2 / 7, 1 / 7)), ([3.0, 1.0, 0.0], (0.75, 0.25, 0))], ids=str
)
def test_the_loss_is_the_weighted_mean_over_the_heads(
    make_spec: Callable[..., ModelSpec], cells_map: ClassMap, weights: Any, shares: tuple[float, ...]
) -> None:
    plain = weighted_loss({"cross_entropy": 0.5, "dice": 0.5}, cells_map)
    loss = supervised_loss(plain, make_spec(depth=3, deep_supervision=2).config, weights)
    outputs, mask = heads_and_mask()
    by_hand = [plain(outputs[0], mask), plain(outputs[1], mask[:, 1::2, 1::2]), plain(outputs[2], mask[:, 2::4, 2::4])]
    expected = sum(share * value for share, value in zip(shares, by_hand, strict=True))
    torch.testing.assert_close(loss(outputs, mask), expected)
    # Prediction has one head.
    torch.testing.assert_close(loss(outputs[0], mask), by_hand[0])


def test_border_weights_are_shrunken_with_the_mask(make_spec: Callable[..., ModelSpec], cells_map: ClassMap) -> None:
    plain = weighted_loss({"cross_entropy": 1.0}, cells_map)
    loss = supervised_loss(plain, make_spec(deep_supervision=1).config, None)
    (finest, coarse, _), mask = heads_and_mask()
    border = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = (2 * plain(finest, mask, border) + plain(coarse, mask[:, 1::2, 1::2], border[:, 1::2, 1::2])) / 3
    torch.testing.assert_close(loss((finest, coarse), mask, border), expected)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_reaches_every_weight(
    make_spec: Callable[..., ModelSpec], cells_map: ClassMap, shapes_map: ClassMap, name: str, nested: bool
) -> None:
    class_map = shapes_map if name == "bce" else cells_map
    spec = make_spec(class_map=class_map, depth=3, norm="none", deep_supervision=2, nested=nested)
    model, loss = UNet(spec), supervised_loss(weighted_loss({name: 1.0}, class_map), spec.config, None)
    mask = torch.zeros(1, 6, 13, 18, dtype=torch.uint8) if name == "bce" else torch.zeros(1, 13, 18).long()
    mask[..., 3:9, 4:15] = 1
    loss(model(torch.randint(0, 256, (1, 1, 13, 18))), mask).backward()
    assert [key for key, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@pytest.mark.parametrize(
    ("levels", "weights", "message"),
    [
        (
            0,
            [1.0, 0.5],
            "train.deep_supervision_weights: [1.0, 0.5]: the network has no heads to be weighted. "
            "Set model.deep_supervision to the number of coarse levels, or remove the weights.",
        ),
        (
            1,
            [1.0, 0.5, 0.25],
            "train.deep_supervision_weights: 3 weights for 2 heads. Give the prediction's first, and then one for "
            "each of model.deep_supervision's coarser levels.",
        ),
        (
            1,
            [0.0, 1.0],
            "train.deep_supervision_weights: [0.0, 1.0]: must not be negative, and the first, of the prediction, not 0.",
        ),
        (
            1,
            [1.0, -1.0],
            "train.deep_supervision_weights: [1.0, -1.0]: must not be negative, and the first, of the prediction, not 0.",
        ),
    ],
)
def test_weights_that_do_not_fit_the_network_are_refused(
    make_spec: Callable[..., ModelSpec], make_config: Callable[..., Any], levels: int, weights: Any, message: str
) -> None:
    config = replace(make_config(), deep_supervision_weights=weights)
    with pytest.raises(RecipeError) as caught:
        config.make_loss(make_spec(deep_supervision=levels))
    assert str(caught.value) == message
