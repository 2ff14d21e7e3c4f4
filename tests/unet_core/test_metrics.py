import numpy as np
import pytest
import torch

from unet_core.counts import Counts
from unet_core.metrics import count_pixels, mask_to_tensor, predict_classes, predict_planes
from unet_core.samples import IGNORE_INDEX, ClassMap


def counts(true_positive: int, false_positive: int, false_negative: int) -> Counts:
    return Counts(true_positive=true_positive, false_positive=false_positive, false_negative=false_negative)


def logits_of(predicted: list[list[int]], num_classes: int) -> torch.Tensor:
    """Logits (K, H, W) whose largest is the predicted class."""
    return torch.nn.functional.one_hot(torch.tensor(predicted), num_classes).permute(2, 0, 1).float()


def test_multiclass_pixels_are_counted_per_class() -> None:
    logits = logits_of([[0, 1, 1], [2, 0, 0]], 3)
    mask = torch.tensor([[0, 1, 0], [2, 2, 0]])
    assert count_pixels(logits, mask) == [counts(2, 1, 1), counts(1, 1, 0), counts(1, 0, 1)]


def test_ignored_pixels_count_nowhere() -> None:
    logits = logits_of([[0, 1, 1], [2, 0, 0]], 3)
    mask = torch.full((2, 3), IGNORE_INDEX)
    mask[0, 0] = 0
    assert count_pixels(logits, mask) == [counts(1, 0, 0), counts(0, 0, 0), counts(0, 0, 0)]


def test_overlapping_planes_are_counted_each_for_itself() -> None:
    logits = torch.tensor([[[1.0, 1.0, -1.0]], [[2.0, -3.0, 0.5]]])
    mask = torch.tensor([[[1, 0, 1]], [[1, 0, 0]]], dtype=torch.uint8)
    assert count_pixels(logits, mask) == [counts(1, 1, 1), counts(1, 1, 0)]


def test_class_that_is_nowhere_has_no_score() -> None:
    (_, absent) = count_pixels(logits_of([[0, 0]], 2), torch.tensor([[0, 0]]))
    assert absent.dice is None
    assert absent.iou is None


def test_counts_of_two_halves_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 10, 12, generator=generator)
    mask = torch.randint(0, 4, (10, 12), generator=generator)
    mask[3] = IGNORE_INDEX
    halves = zip(count_pixels(logits[:, :5], mask[:5]), count_pixels(logits[:, 5:], mask[5:]), strict=True)
    assert [upper + lower for upper, lower in halves] == count_pixels(logits, mask)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_every_scored_pixel_is_hit_or_missed_once(num_classes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    mask = torch.randint(0, num_classes, (9, 9), generator=generator)
    mask[:2] = IGNORE_INDEX
    found = count_pixels(torch.randn(num_classes, 9, 9, generator=generator), mask)
    assert sum(c.true_positive + c.false_negative for c in found) == 63
    assert sum(c.true_positive + c.false_positive for c in found) == 63


def test_plane_is_predicted_where_its_probability_is_above_one_half() -> None:
    assert predict_planes(torch.tensor([-0.1, 0.0, 0.1])).tolist() == [False, False, True]


def test_multiclass_masks_become_long_indices(cells_map: ClassMap) -> None:
    masks = np.array([[[0, 1], [2, 255]]], dtype=np.uint8)
    tensor = mask_to_tensor(masks, cells_map)
    assert tensor.dtype == torch.int64
    assert tensor.tolist() == [[[0, 1], [2, 255]]]


def test_planes_move_before_rows_and_columns(shapes_map: ClassMap) -> None:
    masks = np.random.default_rng(0).integers(0, 2, (2, 3, 4, 6), dtype=np.uint8)
    tensor = mask_to_tensor(masks, shapes_map)
    assert tensor.shape == (2, 6, 3, 4)
    np.testing.assert_array_equal(tensor[1, 5], masks[1, :, :, 5])


def test_instances_are_scored_as_foreground() -> None:
    class_map = ClassMap(kind="instances", classes={"background": 0, "cell": 1})
    masks = mask_to_tensor(np.array([[[0, 1, 300]]], dtype=np.uint16), class_map)
    assert masks.dtype == torch.int64
    assert masks.tolist() == [[[0, 1, 1]]]


def test_classes_are_those_of_the_largest_logit_and_of_equal_ones_the_first() -> None:
    logits = torch.tensor([[[0.0, 2.0, 1.0]], [[1.0, 2.0, 0.0]], [[0.5, 2.0, 3.0]]])
    assert predict_classes(logits).tolist() == [[1, 0, 2]]
