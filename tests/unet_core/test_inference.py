from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unet_core.errors import ModelError
from unet_core.folding import fold_batch_norm
from unet_core.inference import ArrayRows, fading, predict_bands, predict_logits, predict_mask, predict_symmetric
from unet_core.losses import weighted_loss
from unet_core.model import ModelConfig, ModelSpec, UNet
from unet_core.samples import Array, ClassMap, ImageConfig
from unet_core.synthetic import draw_shapes
from unet_core.tiling import fading_tiles, receptive_radius

PAIR = ClassMap(kind="multiclass", classes={"a": 0, "b": 1, "c": 2})
THREE = ModelSpec(
    config=ModelConfig(width=4, depth=2, norm="none", input_statistics="train"),
    images=ImageConfig(channels=3),
    class_map=PAIR,
    mean=(0.5,) * 3,
    deviation=(0.25,) * 3,
    precision="float32",
)


class Echo(nn.Module):
    """Gives its input back, and remembers where each tile lay: the image's channels are row and column."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.tiles: list[tuple[int, int, int, int]] = []

    def forward(self, images: Tensor) -> Tensor:
        first = images[0, :, 0, 0].tolist()
        self.tiles.append((first[0], first[1], images.shape[2], images.shape[3]))
        return images.float()


def coordinates(height: int, width: int) -> Array:
    """An image whose first two channels are its row and its column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, (rows * 7 + columns * 3) % 256], axis=-1).astype(np.uint8)


