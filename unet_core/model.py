"""The U-Net (Ronneberger, Fischer, Brox 2015), padded so that the mask has the image's size.

Every level is two 3x3 convolutions; 2x2 max pooling leads down, 2x2 transposed convolution up, and each
decoder level sees the encoder's feature map of its size beside the upsampled one. The recipe may ask for residual
blocks, attention gates, another activation or way up (docs/model.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet_core.errors import ModelError, RecipeError
from unet_core.samples import ClassMap, ImageConfig

Norm = Literal["none", "batch", "group", "instance"]
Activation = Literal["relu", "leaky_relu", "elu", "silu", "gelu"]
Upsampling = Literal["transposed", "resize"]
Precision = Literal["float32", "bfloat16", "float16"]

#: Mean and deviation of ImageNet's channels (RGB, units of 0 to 1), as torchvision publishes them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Recipe section `model`."""

    width: int
    """Channels of the first level; each level below has twice as many."""
    depth: int
    """How often the image is halved; the tutorial's network has 4."""
    norm: Norm
    """Normalisation after each 3x3 convolution."""
    input_statistics: Literal["train", "imagenet"]
    """Mean and deviation that the first layer removes: the training images' own, or ImageNet's."""
    activation: Activation = "relu"
    """What follows each convolution and its normalisation."""
    upsampling: Upsampling = "transposed"
    """The way up: a 2x2 transposed convolution, or repeated pixels and a 3x3 convolution."""
    residual: bool = False
    """Each level adds its input to its output."""
    attention: bool = False
    """Gates decide which pixels of the encoder's feature maps pass to the decoder."""
    dropout: float = 0.0
    """Share of the values of the two deepest levels that a training step leaves out."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 1:
            raise RecipeError(f"model: width {self.width}, depth {self.depth}: both must be at least 1.")
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"model.dropout: {self.dropout}: must be from 0 to below 1.")
        if self.norm == "group" and self.width % 8:
            raise RecipeError(f"model: group norm makes 8 groups, width {self.width} does not divide. Choose 8, 16 ...")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that is needed to build a network again and to read its output."""

    config: ModelConfig
    images: ImageConfig
    """How the files were read that it was trained on: prediction reads them alike."""
    class_map: ClassMap
    mean: tuple[float, ...]
    """Per channel, units of 0 to 1."""
    deviation: tuple[float, ...]
    precision: Precision
    """Arithmetic of the convolutions, in training and in prediction."""

    @property
    def channels(self) -> int:
        """Channels of the image."""
        return self.images.channels


class InputNormalisation(nn.Module):
    """Levels 0 to white -> (level / white - mean) / deviation, so that a model takes images as they are stored."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float], *, white: int = 255) -> None:
        super().__init__()
        self.white = white
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() / self.white - self.mean) / self.deviation


class ConvBlock(nn.Sequential):
    """Twice: 3x3 convolution, normalisation, activation."""

    def __init__(self, in_channels: int, out_channels: int, config: ModelConfig) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += _convolution(channels, out_channels, config, kernel_size=3)
            layers.append(_activation(config.activation))
        super().__init__(*layers)


class ResidualBlock(nn.Module):
    """As ConvBlock, but what comes in is added before the last activation (He et al. 2016, figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, config: ModelConfig) -> None:
        super().__init__()
        *layers, self.activation = ConvBlock(in_channels, out_channels, config)
        self.body = nn.Sequential(*layers)
        # A projection also where the channels are as many: each level brings other channels than it takes.
        self.shortcut = nn.Sequential(*_convolution(in_channels, out_channels, config, kernel_size=1))

    def forward(self, feature_map: Tensor) -> Tensor:
        out: Tensor = self.activation(self.body(feature_map) + self.shortcut(feature_map))
        return out


