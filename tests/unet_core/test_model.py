from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unet_core.errors import ModelError, RecipeError
from unet_core.initial_weights import tutorial_state
from unet_core.model import AttentionGate, InputNormalisation, ModelConfig, ModelSpec, UNet
from unet_core.samples import ClassMap, ImageConfig

NORMS = ("none", "batch", "group", "instance")


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# Sizes and shapes


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (1, 9), (7, 13), (33, 50), (32, 48)])
def test_logits_have_the_size_of_the_image(
    make_spec: Callable[..., ModelSpec], norm: str, height: int, width: int
) -> None:
    model = UNet(make_spec(norm=norm)).eval()
    with torch.inference_mode():
        logits = model(images(2, 1, height, width))
    assert logits.shape == (2, 6, height, width)
    assert logits.isfinite().all()


@pytest.mark.parametrize("norm", NORMS)
def test_every_weight_is_trained(make_spec: Callable[..., ModelSpec], norm: str) -> None:
    model = UNet(make_spec(norm=norm))
    model(images(2, 1, 20, 27)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


VARIANTS = (
    *({"activation": name} for name in ("leaky_relu", "elu", "silu", "gelu")),
    {"upsampling": "resize"},
    {"stem_stride": 2},
    {"stem_stride": 4, "upsampling": "resize", "residual": True, "attention": True, "norm": "instance"},
    {"stem_stride": 2, "nested": True},
    {"residual": True},
    {"attention": True},
    {"nested": True},
    {"nested": True, "depth": 3, "residual": True, "upsampling": "resize", "dropout": 0.2},
    {"padding": "none"},
    {"padding": "none", "depth": 3, "residual": True, "attention": True, "upsampling": "resize", "norm": "instance"},
    {"activation": "gelu", "upsampling": "resize", "residual": True, "attention": True, "norm": "group", "width": 8},
)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_knob_gives_another_network_that_trains_and_takes_every_size(
    make_spec: Callable[..., ModelSpec], changes: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = UNet(make_spec(**{"norm": "none", **changes}))
    image = images(2, 1, 20, 27)
    logits = model(image)
    assert logits.shape == (2, 6, 20, 27)
    logits.square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []
    torch.manual_seed(0)
    assert not torch.equal(UNet(make_spec(norm="none"))(image), logits)
    with torch.inference_mode():
        assert model.eval()(images(1, 1, 1, 9)).isfinite().all()


def test_a_residual_block_adds_what_comes_in(make_spec: Callable[..., ModelSpec]) -> None:
    block = UNet(make_spec(residual=True)).eval().encoder[1]
    incoming = torch.randn(1, 8, 6, 6)[:, : block.body[0].in_channels]  # type: ignore[index,union-attr]
    nn.init.zeros_(block.body[3].weight)  # type: ignore[index,union-attr,arg-type]
    torch.testing.assert_close(block(incoming), block.shortcut(incoming).relu())  # type: ignore[operator]


def test_an_attention_gate_weighs_pixels_by_hand() -> None:
    gate = AttentionGate(2)
    for layer, weight in ((gate.of_skip, 1.0), (gate.of_gate, -1.0), (gate.weigh, 2.0)):
        nn.init.constant_(layer.weight, weight)
    for layer in (gate.of_gate, gate.weigh):
        assert layer.bias is not None
        nn.init.constant_(layer.bias, 0.5)
    skip = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    # relu(1 + 2 - (0.25 + 0.25) + 0.5) = 3; twice that and 0.5.
    found = gate(skip, torch.tensor([0.25, 0.25]).view(1, 2, 1, 1))
    torch.testing.assert_close(found, skip * torch.tensor(6.5).sigmoid())


def test_repeated_pixels_make_no_checkerboard(make_spec: Callable[..., ModelSpec]) -> None:
    flat = torch.ones(1, 8, 4, 4)
    up = UNet(make_spec(norm="none", width=4, depth=1, upsampling="resize")).upsample[0](flat)
    inside = up[0, :, 1:-1, 1:-1]
    torch.testing.assert_close(inside, inside[:, :1, :1].expand_as(inside))


def test_a_model_from_before_the_knobs_is_the_plain_one() -> None:
    old = ModelConfig(width=4, depth=2, norm="batch", input_statistics="train")
    assert (old.activation, old.upsampling, old.residual, old.attention) == ("relu", "transposed", False, False)
    assert (old.dropout, old.padding, old.nested, old.deep_supervision) == (0, "zeros", False, 0)


def test_dropout_draws_in_training_and_only_there(make_spec: Callable[..., ModelSpec]) -> None:
    model, image = UNet(make_spec(norm="none", dropout=0.5)), images(1, 1, 16, 16)
    assert not torch.equal(model(image), model(image))
    model.eval()
    assert torch.equal(model(image), model(image))


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropout_that_leaves_nothing_is_refused(make_spec: Callable[..., ModelSpec], dropout: float) -> None:
    with pytest.raises(RecipeError) as caught:
        make_spec(dropout=dropout)
    assert str(caught.value) == f"model.dropout: {dropout}: must be from 0 to below 1."


@pytest.mark.parametrize(("width", "depth", "channels"), [(4, 1, 1), (4, 3, 3), (1, 2, 3)])
def test_widths_double_at_each_level(
    make_spec: Callable[..., ModelSpec], width: int, depth: int, channels: int
) -> None:
    model = UNet(make_spec(norm="none", width=width, depth=depth, channels=channels))
    convolutions = [block[0] for block in model.encoder]  # type: ignore[index]
    assert [layer.out_channels for layer in convolutions] == [width * 2**level for level in range(depth + 1)]
    assert convolutions[0].in_channels == channels
    assert model.stride == 2**depth
    assert model(images(1, channels, 9, 9)).shape == (1, 6, 9, 9)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int32])