@st.composite
def tilings(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Height, width, side of a tile and overlap; the last two are multiples of the network's stride, 4."""
    tiles = draw(st.integers(4, 10))
    return draw(st.integers(1, 100)), draw(st.integers(1, 100)), 4 * tiles, 4 * draw(st.integers(1, tiles // 2))


@given(tilings())
def test_every_pixel_is_predicted_and_stitched_where_it_belongs(tiling: tuple[int, int, int, int]) -> None:
    height, width, tile_px, overlap_px = tiling
    image = coordinates(height, width)
    logits = predict_logits(Echo(), THREE, image, tile_px=tile_px, overlap_px=overlap_px)
    assert logits.shape == (3, height, width)
    np.testing.assert_allclose(logits.permute(1, 2, 0), image, rtol=1e-4, atol=1e-4)


@given(tilings())
def test_tiles_reach_both_ends_and_neighbours_overlap_enough(tiling: tuple[int, int, int, int]) -> None:
    height, width, tile_px, overlap_px = tiling
    model = Echo()
    predict_logits(model, THREE, coordinates(height, width), tile_px=tile_px, overlap_px=overlap_px)
    for axis, length in ((0, height), (1, width)):
        spans = sorted({(tile[axis], tile[axis] + tile[2 + axis]) for tile in model.tiles})
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        assert all(end - start <= tile_px for start, end in spans)
        assert all(end - start >= overlap_px for (_, end), (start, _) in zip(spans, spans[1:], strict=False))


@given(st.integers(1, 2000), st.integers(1, 30), st.integers(0, 30), st.sampled_from([1, 4, 16]))
def test_weights_of_overlapping_spans_are_positive_and_add_up_to_one(
    length: int, tile: int, overlap: int, stride: int
) -> None:
    tile_px, overlap_px = stride * tile, min(overlap, stride * tile // 2)
    tiles = list(fading_tiles(length, 1, tile_px=tile_px, overlap_px=overlap_px, stride=stride))
    total = torch.zeros(length)
    for start, weights in fading({(tile.kept.top, tile.kept.height) for tile in tiles}, length, overlap_px).items():
        assert (weights > 0).all()
        total[start : start + len(weights)] += weights
    torch.testing.assert_close(total, torch.ones(length))


def test_tiles_may_lie_side_by_side_without_overlap() -> None:
    image = coordinates(20, 32)
    logits = predict_logits(Echo(), THREE, image, tile_px=8, overlap_px=0)
    np.testing.assert_allclose(logits.permute(1, 2, 0), image)


def test_neighbouring_tiles_fade_into_each_other() -> None:
    class Constant(Echo):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full(images.shape, 1.0 if images[0, 1, 0, 0] == 0 else 0.0)

    logits = predict_logits(Constant(), THREE, coordinates(4, 20), tile_px=12, overlap_px=4)
    row = logits[0, 0]
    assert (row[:8] == 1).all()
    assert (row[12:] == 0).all()
    assert (row[8:12].diff() < 0).all()
    assert (row[8:12] + row[8:12].flip(0)).tolist() == pytest.approx([1.0] * 4)


def test_image_smaller_than_a_tile_is_predicted_whole() -> None:
    model = Echo()
    predict_logits(model, THREE, coordinates(5, 3), tile_px=64, overlap_px=8)
    assert model.tiles == [(0, 0, 5, 3)]


def test_image_of_the_size_of_a_tile_is_predicted_whole() -> None:
    model = Echo()
    predict_logits(model, THREE, coordinates(16, 16), tile_px=16, overlap_px=8)
    assert len(model.tiles) == 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 70), (37, 91), (64, 64)])
def test_network_predicts_images_of_any_size(height: int, width: int) -> None:
    logits = predict_logits(UNet(THREE).eval(), THREE, coordinates(height, width), tile_px=48, overlap_px=16)
    assert logits.shape == (3, height, width)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_whole_prediction_is_the_networks_own() -> None:
    torch.manual_seed(0)
    model, image = UNet(THREE).eval(), coordinates(21, 30)
    with torch.inference_mode():
        expected = model(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    assert torch.equal(predict_logits(model, THREE, image), expected)


@pytest.fixture(scope="module")
def trained(shapes_map: ClassMap) -> tuple[UNet, ModelSpec]:
    """A tiny network that has seen a few shapes, and looks at most 44 pixels far."""
    spec = replace(
        THREE,
        config=replace(THREE.config, width=8, norm="batch"),
        images=ImageConfig(channels=1),
        class_map=shapes_map,
        mean=(0.1,),
        deviation=(0.3,),
    )
    torch.manual_seed(0)
    model = UNet(spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pictures = [draw_shapes(seed=0, number=number, height=48, width=48) for number in range(8)]
    images = torch.from_numpy(np.stack([image for image, _ in pictures]))[:, None]
    masks = torch.from_numpy(np.stack([masks for _, masks in pictures])).permute(0, 3, 1, 2)
    loss = weighted_loss({"bce": 0.5, "dice": 0.5}, shapes_map)
    for _ in range(25):
        optimizer.zero_grad()
        loss(model(images), masks).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval(), spec


@pytest.mark.parametrize(("height", "width"), [(192, 240), (187, 241), (97, 96), (60, 200)])
def test_tiles_give_nearly_the_mask_of_the_whole_image(
    trained: tuple[UNet, ModelSpec], height: int, width: int
) -> None:
    model, spec = trained
    image = draw_shapes(seed=1, number=0, height=height, width=width)[0][..., None]
    whole = predict_mask(predict_logits(model, spec, image, tile_px=512), spec)
    tiled = predict_mask(predict_logits(model, spec, image, tile_px=96, overlap_px=48), spec)
    assert whole.any()
    assert (whole == tiled).all(axis=-1).mean() > 0.99


@pytest.mark.parametrize("width", [152, 151, 149])
def test_far_from_its_border_a_tile_gives_the_logits_of_the_whole_image(
    trained: tuple[UNet, ModelSpec], width: int
) -> None:
    # Pooling looks at pixels in pairs counted from the tile's border. A tile that does not begin at a multiple
    # of the network's stride sees other pairs than the whole image, and answers differently everywhere.
    model, spec = trained
    image = np.random.default_rng(0).integers(0, 256, (64, width, 1), dtype=np.uint8)
    whole = predict_logits(model, spec, image, tile_px=512)
    tiled = predict_logits(model, spec, image, tile_px=96, overlap_px=40)
    # Columns from 96 belong to the second tile alone, which begins before column 57; the rest borders on the end.
    torch.testing.assert_close(tiled[..., 100:120], whole[..., 100:120], rtol=0, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 260), st.integers(1, 260), st.integers(0, 60))
def test_exact_tiles_give_the_logits_of_the_whole_image(
    trained: tuple[UNet, ModelSpec], height: int, width: int, more: int
) -> None:
    model, spec = trained
    image = np.random.default_rng(height).integers(0, 256, (height, width, 1), dtype=np.uint8)
    whole = predict_logits(model, spec, image, tile_px=1000)
    tile_px = 2 * (receptive_radius(spec.config) + 4) + 4 + more
    exact = predict_logits(model, spec, image, exact=True, tile_px=tile_px)
    torch.testing.assert_close(exact, whole, rtol=0, atol=1e-4)


VARIANTS: tuple[dict[str, Any], ...] = (
    {"stem_stride": 2},
    {"residual": True, "attention": True, "upsampling": "resize"},
    {"nested": True, "deep_supervision": 1},
    {"padding": "none"},
    {"padding": "none", "residual": True, "attention": True, "upsampling": "resize"},
)


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 140), st.integers(1, 140), st.integers(8, 40))
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_exact_tiles_suit_every_network(variant: dict[str, Any], height: int, width: int, more: int) -> None:
    spec = replace(THREE, config=replace(THREE.config, width=2, **variant))
    torch.manual_seed(0)
    model = UNet(spec).eval()
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    whole = predict_logits(model, spec, image, tile_px=1000)
    stride = spec.config.stride
    tile_px = 2 * (receptive_radius(spec.config) + stride) + stride + more
    # Without padding, tiles are exact without being asked for it.
    exact = predict_logits(model, spec, image, exact=spec.config.padding == "zeros", tile_px=tile_px)
    torch.testing.assert_close(exact, whole, rtol=0, atol=1e-4 * max(1, float(whole.abs().max())))


