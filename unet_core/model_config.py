"""Recipe section `model`, and what a model remembers of its training: with it a network is built again."""

from dataclasses import dataclass
from typing import Literal

from unet_core.errors import RecipeError
from unet_core.samples import ClassMap, ImageConfig

Norm = Literal["none", "batch", "group", "instance"]
Activation = Literal["relu", "leaky_relu", "elu", "silu", "gelu"]
Upsampling = Literal["transposed", "resize"]

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
    precision: Literal["float32", "bfloat16"]
    """Arithmetic of the convolutions, in training and in prediction."""

    @property
    def channels(self) -> int:
        """Channels of the image."""
        return self.images.channels