class AttentionGate(nn.Module):
    """A weight from 0 to 1 for each pixel of a skip connection, chosen by what comes up (Oktay et al. 2018).

    On the grid of the skip connection, where theirs is on the coarser one below: nothing is interpolated, whose
    gradient has no fixed order of sums on GPUs.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        between = max(1, channels // 2)
        self.of_skip = nn.Conv2d(channels, between, kernel_size=1, bias=False)
        self.of_gate = nn.Conv2d(channels, between, kernel_size=1)
        self.weigh = nn.Conv2d(between, 1, kernel_size=1)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        weight: Tensor = self.weigh((self.of_skip(skip) + self.of_gate(gate)).relu()).sigmoid()  # (N, 1, H, W)
        return skip * weight


def _convolution(in_channels: int, out_channels: int, config: ModelConfig, *, kernel_size: int) -> list[nn.Module]:
    # A normalisation removes what a bias would add.
    convolution = nn.Conv2d(
        in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=config.norm == "none"
    )
    return [convolution, *_norm_layers(config.norm, out_channels)]


def _activation(name: Activation) -> nn.Module:
    match name:
        case "relu":
            return nn.ReLU(inplace=True)
        case "leaky_relu":
            return nn.LeakyReLU(0.01, inplace=True)
        case "elu":
            return nn.ELU(inplace=True)
        case "silu":
            return nn.SiLU(inplace=True)
        case "gelu":
            return nn.GELU()


def _upsample(below: int, level: int, upsampling: Upsampling) -> nn.Module:
    if upsampling == "transposed":
        return nn.ConvTranspose2d(below, level, kernel_size=2, stride=2)
    # Repeated pixels: no checkerboards (Odena et al. 2016), and exact sums in the gradient.
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(below, level, 3, padding=1))


def _norm_layers(norm: Norm, channels: int) -> list[nn.Module]:
    match norm:
        case "none":
            return []
        case "batch":
            return [nn.BatchNorm2d(channels)]
        case "group":
            return [nn.GroupNorm(8, channels)]
        case "instance":
            return [nn.InstanceNorm2d(channels, affine=True)]


class UNet(nn.Module):
    """A U-Net for images of any size, also sizes that its stride does not divide.

    Shape:
        images: (N, C, H, W), levels 0 to 255, or to 65535 where images.bits is 16, of any dtype
        logits: (N, K, H, W)
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        config = spec.config
        widths = [config.width * 2**level for level in range(config.depth + 1)]
        self.channels = spec.channels
        self.stride = 2**config.depth
        # Instance norm needs more than one pixel at the deepest level.
        self.smallest = self.stride * (2 if config.norm == "instance" else 1)
        self.normalise = InputNormalisation(spec.mean, spec.deviation, white=spec.images.white)
        block = ResidualBlock if config.residual else ConvBlock
        self.encoder = nn.ModuleList(
            block(before, after, config) for before, after in zip([spec.channels, *widths], widths, strict=False)
        )
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.upsample = nn.ModuleList(_upsample(below, level, config.upsampling) for below, level in pairs)
        self.gates = nn.ModuleList(AttentionGate(level) for _, level in pairs) if config.attention else None
        self.decoder = nn.ModuleList(block(2 * level, level, config) for _, level in pairs)
        # At the end of the contracting path, as in the paper's network.
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Conv2d(config.width, spec.class_map.num_classes, kernel_size=1)
        self._initialise()

    def _initialise(self) -> None:
        """He initialisation (He et al. 2015), as in the U-Net paper."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] != self.channels:
            raise ModelError(
                f"the model takes {self.channels} channels, the image has {images.shape[1]}. "
                "Convert the image, or train a model for such images."
            )
        height, width = images.shape[-2:]
        feature_map = self._pad(self.normalise(images))
        skip_connections = []
        for level, block in enumerate(self.encoder):
            if level:
                feature_map = F.max_pool2d(feature_map, 2)
            feature_map = block(feature_map)  # (N, width * 2**level, H / 2**level, W / 2**level)
            if level >= len(self.encoder) - 2:
                feature_map = self.dropout(feature_map)
            skip_connections.append(feature_map)
        skip_connections.pop()
        for number, (upsample, block) in enumerate(zip(self.upsample, self.decoder, strict=True)):
            feature_map, skip = upsample(feature_map), skip_connections.pop()
            if self.gates is not None:
                skip = self.gates[number](skip, feature_map)
            feature_map = block(torch.cat([feature_map, skip], dim=1))
        logits: Tensor = self.head(feature_map)
        return logits[..., :height, :width]

    def _pad(self, images: Tensor) -> Tensor:
        """Repeat the last row and column until the stride divides both sides."""
        below, right = (max(-length % self.stride, self.smallest - length) for length in images.shape[-2:])
        return F.pad(images, (0, right, 0, below), mode="replicate") if below or right else images


def tutorial_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of the tutorial's network (e11 ... outconv) to those of our U-Net.

    They fit width 64, depth 4, no normalisation; load them with `strict=False`, since the tutorial's
    network has no input normalisation. Raises ModelError for weights of another network.
    """
    names = {"outconv": "head"}
    for level in range(5):
        for conv in range(2):
            names[f"e{level + 1}{conv + 1}"] = f"encoder.{level}.{2 * conv}"
    for level in range(4):
        names[f"upconv{level + 1}"] = f"upsample.{level}"
        for conv in range(2):
            names[f"d{level + 1}{conv + 1}"] = f"decoder.{level}.{2 * conv}"
    expected = {f"{old}.{part}": f"{new}.{part}" for old, new in names.items() for part in ("weight", "bias")}
    odd = sorted(set(weights) ^ set(expected))
    if odd:
        raise ModelError(
            f"not the tutorial's network: {odd[0]} is {'unknown' if odd[0] in weights else 'missing'}. "
            "Expected the layers e11 to e52, upconv1 to upconv4, d11 to d42, outconv."
        )
    return {expected[name]: tensor for name, tensor in weights.items()}