def test_grey_levels_of_any_type_give_the_same_logits(make_spec: Callable[..., ModelSpec], dtype: torch.dtype) -> None:
    model = UNet(make_spec()).eval()
    levels = images(1, 1, 12, 12)
    torch.testing.assert_close(model(levels.to(dtype)), model(levels), rtol=0, atol=0)


def test_wrong_number_of_channels_is_refused(make_spec: Callable[..., ModelSpec]) -> None:
    with pytest.raises(ModelError) as caught:
        UNet(make_spec(channels=3))(images(1, 1, 8, 8))
    assert str(caught.value) == (
        "the model takes 3 channels, the image has 1. Convert the image, or train a model for such images."
    )


def test_input_normalisation_by_hand() -> None:
    layer = InputNormalisation((0.5, 0.0), (0.5, 0.25))
    found = layer(torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1))
    torch.testing.assert_close(found.flatten(), torch.tensor([-1.0, 4.0]))


def test_statistics_are_saved_with_the_weights(make_spec: Callable[..., ModelSpec]) -> None:
    assert {"normalise.mean", "normalise.deviation"} <= set(UNet(make_spec()).state_dict())


def test_same_seed_gives_the_same_weights(make_spec: Callable[..., ModelSpec]) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(torch.cat([value.flatten().float() for value in UNet(make_spec()).state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_convolutions_begin_with_the_deviation_of_he(make_spec: Callable[..., ModelSpec]) -> None:
    torch.manual_seed(0)
    layer = UNet(make_spec(width=16)).encoder[2][0]  # type: ignore[index]
    assert isinstance(layer, nn.Conv2d)
    assert float(layer.weight.detach().std()) == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.03)


@pytest.mark.parametrize(("width", "depth"), [(0, 2), (8, 0), (-1, 4)])
def test_network_without_width_or_depth_is_refused(width: int, depth: int) -> None:
    with pytest.raises(RecipeError, match=f"model: width {width}, depth {depth}: both must be at least 1."):
        ModelConfig(width=width, depth=depth, norm="none", input_statistics="train")


def test_width_that_group_norm_can_not_divide_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        ModelConfig(width=12, depth=2, norm="group", input_statistics="train")
    assert str(caught.value) == "model: group norm makes 8 groups, width 12 does not divide. Choose 8, 16 ..."


# The paper's network


#: Sides of the feature maps in figure 1 of the paper, after each 3x3 convolution; 572 pixels go in.
PAPER_WAY_DOWN = [(570, 568), (282, 280), (138, 136), (66, 64), (30, 28)]
PAPER_WAY_UP = [(54, 52), (102, 100), (198, 196), (390, 388)]


def test_every_level_of_the_unpadded_network_has_the_papers_pixels(make_spec: Callable[..., ModelSpec]) -> None:
    model = UNet(make_spec(norm="none", width=1, depth=4, padding="none")).eval()
    sides: list[tuple[int, ...]] = []
    for block in [*model.encoder, *model.decoder]:
        for layer in (block[0], block[2]):  # type: ignore[index]
            layer.register_forward_hook(lambda _, taken, made: sides.append((taken[0].shape[2], *made.shape[2:])))
    with torch.inference_mode():
        logits = model(images(1, 1, 388, 388))
    assert sides[0][0] == 572
    assert logits.shape == (1, 6, 388, 388)
    expected = [side for level in PAPER_WAY_DOWN + PAPER_WAY_UP for side in level]
    assert [side[1:] for side in sides] == [(side, side) for side in expected]


def test_the_unpadded_network_computes_what_the_paper_draws(make_spec: Callable[..., ModelSpec]) -> None:
    torch.manual_seed(0)
    model = UNet(make_spec(norm="none", width=2, depth=2, padding="none")).eval()
    layer: Any = model.get_submodule
    image = images(1, 1, 23, 36)
    # Depth 2 takes 20 pixels from each side; 23 and 36 are no outputs of whole levels, 24 and 36 are.
    framed = nn.functional.pad(model.normalise(image), (20, 20, 20, 21), mode="reflect")
    assert (model.config.cropped_px, model.config.margin_px) == ((16, 4), 20)
    with torch.inference_mode():
        level_0 = layer("encoder.0")(framed)
        level_1 = layer("encoder.1")(nn.functional.max_pool2d(level_0, 2))
        level_2 = layer("encoder.2")(nn.functional.max_pool2d(level_1, 2))
        up_1 = layer("decoder.0")(torch.cat([layer("upsample.0")(level_2), level_1[..., 4:-4, 4:-4]], dim=1))
        up_0 = layer("decoder.1")(torch.cat([layer("upsample.1")(up_1), level_0[..., 16:-16, 16:-16]], dim=1))
        torch.testing.assert_close(model(image), layer("head")(up_0)[..., :23, :36])


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (13, 40)])
def test_an_unpadded_network_gives_a_mask_of_any_images_size(
    make_spec: Callable[..., ModelSpec], norm: str, upsampling: str, height: int, width: int
) -> None:
    model = UNet(make_spec(norm=norm, padding="none", upsampling=upsampling)).eval()
    with torch.inference_mode():
        logits = model(images(2, 1, height, width))
    assert logits.shape == (2, 6, height, width)
    assert logits.isfinite().all()


