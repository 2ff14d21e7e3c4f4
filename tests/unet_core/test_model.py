from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unet_core.errors import ModelError, RecipeError
from unet_core.model import AttentionGate, InputNormalisation, ModelConfig, ModelSpec, UNet, tutorial_state
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
    {"residual": True},
    {"attention": True},
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
    assert old.dropout == 0


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
