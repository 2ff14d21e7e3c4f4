"""Networks whose way down is a known one, mostly with weights of ImageNet: the door to segmentation_models_pytorch.

An extra (`pip install 'unet-pipeline[encoders]'`). Nothing is ever downloaded: weights come from a file that the recipe
names (initial_weights.py), the library gives the layers alone.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, library

from unet_core.errors import ModelError
from unet_core.model import ModelSpec, Network, UNet, repeat_border

#: The library's name, and what its import needs.
NEEDED = ("segmentation_models_pytorch", "torchvision", "timm", "huggingface_hub")
#: A library of operators is forgotten with its object.
_KEPT: list[library.Library] = []


def build_network(spec: ModelSpec) -> Network:
    """The network that a recipe or a model describes, with random weights."""
    return UNet(spec) if spec.config.encoder is None else EncoderUNet(spec)


class EncoderUNet(Network):
    """U-Net of segmentation_models_pytorch around one of its encoders, for images of any size.

    The encoder takes three channels, as its weights do; a gray image is given to it three times.

    Shape:
        images: (N, C, H, W), C 1 or 3, levels as UNet takes them
        logits: (N, K, H, W)
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        if spec.channels not in (1, 3):
            raise ModelError(
                f"model.encoder: {spec.config.encoder}: encoders take gray or RGB images, images.channels is "
                f"{spec.channels}. Set model.encoder: null for such images."
            )
        made = _library().Unet(spec.config.encoder, encoder_weights=None, classes=spec.class_map.num_classes)
        # Its parts, without what the library adds for its hub.
        self.encoder, self.decoder, self.head = made.encoder, made.decoder, made.segmentation_head[0]

    def forward(self, images: Tensor) -> Tensor:
        self.check_channels(images)
        height, width = images.shape[-2:]
        normalised = self.normalise(images).expand(-1, 3, -1, -1)
        feature_maps = self.encoder(repeat_border(normalised, -height % self.stride, -width % self.stride))
        logits: Tensor = self.head(self.decoder(feature_maps))
        return logits[..., :height, :width]


def _library() -> ModuleType:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"model.encoder: {missing[0]} is not installed. Run `pip install 'unet-pipeline[encoders]'`, on every host."
        )
    # A network may be laid out on no device; what the library makes while it is imported must be real all the same.
    with torch.device("cpu"):
        let_torchvision_in()
        import segmentation_models_pytorch

    return segmentation_models_pytorch


def let_torchvision_in() -> None:
    """Let torchvision be imported beside another build of torch than its own: none of its operators is used here.

    PyPI has it for CUDA only. Beside a CPU build of torch its operators don't load, and then its import fails where it
    describes two of them.
    """
    found = importlib.util.find_spec("torchvision")
    assert found is not None
    assert found.origin is not None
    try:
        compiled = next(Path(found.origin).parent.glob("_C*.so"))
        torch.ops.load_library(str(compiled))  # type: ignore[no-untyped-call]
    except (OSError, StopIteration):
        if not _KEPT:
            operators = library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
            for name in ("nms", "qnms"):
                operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
            _KEPT.append(operators)