# U-Net++


def test_the_grid_of_nested_skips_by_hand(make_spec: Callable[..., ModelSpec]) -> None:
    model = UNet(make_spec(norm="none", depth=2, nested=True)).eval()
    block, up = model.nested.block, model.nested.upsample
    assert sorted(block) == ["0_1", "0_2", "1_1"]
    level_0, level_1, level_2 = torch.rand(1, 8, 8, 8), torch.rand(1, 16, 4, 4), torch.rand(1, 32, 2, 2)
    node_01 = block["0_1"](torch.cat([up["0_1"](level_1), level_0], dim=1))
    node_11 = block["1_1"](torch.cat([up["1_1"](level_2), level_1], dim=1))
    node_02 = block["0_2"](torch.cat([up["0_2"](node_11), level_0, node_01], dim=1))
    found = model.nested([level_0, level_1, level_2])
    torch.testing.assert_close(found, [node_01, node_02])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"attention": True}, "model.nested: U-Net++ has no attention gates. Set model.attention: false."),
        ({"padding": "none"}, "model.nested: U-Net++ joins maps of one size. Set model.padding: zeros."),
    ],
)
def test_knobs_that_nested_skips_have_no_place_for_are_refused(
    make_spec: Callable[..., ModelSpec], knobs: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        make_spec(nested=True, **knobs)
    assert str(caught.value) == message


# The stem


def test_a_stem_computes_on_squares_and_gives_their_masks(make_spec: Callable[..., ModelSpec]) -> None:
    model, image = UNet(make_spec(norm="none", channels=3, stem_stride=2)), images(1, 3, 16, 24)
    seen: list[Tensor] = []
    model.encoder[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for parameter in model.head.parameters():
        parameter.data.zero_()
    model.head.bias.data = torch.arange(6 * 4.0)  # type: ignore[union-attr]
    logits = model(image)
    assert seen[0].shape == (1, 12, 8, 12)
    # Channel by channel, and in each the square's pixels row by row.
    torch.testing.assert_close(seen[0][0, 4:8, 3, 5].view(2, 2), model.normalise(image)[0, 1, 6:8, 10:12])
    assert logits[0, 1, 6:8, 10:12].tolist() == [[4, 5], [6, 7]]
    assert (model.stride, model.smallest) == (8, 8)


@pytest.mark.parametrize("stride", [0, 3, 8])
def test_a_stem_of_another_stride_is_refused(make_spec: Callable[..., ModelSpec], stride: int) -> None:
    with pytest.raises(RecipeError) as caught:
        make_spec(stem_stride=stride)
    assert str(caught.value) == f"model.stem_stride: {stride}: must be 1, 2 or 4."


def test_a_stem_without_padding_is_refused(make_spec: Callable[..., ModelSpec]) -> None:
    with pytest.raises(RecipeError) as caught:
        make_spec(stem_stride=2, padding="none")
    assert str(caught.value) == (
        "model.stem_stride: the paper's form takes single pixels. Set model.padding: zeros, or model.stem_stride: 1."
    )


# Deep supervision


@pytest.mark.parametrize(
    ("knobs", "sizes"),
    [
        ({}, [(21, 27), (11, 14), (6, 7)]),
        ({"nested": True}, [(21, 27)] * 3),
        ({"stem_stride": 2}, [(21, 27), (6, 7), (3, 4)]),
        ({"stem_stride": 2, "nested": True}, [(21, 27)] * 3),
    ],
    ids=["plain", "nested", "stem", "nested stem"],
)
def test_coarse_levels_give_the_mask_in_training_and_only_there(
    make_spec: Callable[..., ModelSpec], knobs: dict[str, Any], sizes: list[tuple[int, int]]
) -> None:
    model, image = UNet(make_spec(depth=3, deep_supervision=2, **knobs)), images(2, 1, 21, 27)
    outputs = model(image)
    assert [tuple(logits.shape) for logits in outputs] == [(2, 6, *size) for size in sizes]
    sum(logits.square().mean() for logits in outputs).backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []
    assert model.eval()(image).shape == (2, 6, 21, 27)


def test_coarse_heads_leave_the_prediction_as_it_is(make_spec: Callable[..., ModelSpec]) -> None:
    plain, supervised = UNet(make_spec()).eval(), UNet(make_spec(deep_supervision=1)).eval()
    missing, unexpected = supervised.load_state_dict(plain.state_dict(), strict=False)
    assert (missing, unexpected) == (["coarse_heads.0.weight", "coarse_heads.0.bias"], [])
    assert torch.equal(supervised(images(1, 1, 16, 16)), plain(images(1, 1, 16, 16)))


@pytest.mark.parametrize("levels", [-1, 2])
def test_deep_supervision_of_levels_that_are_not_there_is_refused(
    make_spec: Callable[..., ModelSpec], levels: int
) -> None:
    with pytest.raises(RecipeError) as caught:
        make_spec(depth=2, deep_supervision=levels)
    assert str(caught.value) == (
        f"model.deep_supervision: {levels}: must be from 0 to 1: a decoder of depth 2 has no more levels below its last."
    )


def test_deep_supervision_without_padding_is_refused(make_spec: Callable[..., ModelSpec]) -> None:
    with pytest.raises(RecipeError) as caught:
        make_spec(padding="none", deep_supervision=1)
    assert str(caught.value) == (
        "model.deep_supervision: without padding, coarse levels do not lie on the mask's grid. "
        "Set model.padding: zeros, or model.deep_supervision: 0."
    )


# The tutorial's network


class TutorialUNet(nn.Module):
    """The network of "Cook your first U-Net in PyTorch", written down from its description."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = (64, 128, 256, 512, 1024)
        for level, width in enumerate(widths, start=1):
            before = 3 if level == 1 else width // 2
            self.add_module(f"e{level}1", nn.Conv2d(before, width, 3, padding=1))
            self.add_module(f"e{level}2", nn.Conv2d(width, width, 3, padding=1))
        for number, width in enumerate(reversed(widths[:-1]), start=1):
            self.add_module(f"upconv{number}", nn.ConvTranspose2d(2 * width, width, kernel_size=2, stride=2))
            self.add_module(f"d{number}1", nn.Conv2d(2 * width, width, 3, padding=1))
            self.add_module(f"d{number}2", nn.Conv2d(width, width, 3, padding=1))
        self.add_module("outconv", nn.Conv2d(64, num_classes, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self.get_submodule
        passed = []
        for level in range(1, 6):
            x = layer(f"e{level}1")(x).relu()
            x = layer(f"e{level}2")(x).relu()
            if level < 5:
                passed.append(x)
                x = nn.functional.max_pool2d(x, kernel_size=2, stride=2)
        for number in range(1, 5):
            x = torch.cat([layer(f"upconv{number}")(x), passed.pop()], dim=1)
            x = layer(f"d{number}1")(x).relu()
            x = layer(f"d{number}2")(x).relu()
        logits: Tensor = layer("outconv")(x)
        return logits


@pytest.fixture(scope="module")
def tutorial() -> TutorialUNet:
    torch.manual_seed(0)
    return TutorialUNet(num_classes=6)


def test_network_of_the_tutorial_gives_the_same_outputs(tutorial: TutorialUNet, shapes_map: ClassMap) -> None:
    spec = ModelSpec(
        config=ModelConfig(width=64, depth=4, norm="none", input_statistics="train"),
        images=ImageConfig(channels=3),
        class_map=shapes_map,
        mean=(0.0,) * 3,
        deviation=(1 / 255,) * 3,  # so that the network sees grey levels, as they are
        precision="float32",
    )
    model = UNet(spec)
    missing, unexpected = model.load_state_dict(tutorial_state(tutorial.state_dict()), strict=False)
    assert missing == ["normalise.mean", "normalise.deviation"]
    assert unexpected == []
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = tutorial(image), model(image)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_every_weight_of_the_tutorial_is_renamed_once(tutorial: TutorialUNet) -> None:
    weights = tutorial.state_dict()
    renamed = tutorial_state(weights)
    assert len(renamed) == len(weights) == 2 * 23
    assert renamed["encoder.4.2.weight"] is weights["e52.weight"]
    assert renamed["upsample.0.bias"] is weights["upconv1.bias"]
    assert renamed["decoder.3.0.weight"] is weights["d41.weight"]
    assert renamed["head.weight"] is weights["outconv.weight"]


def test_weights_of_another_network_are_refused_by_name(tutorial: TutorialUNet) -> None:
    weights = tutorial.state_dict()
    with pytest.raises(ModelError) as caught:
        tutorial_state({**weights, "e61.weight": torch.zeros(1)})
    assert str(caught.value) == (
        "not the tutorial's network: e61.weight is unknown. "
        "Expected the layers e11 to e52, upconv1 to upconv4, d11 to d42, outconv."
    )
    with pytest.raises(ModelError, match="not the tutorial's network: d21.bias is missing"):
        tutorial_state({name: tensor for name, tensor in weights.items() if name != "d21.bias"})


# Sixteen bits


def test_sixteen_bits_and_eight_give_the_same_logits(make_spec: Callable[..., ModelSpec]) -> None:
    spec = make_spec(norm="none")
    deep = replace(spec, images=ImageConfig(channels=1, bits=16, value_range=[0, 4095]))
    model, deep_model = UNet(spec), UNet(deep)
    deep_model.load_state_dict(model.state_dict())
    levels = images(1, 1, 8, 8)
    # 257 levels of sixteen bits are one of eight.
    torch.testing.assert_close(deep_model((levels.to(torch.int32) * 257).to(torch.uint16)), model(levels))
