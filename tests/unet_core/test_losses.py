import math
from typing import Any

import pytest
import torch
from torch import Tensor

from unet_core.errors import RecipeError
from unet_core.losses import LOSSES, binary_cross_entropy, cross_entropy, soft_dice, weighted_loss
from unet_core.samples import IGNORE_INDEX, ClassMap


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def planes(*values: Any) -> Tensor:
    """One image of one row: a list per class."""
    return torch.tensor(values, dtype=torch.float32)[None, :, None, :]


def test_binary_cross_entropy_by_hand() -> None:
    logits = planes([logit(0.8), logit(0.3)], [logit(0.5), logit(0.5)])
    masks = planes([1, 0], [1, 0]).to(torch.uint8)
    expected = -(math.log(0.8) + math.log(0.7) + math.log(0.5) + math.log(0.5)) / 4
    assert float(binary_cross_entropy(logits, masks)) == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_by_hand() -> None:
    # Softmax of (log 1, log 3) is (1/4, 3/4).
    logits = planes([math.log(1), math.log(1)], [math.log(3), math.log(3)])
    masks = torch.tensor([[[0, 1]]])
    expected = -(math.log(1 / 4) + math.log(3 / 4)) / 2
    assert float(cross_entropy(logits, masks)) == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_is_the_mean_over_pixels_that_are_not_ignored() -> None:
    logits = planes([0.0, 5.0, -3.0], [math.log(3), 0.0, 9.0])
    masks = torch.tensor([[[1, IGNORE_INDEX, IGNORE_INDEX]]])
    assert float(cross_entropy(logits, masks)) == pytest.approx(-math.log(3 / 4), rel=1e-6)


def test_cross_entropy_of_nothing_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = cross_entropy(logits, torch.full((2, 4, 4), IGNORE_INDEX))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_soft_dice_of_planes_by_hand() -> None:
    logits = planes([logit(0.8), logit(0.4)], [logit(0.5), logit(0.5)])
    masks = planes([1, 0], [0, 0]).to(torch.uint8)
    first = 1 - (2 * 0.8 + 1) / (0.8 + 0.4 + 1 + 1)
    second = 1 - (0 + 1) / (1.0 + 0 + 1)
    assert float(soft_dice(logits, masks)) == pytest.approx((first + second) / 2, rel=1e-6)


def test_soft_dice_of_classes_by_hand() -> None:
    logits = planes([0.0, 0.0], [math.log(3), 0.0])
    masks = torch.tensor([[[1, 0]]])
    first = 1 - (2 * 0.5 + 1) / (0.25 + 0.5 + 1 + 1)
    second = 1 - (2 * 0.75 + 1) / (0.75 + 0.5 + 1 + 1)
    assert float(soft_dice(logits, masks)) == pytest.approx((first + second) / 2, rel=1e-6)


def test_soft_dice_is_taken_per_image_and_then_averaged() -> None:
    logits, masks = planes([20.0, 20.0]), planes([1, 1])
    empty, none = planes([-20.0, 20.0]), planes([1, 1])
    both = soft_dice(torch.cat([logits, empty]), torch.cat([masks, none]))
    assert float(both) == pytest.approx((float(soft_dice(logits, masks)) + float(soft_dice(empty, none))) / 2, rel=1e-6)


def test_soft_dice_is_zero_when_masks_agree() -> None:
    masks = torch.tensor([[[[1, 0], [0, 1]], [[0, 0], [1, 1]]]])
    assert float(soft_dice(masks * 200.0 - 100, masks)) == pytest.approx(0, abs=1e-6)


def test_soft_dice_of_an_empty_plane_that_is_not_predicted_is_zero() -> None:
    assert float(soft_dice(planes([-100.0, -100.0]), planes([0, 0]))) == pytest.approx(0, abs=1e-6)


def test_smoothing_of_soft_dice_is_a_number_of_pixels() -> None:
    logits, masks = planes([100.0, 100.0]), planes([0, 0])
    assert float(soft_dice(logits, masks, smooth=3.0)) == pytest.approx(1 - 3 / 5, rel=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy, soft_dice])
