"""Training that goes on from weights of a file, the tutorial's, an earlier model's or ImageNet's, not from random ones.

The recipe names the file and its content, so that what training gives is still a function of recipe, data and code.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from unet_core.checkpoint import read_tensors
from unet_core.errors import ModelError
from unet_core.hashing import hash_file
from unet_core.model import Network

#: What the network keeps of its own: the statistics of its images, and heads that the file may not have.
OWN = ("normalise.", "coarse_heads.")
#: Layers of an image classifier behind its encoder.
CLASSIFIERS = ("fc.", "classifier.")


def read_initial_weights(model: Network, path: Path, sha256: str) -> dict[str, Tensor]:
    """Weights that a training of this network begins with: those of a file, which must be the one that was meant.

    The network keeps its own statistics of images, and its own heads for deep supervision where the file has none.
    Raises ModelError where the file is another, or of another network.
    """
    _check_file("initial weights", path, sha256, key="train.initial_weights")
    own = model.state_dict()
    weights = {name: tensor for name, tensor in read_tensors(path).items() if not name.startswith("normalise.")}
    odd = sorted(name for name in weights.keys() ^ own.keys() if name in weights or not name.startswith(OWN))
    odd += [name for name in weights if name in own and weights[name].shape != own[name].shape]
    if odd:
        there, here = (list(state[odd[0]].shape) if odd[0] in state else "missing" for state in (weights, own))
        raise ModelError(
            f"initial weights are of another network: {path}: {odd[0]}: there {there}, in the network {here}. "
            "Change model in the recipe to the network that they belong to."
        )
    return {**own, **weights}


def read_encoder_weights(encoder: nn.Module, path: Path, sha256: str) -> dict[str, Tensor]:
    """Weights of an encoder, from a file of it or of its whole classifier; raises as `read_initial_weights` does."""
    _check_file("encoder weights", path, sha256, key="model.encoder_weights")
    own = encoder.state_dict()
    read = read_tensors(path) if path.suffix == ".safetensors" else _read_state_dict(path)
    weights = {name: tensor for name, tensor in read.items() if not name.startswith(CLASSIFIERS)}
    # How many batches a norm has seen: older files have no such count, and training has none.
    odd = sorted(name for name in weights.keys() ^ own.keys() if not name.endswith(".num_batches_tracked"))
    odd += [name for name in weights if name in own and weights[name].shape != own[name].shape]
    if odd:
        there, here = (list(state[odd[0]].shape) if odd[0] in state else "missing" for state in (weights, own))
        raise ModelError(
            f"encoder weights are of another network: {path}: {odd[0]}: there {there}, in the encoder {here}. "
            "Change model.encoder to the network that they belong to."
        )
    return {name: weights.get(name, tensor) for name, tensor in own.items()}


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


def _check_file(what: str, path: Path, sha256: str, *, key: str) -> None:
    if not path.is_file():
        raise ModelError(f"no {what}: {path}. Bring the file there, or set {key}: null.")
    found = hash_file(path)
    if found != sha256:
        raise ModelError(
            f"{what} are not those of the recipe: {path}: sha256 {found}, the recipe says {sha256}. "
            "Bring the right file there, or correct the recipe."
        )


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """As torch.save wrote it, of tensors alone: nothing else in the file is built or run."""
    try:
        read = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ModelError(
            f"encoder weights can't be read: {path}: {str(error).splitlines()[0]} Give a state_dict saved by torch, or "
            "a .safetensors file."
        ) from error
    if not isinstance(read, dict) or not all(isinstance(tensor, Tensor) for tensor in read.values()):
        raise ModelError(
            f"encoder weights can't be read: {path}: there are not tensors alone. Save the network's state_dict."
        )
    return dict(read)
