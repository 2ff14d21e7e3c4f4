from collections.abc import Callable

import pytest
import torch

from unet_core.losses import weighted_loss
from unet_core.model import ModelSpec, UNet
from unet_core.reader import ShardReader
from unet_core.samples import ClassMap
from unet_core.validation import score_images, summarise


def test_rows_of_two_workers_add_up_to_those_of_one(
    make_spec: Callable[..., ModelSpec], val: ShardReader, shapes_map: ClassMap
) -> None:
    model, loss = UNet(make_spec()).eval(), weighted_loss({"bce": 1.0}, shapes_map)
    whole = score_images(model, make_spec(), val, loss, numbers=range(3))
    parts = [score_images(model, make_spec(), val, loss, numbers=range(rank, 3, 2)) for rank in range(2)]
    assert torch.equal(parts[0] + parts[1], whole)
    assert whole.shape == (3, 1 + 3 * 6)


def test_summary_is_the_mean_over_images_by_hand(make_spec: Callable[..., ModelSpec], cells_map: ClassMap) -> None:
    spec = make_spec(class_map=cells_map)
    rows = torch.tensor(
        [
            # loss, then TP, FP, FN of background, cell, nucleus
            [0.5, 9, 1, 1, 1, 0, 2, 0, 0, 0],
            [1.5, 9, 1, 1, 3, 1, 1, 0, 0, 5],
        ],
        dtype=torch.float64,
    )
    found = summarise(rows, spec)
    assert found.loss == 1.0
    assert found.class_dice == {"background": 0.9, "cell": (0.5 + 0.75) / 2, "nucleus": 0.0}
    # Nucleus is undefined in the first image and so not counted there; background is not scored.
    assert found.dice == pytest.approx((0.5 + 0.75 + 0.0) / 3)


def test_summary_is_undefined_where_no_class_occurs(make_spec: Callable[..., ModelSpec]) -> None:
    found = summarise(torch.zeros(2, 19, dtype=torch.float64), make_spec())
    assert found.dice is None
    assert set(found.class_dice.values()) == {None}
