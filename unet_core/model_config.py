"""Recipe section `model`, and what a model remembers of its training: with it a network is built again."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from unet_core.errors import RecipeError
from unet_core.samples import ClassMap, ImageConfig

Norm = Literal["none", "batch", "group", "instance"]
Activation = Literal["relu", "leaky_relu", "elu", "silu", "gelu"]
Upsampling = Literal["transposed", "resize"]
Precision = Literal["float32", "bfloat16", "float16"]
Encoder = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "mobilenet_v2"]

#: Mean and deviation of ImageNet's channels (RGB, units of 0 to 1), as torchvision publishes them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


#: Networks that a recipe may name, `preset: small`, and change knob by knob. A model remembers the knobs alone: what a
#: name means may change later.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tutorial": {"width": 64, "depth": 4, "norm": "none", "input_statistics": "imagenet"},
    # Dropout is in the authors' published network; the paper gives it no number.
    "paper": {
        "width": 64, "depth": 4, "norm": "none", "input_statistics": "train", "padding": "none", "dropout": 0.5,
    },
    "small": {"width": 16, "depth": 4, "norm": "group", "input_statistics": "train"},
    "base": {"width": 32, "depth": 4, "norm": "group", "input_statistics": "train"},
    "large": {"width": 64, "depth": 4, "norm": "group", "input_statistics": "train", "residual": True},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EncoderLayers:
    """What of an encoder's layers decides how far it looks; each of its five levels halves the image."""

    first_kernel: int
    """Side of the first convolution."""
    further: tuple[int, ...]
    """3x3 convolutions of each level that follow the layer (3x3, the first apart) by which it halves."""


