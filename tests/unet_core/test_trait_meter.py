import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_core.inference import ArrayRows, predict_bands, predict_logits, predict_mask
from unet_core.model import ModelConfig, ModelSpec, UNet
from unet_core.samples import ClassMap, ImageConfig
from unet_core.trait_meter import MeasuredRows, TraitMeter, watched
from unet_core.traits import Traits, parse_traits

CLASSES = ClassMap(kind="multiclass", classes={"soil": 3, "crop": 7, "weed": 9}, background="soil")
PLANES = ClassMap(kind="multilabel", classes={"ring": 255, "plus": 100})


def spec_of(class_map: ClassMap = CLASSES, *, channels: int = 1, bits: int = 8) -> ModelSpec:
    return ModelSpec(
        config=ModelConfig(width=2, depth=1, norm="none", input_statistics="train"),
        images=ImageConfig(channels=channels, bits=bits), class_map=class_map,
        mean=(0.5,) * channels, deviation=(0.5,) * channels, precision="float32",
    )  # fmt: skip


def read_whole(spec: ModelSpec, image: np.ndarray, mask: np.ndarray) -> Traits:
    meter = TraitMeter(spec)
    meter.see_pixels(image)
    meter.see_mask(mask)
    return meter.read(height=image.shape[0], width=image.shape[1])


def test_a_small_image_by_hand() -> None:
    image = np.array([[[0, 51, 255], [0, 51, 51]]], dtype=np.uint8)
    mask = np.array([[1, 0]], dtype=np.uint8)
    found = read_whole(spec_of(channels=3), image, mask)
    assert (found.height, found.width) == (1, 2)
    assert found.means == (0, 0.2, 0.6)
    assert found.deviations == (0, 0, 0.4)
    # 255 and 51 from the largest channel to the smallest.
    assert found.channel_range == 0.6
    assert found.shares == {"crop": 0.5, "weed": 0}


def test_one_channel_has_no_range_and_overlapping_classes_all_have_shares() -> None:
    planes = np.array([[[1, 1], [1, 0]]], dtype=np.uint8)
    found = read_whole(spec_of(PLANES, bits=16), np.full((1, 2, 1), 65535, dtype=np.uint16), planes)
    assert (found.means, found.deviations, found.channel_range) == ((1,), (0,), None)
    assert found.shares == {"ring": 1, "plus": 0.5}


@given(
    st.integers(1, 40),
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), max_size=8),
    st.integers(0, 40),
)
@settings(deadline=None, max_examples=40)
def test_rows_that_overlap_in_any_way_give_the_whole_images_traits(height, channels, bands, cut) -> None:
    spec = spec_of(channels=channels)
    rng = np.random.default_rng(height)
    image = rng.integers(0, 256, size=(height, 7, channels), dtype=np.uint8)
    mask = rng.integers(0, 3, size=(height, 7), dtype=np.uint8)
    meter, bottom = TraitMeter(spec), 0
    for overlap, step in [*bands, (2, height)]:
        top, bottom = max(0, bottom - overlap), min(height, bottom + step)
        meter.see_rows(top, image[top:bottom])
    meter.see_mask(mask[:cut])
    meter.see_mask(mask[cut:])
    assert meter.read(height=height, width=7) == read_whole(spec, image, mask)


def test_the_embedding_is_the_mean_of_the_deepest_feature_map() -> None:
    torch.manual_seed(0)
    spec = spec_of()
    network = UNet(spec).eval()
    image = np.random.default_rng(0).integers(0, 256, size=(16, 24, 1), dtype=np.uint8)
    meter = TraitMeter(spec)
    with watched(network, meter):
        logits = predict_logits(network, spec, image)
    meter.see_pixels(image)
    meter.see_mask(predict_mask(logits, spec))
    found = meter.read(height=16, width=24).embedding
    with torch.no_grad():
        deepest = network._encode(network.normalise(torch.from_numpy(image).permute(2, 0, 1)[None]))[-1]
    assert found == pytest.approx(deepest.mean(dim=(0, 2, 3)).tolist(), rel=1e-4)
    assert len(found) == 4
    # Nobody watches any more.
    assert not network.encoder[-1]._forward_hooks


def test_an_image_that_goes_through_by_rows_has_the_traits_of_one_in_memory() -> None:
    torch.manual_seed(0)
    spec = spec_of(channels=3)
    network = UNet(spec).eval()
    image = np.random.default_rng(1).integers(0, 256, size=(70, 40, 3), dtype=np.uint8)
    found = []
    for rows in (ArrayRows(image), None):
        meter = TraitMeter(spec)
        with watched(network, meter):
            if rows is None:
                meter.see_pixels(image)
                meter.see_mask(predict_mask(predict_logits(network, spec, image, tile_px=32, overlap_px=8), spec))
            else:
                for band in predict_bands(network, spec, MeasuredRows(rows, meter), tile_px=32, overlap_px=8):
                    meter.see_mask(predict_mask(band.logits, spec))
        found.append(meter.read(height=70, width=40))
    assert found[0] == found[1]


def test_an_overflow_is_undefined_and_traits_come_back_from_json() -> None:
    meter = TraitMeter(spec_of())
    meter.see_features(torch.tensor([1.0, torch.inf, torch.nan, -2.0]).view(1, 4, 1, 1))
    meter.see_pixels(np.zeros((2, 2, 1), dtype=np.uint8))
    meter.see_mask(np.zeros((2, 2), dtype=np.uint8))
    found = meter.read(height=2, width=2)
    assert found.embedding == (1.0, None, None, -2.0)
    assert parse_traits(json.loads(json.dumps(asdict(found), allow_nan=False))) == found
