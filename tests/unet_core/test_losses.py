import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from unet_core.errors import RecipeError
from unet_core.losses import (
    LOSSES,
    binary_cross_entropy,
    cross_entropy,
    focal,
    lovasz,
    soft_dice,
    tversky,
    weighted_loss,
    weights_from_pixels,
)
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


def draw(kind: str, *, images: int = 3, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random logits and masks."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, 5, 6, generator=generator)
    if kind == "multilabel":
        return logits, torch.randint(0, 2, (images, classes, 5, 6), generator=generator)
    return logits, torch.randint(0, classes, (images, 5, 6), generator=generator)


def test_focal_loss_by_hand() -> None:
    # Softmax of (log 1, log 3) is (1/4, 3/4).
    logits = planes([math.log(1), math.log(1)], [math.log(3), math.log(3)])
    expected = -(math.log(1 / 4) * (3 / 4) ** 2 + math.log(3 / 4) * (1 / 4) ** 2) / 2
    assert float(focal(logits, torch.tensor([[[0, 1]]]))) == pytest.approx(expected, rel=1e-6)
    logits, masks = planes([logit(0.8), logit(0.3)]), planes([1, 0])
    expected = -(math.log(0.8) * 0.2**3 + math.log(0.7) * 0.3**3) / 2
    assert float(focal(logits, masks, gamma=3.0)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("kind", "plain"), [("multiclass", cross_entropy), ("multilabel", binary_cross_entropy)])
def test_focal_loss_without_focus_is_the_cross_entropy(kind: str, plain: Any) -> None:
    logits, masks = draw(kind)
    for weights in (None, torch.tensor([1.0, 3.0, 0.5])):
        assert float(focal(logits, masks, weights, gamma=0)) == pytest.approx(
            float(plain(logits, masks, weights)), rel=1e-5
        )


def test_gradients_are_finite_where_the_network_is_sure() -> None:
    for kind in ("multiclass", "multilabel"):
        for sign in (1, -1):
            _, masks = draw(kind)
            right = masks if kind == "multilabel" else torch.nn.functional.one_hot(masks, 3).movedim(-1, 1)
            logits = (sign * 400.0 * (2 * right - 1)).requires_grad_()
            names = ["focal", "tversky", "lovasz", "dice", "bce" if kind == "multilabel" else "cross_entropy"]
            torch.stack([LOSSES[name](logits, masks) for name in names]).sum().backward()  # type: ignore[no-untyped-call]
            assert logits.grad is not None
            assert bool(logits.grad.isfinite().all())


def test_tversky_loss_by_hand() -> None:
    logits, masks = planes([logit(0.8), logit(0.4), logit(0.1)]), planes([1, 0, 1])
    hits, extra, missed = 0.9, 0.4, 1.1
    expected = 1 - (hits + 1) / (hits + 0.3 * extra + 0.7 * missed + 1)
    assert float(tversky(logits, masks)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_tversky_loss_of_two_halves_is_dice(kind: str) -> None:
    logits, masks = draw(kind)
    halves = tversky(logits, masks, alpha=0.5, beta=0.5, smooth=0.5)
    assert float(halves) == pytest.approx(float(soft_dice(logits, masks, smooth=1.0)), rel=1e-6)


def test_lovasz_by_hand() -> None:
    # Softmax of (z / 2, -z / 2) is the sigmoid of z.
    logits = planes([logit(0.8), logit(0.4), logit(0.1)], [logit(0.2), logit(0.6), logit(0.9)]) / 2
    masks = torch.tensor([[[1, 1, 0]]])
    # Both classes have the errors 0.9, 0.8 and 0.4. Class 0 is the first of these pixels, without which its IoU is 0;
    # class 1 the other two: the IoU falls from 1 to 2/3, 1/3 and 0.
    expected = (0.9 + (0.9 + 0.8 + 0.4) / 3) / 2
    assert float(lovasz(logits, masks)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("per", ["image", "batch"])
@pytest.mark.parametrize("seed", range(5))
def test_lovasz_of_sure_masks_is_one_minus_the_iou(per: Any, seed: int) -> None:
    _, truth = draw("multiclass", classes=4, seed=seed)
    _, seen = draw("multiclass", classes=4, seed=seed + 100)
    truth[0, :2] = IGNORE_INDEX
    truth[1] = truth[1].clamp(max=2)
    logits = 200.0 * torch.nn.functional.one_hot(seen, 4).movedim(-1, 1)
    groups = [slice(None)] if per == "batch" else [slice(n, n + 1) for n in range(len(truth))]
    wanted = []
    for group in groups:
        known = truth[group] != IGNORE_INDEX
        for k in range(4):
            is_true, is_seen = truth[group] == k, (seen[group] == k) & known
            if is_true.any():
                wanted.append(1 - float((is_true & is_seen).sum() / (is_true | is_seen).sum()))
    assert float(lovasz(logits, truth, per=per)) == pytest.approx(sum(wanted) / len(wanted), rel=1e-5)


def test_lovasz_hinge_of_an_absent_class_is_its_worst_error() -> None:
    assert float(lovasz(planes([-3.0, -0.5, -2.0]), planes([0, 0, 0]))) == pytest.approx(0.5)
    assert float(lovasz(planes([-3.0, -1.5, -2.0]), planes([0, 0, 0]))) == 0


def test_lovasz_of_nothing_is_zero() -> None:
    assert float(lovasz(torch.randn(2, 3, 4, 4), torch.full((2, 4, 4), IGNORE_INDEX))) == 0


@pytest.mark.parametrize("name", ["dice", "tversky", "lovasz"])
@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_a_batch_of_one_image_is_that_image(name: str, kind: str) -> None:
    logits, masks = draw(kind, images=1)
    per_image, per_batch = LOSSES[name](logits, masks, per="image"), LOSSES[name](logits, masks, per="batch")
    assert float(per_image) == pytest.approx(float(per_batch), rel=1e-6)
    # And of several, it is not.
    logits, masks = draw(kind)
    per_image, per_batch = LOSSES[name](logits, masks, per="image"), LOSSES[name](logits, masks, per="batch")
    assert float(per_image) != pytest.approx(float(per_batch), rel=1e-4)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_equal_class_weights_change_nothing_and_a_weight_of_zero_takes_a_class_out(name: str, kind: str) -> None:
    if (name, kind) in {("bce", "multiclass"), ("cross_entropy", "multilabel")}:
        return
    logits, masks = draw(kind)
    plain = float(LOSSES[name](logits, masks))
    assert float(LOSSES[name](logits, masks, torch.full((3,), 7.0))) == pytest.approx(plain, rel=1e-5)
    without = LOSSES[name](logits.requires_grad_(), masks, torch.tensor([1.0, 1.0, 0.0]))
    assert float(without.detach()) != pytest.approx(plain, rel=1e-4)
    if kind == "multilabel":
        without.backward()
        assert logits.grad is not None
        assert not logits.grad[:, 2].any()


def test_weighted_cross_entropy_is_torchs() -> None:
    logits, masks = draw("multiclass")
    masks[:, 0] = IGNORE_INDEX
    weights = torch.tensor([0.5, 2.0, 5.0])
    expected = torch.nn.functional.cross_entropy(logits, masks, weight=weights, ignore_index=IGNORE_INDEX)
    assert float(cross_entropy(logits, masks, weights)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_values_are_those_of_monai(kind: str) -> None:
    from monai.losses import DiceLoss, FocalLoss, TverskyLoss

    logits, masks = draw(kind)
    planes_ = masks if kind == "multilabel" else torch.nn.functional.one_hot(masks, 3).movedim(-1, 1)
    acts = {"sigmoid": True} if kind == "multilabel" else {"softmax": True}
    for batch, per in ((False, "image"), (True, "batch")):
        peer = DiceLoss(**acts, smooth_nr=1.0, smooth_dr=1.0, batch=batch)
        ours = soft_dice(logits, masks, per=per)  # type: ignore[arg-type]
        assert float(ours) == pytest.approx(float(peer(logits, planes_)), rel=1e-5)
        peer = TverskyLoss(**acts, alpha=0.3, beta=0.7, smooth_nr=1.0, smooth_dr=1.0, batch=batch)
        ours = tversky(logits, masks, per=per)  # type: ignore[arg-type]
        assert float(ours) == pytest.approx(float(peer(logits, planes_)), rel=1e-5)
    peer = FocalLoss(gamma=2.0, use_softmax=kind == "multiclass")
    # Theirs of classes is the mean over the planes too, all but one of which are 0 in each pixel.
    times = 3 if kind == "multiclass" else 1
    assert float(focal(logits, masks)) == pytest.approx(times * float(peer(logits, planes_.float())), rel=1e-5)


@pytest.mark.parametrize("loss", [cross_entropy, partial(focal, gamma=0.0)], ids=["cross_entropy", "focal"])
def test_border_weights_are_added_to_those_of_the_classes(loss: Any) -> None:
    logits = planes([math.log(1), math.log(1), 0.0], [math.log(3), math.log(3), 0.0])
    masks = torch.tensor([[[0, 1, IGNORE_INDEX]]])
    border = torch.tensor([[[0.5, 0.0, 100.0]]])
    first, second = -math.log(1 / 4), -math.log(3 / 4)
    assert float(loss(logits, masks, None, border)) == pytest.approx((1.5 * first + second) / 2.5, rel=1e-6)
    expected = (2.5 * first + 4 * second) / 6.5
    assert float(loss(logits, masks, torch.tensor([2.0, 4.0]), border)) == pytest.approx(expected, rel=1e-6)


def test_border_weights_reach_the_losses_of_pixels_in_a_sum(cells_map: ClassMap) -> None:
    logits, masks = draw("multiclass")
    border = torch.rand(masks.shape, generator=torch.Generator().manual_seed(0))
    loss = weighted_loss({"cross_entropy": 0.5, "dice": 0.25, "focal": {"weight": 1.0, "gamma": 1}}, cells_map)
    expected = (
        0.5 * cross_entropy(logits, masks, None, border)
        + 0.25 * soft_dice(logits, masks)
        + focal(logits, masks, None, border, gamma=1.0)
    )
    torch.testing.assert_close(loss(logits, masks, border), expected)


@pytest.mark.parametrize("loss", [cross_entropy, soft_dice, focal, tversky, lovasz])
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
    both = {"dice", "focal", "lovasz", "tversky"}
    for class_map, names in ((cells_map, {"cross_entropy", *both}), (shapes_map, {"bce", *both})):
        value = weighted_loss(dict.fromkeys(names, 1.0), class_map)(torch.zeros(1, 3, 2, 2), masks[class_map.kind])
        assert math.isfinite(float(value))
    assert set(LOSSES) == {"bce", "cross_entropy", *both}


def test_unknown_loss_is_named(shapes_map: ClassMap) -> None:
    with pytest.raises(RecipeError) as caught:
        weighted_loss({"dice": 1.0, "jaccard": 1.0}, shapes_map)
    assert str(caught.value) == (
        "unknown loss: train.loss: 'jaccard'. "
        "Choose from ['bce', 'cross_entropy', 'dice', 'focal', 'lovasz', 'tversky']."
    )


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"dice": 0.0}, "wrong value: train.loss.dice: weight: 0.0. Give a number above 0; leave out a loss that does "
            "not count."),
        ({"dice": {"smooth": 1.0}}, "missing argument: train.loss.dice: weight. Say how much it counts, such as "
            "weight: 1.0."),
        ({"focal": {"weight": 1, "gama": 2}}, "unknown argument: train.loss.focal: gama. It takes weight, gamma."),
        ({"focal": {"weight": 1, "gamma": 0.5}}, "wrong value: train.loss.focal: gamma: 0.5. Give 0, or a number from 1."),
        ({"dice": {"weight": 1, "smooth": 0}}, "wrong value: train.loss.dice: smooth: 0. Give a number of pixels above "
            "0."),
        ({"dice": {"weight": 1, "per": "lane"}}, "wrong value: train.loss.dice: per: lane. Give image or batch."),
        ({"tversky": {"weight": 1, "beta": -1}}, "wrong value: train.loss.tversky: beta: -1. Give a number from 0."),
        ({"tversky": {"weight": 1, "alpha": 0, "beta": 0.0}}, "wrong value: train.loss.tversky: alpha and beta: both 0, so "
            "that no wrong pixel counts. Give one of them a number above 0."),
        ({"bce": {"weight": True}}, "wrong value: train.loss.bce: weight: True. Give a number above 0; leave out a loss "
            "that does not count."),
        ({"bce": {"weight": 1, "smooth": 1}}, "unknown argument: train.loss.bce: smooth. It takes weight."),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(shapes_map: ClassMap, losses: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        weighted_loss(losses, shapes_map)
    assert str(caught.value) == message


def test_arguments_reach_their_loss(shapes_map: ClassMap) -> None:
    logits, masks = draw("multilabel", classes=6)
    total = weighted_loss({"dice": {"weight": 0.5, "per": "batch", "smooth": 3}, "focal": {"weight": 2}}, shapes_map)
    expected = 0.5 * soft_dice(logits, masks, smooth=3, per="batch") + 2 * focal(logits, masks)
    assert float(total(logits, masks)) == pytest.approx(float(expected), rel=1e-6)


def test_class_weights_that_do_not_fit_are_refused(cells_map: ClassMap) -> None:
    with pytest.raises(RecipeError) as caught:
        weighted_loss({"dice": 1.0}, cells_map, [1.0, 2.0])
    assert str(caught.value) == (
        f"train.class_weights: 2 weights for 3 classes. Give one each, in this order: {', '.join(cells_map.names)}."
    )
    for wrong in ([0, 0, 0], [1, -1, 1], [1, math.nan, 1]):
        with pytest.raises(RecipeError, match=r"^train\.class_weights: .*: must not be negative, nor all 0\.$"):
            weighted_loss({"dice": 1.0}, cells_map, wrong)


def test_class_weights_of_pixels() -> None:
    pixels = {"background": 90, "crop": 6, "weed": 3}
    assert weights_from_pixels("inverse", pixels) == pytest.approx((33 / 90, 33 / 6, 33 / 3))
    assert weights_from_pixels("median", pixels) == pytest.approx((6 / 90, 1, 2))
    with pytest.raises(RecipeError) as caught:
        weights_from_pixels("median", {"background": 90, "weed": 0})
    assert str(caught.value) == (
        "train.class_weights: median: no pixel of the training images is weed. "
        "Give a list of weights, or remove the class."
    )


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