def test_an_unpadded_network_whose_norm_follows_the_tile_is_predicted_in_fading_tiles() -> None:
    spec = replace(THREE, config=replace(THREE.config, width=8, padding="none", norm="group"))
    image = np.random.default_rng(0).integers(0, 256, (90, 100, 3), dtype=np.uint8)
    assert predict_logits(UNet(spec).eval(), spec, image, tile_px=64, overlap_px=16).shape == (3, 90, 100)


def test_fast_tiles_differ_from_the_whole_image_where_exact_ones_do_not(trained: tuple[UNet, ModelSpec]) -> None:
    model, spec = trained
    image = np.random.default_rng(0).integers(0, 256, (250, 250, 1), dtype=np.uint8)
    whole = predict_logits(model, spec, image, tile_px=1000)
    fast = predict_logits(model, spec, image, tile_px=128, overlap_px=16)
    assert float((fast - whole).abs().max()) > 1e-2


@pytest.mark.parametrize("norm", ["group", "instance"])
def test_exact_tiles_of_a_network_that_looks_at_the_whole_tile_are_refused(
    make_spec: Callable[..., ModelSpec], norm: str
) -> None:
    spec = make_spec(norm=norm)
    model, image = UNet(spec).eval(), np.zeros((200, 200, 1), dtype=np.uint8)
    with pytest.raises(ModelError) as caught:
        predict_logits(model, spec, image, exact=True, tile_px=128)
    assert str(caught.value) == (
        f"no exact tiles with model.norm: {norm}, whose statistics are those of the tile. "
        "Predict without --exact, or train with norm batch or none."
    )
    # An image that fits in one tile is exact anyway.
    assert predict_logits(model, spec, image, exact=True).shape == (6, 200, 200)


def test_symmetric_prediction_turns_with_the_image(trained: tuple[UNet, ModelSpec]) -> None:
    model, spec = trained
    image = draw_shapes(seed=2, number=0, height=40, width=60)[0][..., None]
    straight = predict_symmetric(model, spec, image)
    turned = predict_symmetric(model, spec, np.rot90(image))
    torch.testing.assert_close(turned, torch.rot90(straight, 1, dims=(1, 2)), rtol=0, atol=1e-4)
    mirrored = predict_symmetric(model, spec, image[:, ::-1])
    torch.testing.assert_close(mirrored, straight.flip(2), rtol=0, atol=1e-4)
    assert not torch.allclose(straight, predict_logits(model, spec, image), atol=1e-3)


def test_symmetric_prediction_is_the_mean_by_hand() -> None:
    class Corner(Echo):
        """1 in the first row and column of what it sees."""

        def forward(self, images: Tensor) -> Tensor:
            logits = torch.zeros(images.shape)
            logits[..., 0, 0] = 1
            return logits

    logits = predict_symmetric(Corner(), THREE, coordinates(4, 6))
    expected = torch.zeros(4, 6)
    expected[[0, 0, -1, -1], [0, -1, 0, -1]] = 2 / 8
    assert torch.equal(logits[0], expected)