def test_ignored_pixels_change_neither_loss_nor_gradient(loss: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (2, 4, 5), generator=generator)
    masks[:, 2:] = IGNORE_INDEX
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    other = logits.clone()
    other[:, :, 2:] = 7 * torch.randn(2, 3, 2, 5, generator=generator)
    logits.requires_grad_()
    value = loss(logits, masks)
    value.backward()
    assert float(value.detach()) == pytest.approx(float(loss(other, masks)), rel=1e-6)
    assert logits.grad is not None
    assert not logits.grad[:, :, 2:].any()
    assert logits.grad[:, :, :2].any()


def test_weighted_loss_is_the_weighted_sum(shapes_map: ClassMap) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 4, 4, generator=generator)
    masks = torch.randint(0, 2, (2, 6, 4, 4), generator=generator)
    total = weighted_loss({"bce": 0.5, "dice": 2.0}, shapes_map)(logits, masks)
    assert float(total) == pytest.approx(
        0.5 * float(binary_cross_entropy(logits, masks)) + 2 * float(soft_dice(logits, masks)), rel=1e-6
    )


def test_weighted_loss_is_computed_in_float32(shapes_map: ClassMap) -> None:
    logits = torch.full((1, 6, 3, 3), 1.0, dtype=torch.bfloat16)
    masks = torch.ones(1, 6, 3, 3, dtype=torch.uint8)
    total = weighted_loss({"bce": 1.0}, shapes_map)(logits, masks)
    assert total.dtype == torch.float32
    assert float(total) == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)


def test_every_loss_fits_one_kind_of_mask(cells_map: ClassMap, shapes_map: ClassMap) -> None:
    masks = {"multiclass": torch.zeros(1, 2, 2, dtype=torch.int64), "multilabel": torch.zeros(1, 3, 2, 2)}
    for class_map, names in ((cells_map, {"cross_entropy", "dice"}), (shapes_map, {"bce", "dice"})):
        value = weighted_loss(dict.fromkeys(names, 1.0), class_map)(torch.zeros(1, 3, 2, 2), masks[class_map.kind])
        assert math.isfinite(float(value))
    assert set(LOSSES) == {"bce", "cross_entropy", "dice"}


def test_unknown_loss_is_named(shapes_map: ClassMap) -> None:
    with pytest.raises(RecipeError) as caught:
        weighted_loss({"dice": 1.0, "focal": 1.0}, shapes_map)
    assert str(caught.value) == "unknown loss: train.loss: 'focal'. Choose from ['bce', 'cross_entropy', 'dice']."


def test_loss_that_does_not_fit_the_masks_is_refused(shapes_map: ClassMap, cells_map: ClassMap) -> None:
    with pytest.raises(RecipeError) as caught:
        weighted_loss({"cross_entropy": 1.0}, shapes_map)
    assert str(caught.value) == "train.loss: cross_entropy does not fit masks.kind: multilabel. Use bce."
    with pytest.raises(RecipeError) as caught:
        weighted_loss({"bce": 1.0}, cells_map)
    assert str(caught.value) == "train.loss: bce does not fit masks.kind: multiclass. Use cross_entropy."


def test_no_loss_at_all_is_refused(shapes_map: ClassMap) -> None:
    with pytest.raises(RecipeError, match=r"train.loss is empty. Give weights to one or more of \['bce', "):
        weighted_loss({}, shapes_map)


def test_instances_take_the_losses_of_classes() -> None:
    class_map = ClassMap(kind="instances", classes={"background": 0, "cell": 1})
    weighted_loss({"cross_entropy": 0.5, "dice": 0.5}, class_map)
    with pytest.raises(RecipeError, match=r"train.loss: bce does not fit masks.kind: instances\. Use cross_entropy\."):
        weighted_loss({"bce": 1.0}, class_map)