#: Encoders of segmentation_models_pytorch that a recipe may name. A closed list: of these it is known, and tested, that
#: they halve five times, have batch norm alone, draw no random numbers of their own, and how far they look.
ENCODERS: Mapping[str, EncoderLayers] = {
    "resnet18": EncoderLayers(first_kernel=7, further=(0, 4, 3, 3, 3)),
    "resnet34": EncoderLayers(first_kernel=7, further=(0, 6, 7, 11, 5)),
    "resnet50": EncoderLayers(first_kernel=7, further=(0, 3, 3, 5, 2)),
    "resnet101": EncoderLayers(first_kernel=7, further=(0, 3, 3, 22, 2)),
    "resnext50_32x4d": EncoderLayers(first_kernel=7, further=(0, 3, 3, 5, 2)),
    "mobilenet_v2": EncoderLayers(first_kernel=3, further=(1, 1, 2, 6, 3)),
}
#: What the network around each of them is like: its decoder, on the way up, has 16 channels at last.
ENCODER_KNOBS: Mapping[str, Any] = {"width": 16, "depth": 5, "norm": "batch"}
CHOSEN_BESIDE_ENCODER = ("encoder", "encoder_weights", "input_statistics")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Recipe section `model`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

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
    stem_stride: int = 1
    """Side in pixels of the squares that the network takes as one pixel of more channels, and whose mask it gives at
    once: it looks so many times as far, for less than a like part of the time."""
    residual: bool = False
    """Each level adds its input to its output."""
    attention: bool = False
    """Gates decide which pixels of the encoder's feature maps pass to the decoder."""
    dropout: float = 0.0
    """Share of the values of the two deepest levels that a training step leaves out."""
    padding: Literal["zeros", "none"] = "zeros"
    """What 3x3 convolutions see beyond the border: zeros; or none, as in the paper: they take the border off, and the
    network mirrors the image so far that the mask has its size."""
    nested: bool = False
    """U-Net++: dense skip connections through blocks of their own."""
    deep_supervision: int = 0
    """How many decoder levels below the last are trained to give the mask, too, by heads that prediction leaves out."""
    encoder: Encoder | None = None
    """The way down of segmentation_models_pytorch's U-Net instead of our own; the keys above, but for input_statistics,
    are then given (`complete`)."""
    encoder_weights: Mapping[str, str] | None = None
    """path and sha256 of the weights (safetensors, or a state_dict as .pth) that training begins the encoder with;
    null: random ones."""

    @classmethod
    def complete(cls, section: Mapping[str, Any]) -> Mapping[str, Any]:
        """A section as it is written -> with what its encoder implies; RecipeError for keys that are not to choose."""
        if section.get("encoder") is None:
            return section
        odd = [key for key in section if key not in CHOSEN_BESIDE_ENCODER]
        if odd:
            raise RecipeError(
                f"model.encoder: {section['encoder']}: the network around an encoder is given, {', '.join(odd)} can't "
                "be chosen. Remove them, or the preset that stands for them."
            )
        return {**ENCODER_KNOBS, **section}

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 1:
            raise RecipeError(f"model: width {self.width}, depth {self.depth}: both must be at least 1.")
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"model.dropout: {self.dropout}: must be from 0 to below 1.")
        if self.norm == "group" and self.width % 8:
            raise RecipeError(f"model: group norm makes 8 groups, width {self.width} does not divide. Choose 8, 16 ...")
        self._check_stem()
        self._check_nested()
        self._check_deep_supervision()
        self._check_encoder()

    def _check_encoder(self) -> None:
        told = self.encoder_weights
        if told is not None and self.encoder is None:
            raise RecipeError("model.encoder_weights: there is no encoder to give them to. Set model.encoder.")
        if told is not None and set(told) != {"path", "sha256"}:
            raise RecipeError(
                f"model.encoder_weights: {', '.join(told) or 'nothing'} given. Give path and sha256, which "
                "`sha256sum FILE` prints."
            )
        if self.encoder is None:
            return
        if self.encoder not in ENCODERS:
            raise RecipeError(f"model.encoder: {self.encoder}: unknown. Choose from {', '.join(ENCODERS)}.")
        given = {field.name: field.default for field in fields(self)} | dict(ENCODER_KNOBS)
        for name, value in given.items():
            if name not in CHOSEN_BESIDE_ENCODER and getattr(self, name) != value:
                raise RecipeError(
                    f"model.{name}: {getattr(self, name)}: the network around encoder {self.encoder} has {value}. "
                    "Remove the key."
                )

    def _check_stem(self) -> None:
        if self.stem_stride not in (1, 2, 4):
            raise RecipeError(f"model.stem_stride: {self.stem_stride}: must be 1, 2 or 4.")
        if self.stem_stride > 1 and self.padding == "none":
            raise RecipeError(
                "model.stem_stride: the paper's form takes single pixels. Set model.padding: zeros, or "
                "model.stem_stride: 1."
            )

    def _check_nested(self) -> None:
        if self.nested and self.attention:
            raise RecipeError("model.nested: U-Net++ has no attention gates. Set model.attention: false.")
        if self.nested and self.padding == "none":
            raise RecipeError("model.nested: U-Net++ joins maps of one size. Set model.padding: zeros.")

    def _check_deep_supervision(self) -> None:
        if not 0 <= self.deep_supervision < self.depth:
            raise RecipeError(
                f"model.deep_supervision: {self.deep_supervision}: must be from 0 to {self.depth - 1}: a decoder of "
                f"depth {self.depth} has no more levels below its last."
            )
        if self.deep_supervision and self.padding == "none":
            raise RecipeError(
                "model.deep_supervision: without padding, coarse levels do not lie on the mask's grid. "
                "Set model.padding: zeros, or model.deep_supervision: 0."
            )

    @property
    def stride(self) -> int:
        """Side, in pixels of the image, of what a pixel of the deepest level stands for."""
        return self.stem_stride * 2**self.depth

    @property
    def head_strides(self) -> tuple[int, ...]:
        """Sides, in pixels of the image, of what a pixel of each head's logits stands for; the prediction's first."""
        coarse = (1 if self.nested else self.stem_stride * 2**level for level in range(1, self.deep_supervision + 1))
        return (1, *coarse)

    @property
    def cropped_px(self) -> tuple[int, ...]:
        """How many pixels of the encoder's map of each level, on each side, its skip connection leaves out.

        Without padding, a 3x3 convolution takes one off.
        """
        if self.padding == "zeros":
            return (0,) * self.depth
        below, cropped = 2, []
        for _ in range(self.depth):
            cropped.append(2 * below + (self.upsampling == "resize"))
            below = 2 + cropped[-1] + 2
        return tuple(reversed(cropped))

    @property
    def margin_px(self) -> int:
        """How much smaller than its input, on each side, the network's output is; the image is mirrored so far."""
        return 0 if self.padding == "zeros" else 2 + self.cropped_px[0] + 2


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