def test_bfloat16_gives_float32_logits_near_those_of_float32() -> None:
    torch.manual_seed(0)
    model, image = UNet(THREE).eval(), coordinates(32, 32)
    exact = predict_logits(model, THREE, image)
    rough = predict_logits(model, replace(THREE, precision="bfloat16"), image)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0, atol=0.05 * float(exact.abs().max()))


def test_read_only_image_is_predicted(make_spec: Callable[..., ModelSpec]) -> None:
    image = coordinates(8, 8)
    image.flags.writeable = False
    assert predict_logits(UNet(THREE).eval(), THREE, image).shape == (3, 8, 8)


def test_sixteen_bit_image_is_predicted_whole_and_in_tiles() -> None:
    spec = replace(THREE, images=ImageConfig(channels=3, bits=16, value_range=[0, 4095]))
    image = np.random.default_rng(0).integers(0, 65536, (20, 24, 3), dtype=np.uint16)
    model = UNet(spec).eval()
    assert torch.isfinite(predict_logits(model, spec, image)).all()
    assert predict_logits(model, spec, image, tile_px=16, overlap_px=4).shape == (3, 20, 24)


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 4), (8, 8)])
def test_wrong_number_of_channels_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError) as caught:
        predict_logits(UNet(THREE), THREE, np.zeros(shape, dtype=np.uint8))
    assert str(caught.value) == (
        f"the model takes 3 channels, the image has shape {shape}. Convert the image, or train a model for such images."
    )


def test_mask_of_classes_is_the_index_of_the_largest_logit() -> None:
    logits = torch.tensor([[[1.0, 0.0]], [[0.0, 0.5]], [[0.5, 2.0]]])
    mask = predict_mask(logits, THREE)
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 2]]


def test_of_equal_logits_the_first_class_is_predicted() -> None:
    assert (predict_mask(torch.ones(3, 40, 50), THREE) == 0).all()
    assert (predict_mask(torch.tensor([0.0, 1.0, 1.0])[:, None, None].expand(3, 40, 50), THREE) == 1).all()


def test_mask_of_planes_is_one_where_the_logit_is_positive(make_spec: Callable[..., ModelSpec]) -> None:
    mask = predict_mask(torch.tensor([[[1.0, -1.0]], [[0.0, 3.0]]]), make_spec())
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[[1, 0], [0, 1]]]


class CountedRows(ArrayRows):
    """Remembers which rows were asked for."""

    def __init__(self, image: Array) -> None:
        super().__init__(image)
        object.__setattr__(self, "asked", [])

    def read_rows(self, top: int, bottom: int) -> Array:
        self.asked.append((top, bottom))  # type: ignore[attr-defined]
        return super().read_rows(top, bottom)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("height", [1, 95, 96, 97, 250])
def test_bands_follow_each_other_and_are_the_logits_of_the_image(
    trained: tuple[UNet, ModelSpec], height: int, exact: bool
) -> None:
    model, spec = trained
    image = np.random.default_rng(0).integers(0, 256, (height, 130, 1), dtype=np.uint8)
    rows = CountedRows(image)
    bands = list(predict_bands(model, spec, rows, exact=exact, tile_px=104, overlap_px=16))
    logits = torch.cat([band.logits for band in bands], dim=1)
    assert [band.top for band in bands] == np.cumsum([0, *(band.logits.shape[1] for band in bands[:-1])]).tolist()
    assert torch.equal(logits, predict_logits(model, spec, image, exact=exact, tile_px=104, overlap_px=16))
    # Never more rows at a time than a tile has.
    assert max(bottom - top for top, bottom in rows.asked) <= 104  # type: ignore[attr-defined]
    assert rows.asked[0][0] == 0  # type: ignore[attr-defined]
    assert rows.asked[-1][1] == height  # type: ignore[attr-defined]


def test_folded_network_predicts_the_same_tiles(trained: tuple[UNet, ModelSpec]) -> None:
    model, spec = trained
    image = draw_shapes(seed=1, number=0, height=150, width=170)[0][..., None]
    plain = predict_logits(model, spec, image, tile_px=96, overlap_px=16)
    folded = predict_logits(fold_batch_norm(model), spec, image, tile_px=96, overlap_px=16)
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-4)
