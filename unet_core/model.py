"""The U-Net (Ronneberger, Fischer, Brox 2015), whose mask has the image's size.

Every level is two 3x3 convolutions; 2x2 max pooling leads down, 2x2 transposed convolution up, and each
decoder level sees the encoder's feature map of its size beside the upsampled one. The recipe may ask for residual
blocks, attention gates, another activation or way up, the paper's form without padding, the dense skip connections
of U-Net++, and heads at several levels (docs/model.md).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet_core.errors import ModelError
from unet_core.model_config import Activation, ModelConfig, ModelSpec, Norm

# Who builds a network needs its description, too.
__all__ = ["AttentionGate", "InputNormalisation", "ModelConfig", "ModelSpec", "Network", "UNet"]


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


class GroupNorm(nn.GroupNorm):
    """In float32 whatever comes in: on CPUs, PyTorch's backward pass takes three times as long in bfloat16."""

    def forward(self, feature_map: Tensor) -> Tensor:
        normed = F.group_norm(feature_map.float(), self.num_groups, self.weight, self.bias, self.eps)
        return normed.to(feature_map.dtype)


class TransposedConvolution(nn.ConvTranspose2d):
    """The bias apart: oneDNN sums its gradient in a plain loop, half of the layer's time in bfloat16 on CPUs."""

    def forward(self, feature_map: Tensor) -> Tensor:  # type: ignore[override] # no size to ask for: it is always twice
        assert self.bias is not None
        out = F.conv_transpose2d(feature_map, self.weight, stride=2)
        return out + self.bias.view(1, -1, 1, 1).to(out.dtype)


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
        body = self.body(feature_map)
        out: Tensor = self.activation(body + self.shortcut(_centre(feature_map, body)))
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
    padding = kernel_size // 2 if config.padding == "zeros" else 0
    # A normalisation removes what a bias would add.
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=config.norm == "none")
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


def _upsample(below: int, level: int, config: ModelConfig) -> nn.Module:
    if config.upsampling == "transposed":
        return TransposedConvolution(below, level, kernel_size=2, stride=2)
    # Repeated pixels: no checkerboards (Odena et al. 2016), and exact sums in the gradient.
    repeat = nn.Upsample(scale_factor=2, mode="nearest")
    return nn.Sequential(repeat, nn.Conv2d(below, level, 3, padding=1 if config.padding == "zeros" else 0))


def _norm_layers(norm: Norm, channels: int) -> list[nn.Module]:
    match norm:
        case "none":
            return []
        case "batch":
            return [nn.BatchNorm2d(channels)]
        case "group":
            return [GroupNorm(8, channels)]
        case "instance":
            # Groups of one channel are the same, and quicker than InstanceNorm2d, which reorders memory.
            return [GroupNorm(channels, channels)]


def _block(in_channels: int, out_channels: int, config: ModelConfig) -> nn.Module:
    block = ResidualBlock if config.residual else ConvBlock
    return block(in_channels, out_channels, config)


class MaskHead(nn.Conv2d):
    """Logits from a feature map, each pixel of which stands for a square of them (Shi et al. 2016)."""

    def __init__(self, channels: int, num_classes: int, *, square_px: int) -> None:
        super().__init__(channels, num_classes * square_px**2, kernel_size=1)
        self.square_px = square_px

    def forward(self, feature_map: Tensor) -> Tensor:
        logits = super().forward(feature_map)
        return F.pixel_shuffle(logits, self.square_px) if self.square_px > 1 else logits


class NestedDecoder(nn.Module):
    """The grid of U-Net++ (Zhou et al. 2018): the block at (level, step) sees all earlier ones of its level, and the
    one before it of the level below, upsampled. Step 0 is the encoder.
    """

    def __init__(self, widths: Sequence[int], config: ModelConfig) -> None:
        super().__init__()
        self.upsample, self.block = nn.ModuleDict(), nn.ModuleDict()
        for step in range(1, len(widths)):
            for level, (width, below) in enumerate(pairwise(widths[: len(widths) - step + 1])):
                self.upsample[f"{level}_{step}"] = _upsample(below, width, config)
                self.block[f"{level}_{step}"] = _block((step + 1) * width, width, config)

    def forward(self, encoded: Sequence[Tensor]) -> list[Tensor]:
        """The encoder's maps, the finest first -> the maps of the finest level, step by step."""
        grid = [[feature_map] for feature_map in encoded]
        for step in range(1, len(grid)):
            for level, row in enumerate(grid[:-step]):
                upsampled = self.upsample[f"{level}_{step}"](grid[level + 1][step - 1])
                row.append(self.block[f"{level}_{step}"](torch.cat([upsampled, *row], dim=1)))
        return grid[0][1:]


