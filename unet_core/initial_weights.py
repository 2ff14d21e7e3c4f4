"""Training that goes on from weights of a file, the tutorial's or an earlier model's, instead of random ones.

The recipe names the file and its content, so that what training gives is still a function of recipe, data and code.
"""

from pathlib import Path

from torch import Tensor

from unet_core.checkpoint import read_tensors
from unet_core.errors import ModelError
from unet_core.hashing import hash_file
from unet_core.model import UNet

#: What the network keeps of its own: the statistics of its images, and heads that the file may not have.
OWN = ("normalise.", "coarse_heads.")


def read_initial_weights(model: UNet, path: Path, sha256: str) -> dict[str, Tensor]:
    """Weights that a training of this network begins with: those of a file, which must be the one that was meant.

    The network keeps its own statistics of images, and its own heads for deep supervision where the file has none.
    Raises ModelError where the file is another, or of another network.
    """
    if not path.is_file():
        raise ModelError(f"no initial weights: {path}. Bring the file there, or set train.initial_weights: null.")
    found = hash_file(path)
    if found != sha256:
        raise ModelError(
            f"initial weights are not those of the recipe: {path}: sha256 {found}, the recipe says {sha256}. "
            "Bring the right file there, or correct the recipe."
        )
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