class Network(nn.Module):
    """What all networks have in common: they take images as they are stored, and know what sizes suit them."""

    encoder: nn.Module
    """The way down."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.config = spec.config
        self.channels = spec.channels
        self.stride = spec.config.stride
        # Instance norm needs more than one pixel at the deepest level.
        self.smallest = self.stride * (2 if spec.config.norm == "instance" else 1)
        self.normalise = InputNormalisation(spec.mean, spec.deviation, white=spec.images.white)

    def check_channels(self, images: Tensor) -> None:
        """ModelError for images of another number of channels."""
        if images.shape[1] != self.channels:
            raise ModelError(
                f"the model takes {self.channels} channels, the image has {images.shape[1]}. "
                "Convert the image, or train a model for such images."
            )


class UNet(Network):
    """A U-Net for images of any size, also sizes that its stride does not divide.

    Shape:
        images: (N, C, H, W), levels 0 to 255, or to 65535 where images.bits is 16, of any dtype
        logits: (N, K, H, W); in training with deep supervision a tuple of it and of the coarser levels' logits,
            (N, K, ceil(H / s), ceil(W / s)) for each s of `config.head_strides`
    """

    encoder: nn.ModuleList

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        config = spec.config
        widths = [config.width * 2**level for level in range(config.depth + 1)]
        first = spec.channels * config.stem_stride**2
        self.encoder = nn.ModuleList(
            _block(before, after, config) for before, after in zip([first, *widths], widths, strict=False)
        )
        # At the end of the contracting path, as in the paper's network.
        self.dropout = nn.Dropout(config.dropout)
        if config.nested:
            self.nested = NestedDecoder(widths, config)
        else:
            pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
            self.upsample = nn.ModuleList(_upsample(below, level, config) for below, level in pairs)
            self.gates = nn.ModuleList(AttentionGate(level) for _, level in pairs) if config.attention else None
            self.decoder = nn.ModuleList(_block(2 * level, level, config) for _, level in pairs)
        num_classes = spec.class_map.num_classes
        self.head = MaskHead(config.width, num_classes, square_px=config.stem_stride)
        self.coarse_heads = nn.ModuleList(
            MaskHead(config.width, num_classes, square_px=config.stem_stride)
            if config.nested
            else MaskHead(config.width * 2**level, num_classes, square_px=1)
            for level in range(1, config.deep_supervision + 1)
        )
        self._initialise()

    def _initialise(self) -> None:
        """He initialisation (He et al. 2015), as in the U-Net paper."""
        if self.head.weight.is_meta:
            # Nothing is there to be filled, and torch would take two seconds to find its way.
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        self.check_channels(images)
        encoded = self._encode(_squares_as_pixels(self._frame(self.normalise(images)), self.config.stem_stride))
        *coarse, finest = self.nested(encoded) if self.config.nested else self._decode(encoded)
        height, width = images.shape[-2:]
        logits: Tensor = self.head(finest)[..., :height, :width]
        if not (self.training and self.coarse_heads):
            return logits
        others = [
            head(feature_map)[..., : -(-height // stride), : -(-width // stride)]
            for head, feature_map, stride in zip(
                self.coarse_heads, reversed(coarse), self.config.head_strides[1:], strict=False
            )
        ]
        return (logits, *others)

    def _encode(self, feature_map: Tensor) -> list[Tensor]:
        encoded: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            if level:
                feature_map = F.max_pool2d(feature_map, 2)
            feature_map = block(feature_map)  # (N, width * 2**level, H / 2**level, W / 2**level)
            if level >= len(self.encoder) - 2:
                feature_map = self.dropout(feature_map)
            encoded.append(feature_map)
        return encoded

    def _decode(self, encoded: list[Tensor]) -> list[Tensor]:
        """The encoder's maps, the finest first -> the decoder's, the finest last; in prediction that one alone.

        Maps are taken out of the list, and let go, as they are used: a large image's fill most of the memory.
        """
        feature_map = encoded.pop()
        decoded: list[Tensor] = []
        for number, (upsample, block) in enumerate(zip(self.upsample, self.decoder, strict=True)):
            if not self.training:
                decoded.clear()
            feature_map = upsample(feature_map)
            skip = _centre(encoded.pop(), feature_map)
            if self.gates is not None:
                skip = self.gates[number](skip, feature_map)
            feature_map = block(torch.cat([feature_map, skip], dim=1))
            decoded.append(feature_map)
        return decoded

    def _frame(self, images: Tensor) -> Tensor:
        """Add at right and below what the stride asks for: the last row and column repeated.

        Without padding, mirror the image so far around it that the output covers it (the paper's figure 2).
        """
        config = self.config
        # What the way up takes off: at each level two convolutions, and one more after repeated pixels.
        of_level = 0 if config.padding == "zeros" else 6 if config.upsampling == "resize" else 4
        taken = of_level * (self.stride - 1)
        smallest = self.smallest - taken
        below, right = (max(-(length + taken) % self.stride, smallest - length) for length in images.shape[-2:])
        if config.padding == "none":
            return _mirror(images, config.margin_px, (below, right))
        return repeat_border(images, below, right)


def _squares_as_pixels(images: Tensor, side: int) -> Tensor:
    """(N, C, H, W) -> (N, C * side * side, H / side, W / side); nothing is lost, as it is where images are shrunk."""
    return F.pixel_unshuffle(images, side) if side > 1 else images


def repeat_border(images: Tensor, below: int, right: int) -> Tensor:
    """Images with so many rows and columns more, the last one repeated."""
    return F.pad(images, (0, right, 0, below), mode="replicate") if below or right else images


def _mirror(images: Tensor, margin_px: int, more: tuple[int, int]) -> Tensor:
    """Mirror images at their outermost pixels, as often as needed, by a margin and by `more` below and at right."""
    for axis, length, further in zip((2, 3), images.shape[2:], more, strict=True):
        places = torch.arange(-margin_px, length + margin_px + further, device=images.device)
        period = max(1, 2 * (length - 1))
        images = images.index_select(axis, torch.minimum(places % period, -places % period))
    return images


def _centre(feature_map: Tensor, like: Tensor) -> Tensor:
    """The middle of a feature map, as large as another."""
    (height, width), (rows, columns) = like.shape[2:], feature_map.shape[2:]
    top, left = (rows - height) // 2, (columns - width) // 2
    return feature_map[..., top : top + height, left : left + width]
