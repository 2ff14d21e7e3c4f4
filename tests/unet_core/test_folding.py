from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from unet_core.folding import fold_batch_norm
from unet_core.model import ModelSpec, UNet


def trained(spec: ModelSpec) -> UNet:
    """A network whose batch norms have seen images, with weights and biases of their own."""
    torch.manual_seed(0)
    model = UNet(spec).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    for _ in range(3):
        model(torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8))
    return model.eval()


@pytest.mark.parametrize("config", [{}, {"residual": True}, {"attention": True, "upsampling": "resize"}])
def test_folded_network_gives_the_same_logits_without_batch_norm(
    make_spec: Callable[..., ModelSpec], config: dict[str, Any]
) -> None:
    model = trained(make_spec(**config))
    folded = fold_batch_norm(model)
    image = torch.randint(0, 256, (1, 1, 40, 24), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(folded(image), model(image), rtol=0, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) >= 10


def test_the_folded_network_is_a_copy_and_predicts(make_spec: Callable[..., ModelSpec]) -> None:
    model = trained(make_spec())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold_batch_norm(model.train())
    assert model.training
    assert not folded.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("norm", ["none", "group", "instance"])
def test_other_normalisations_stay(make_spec: Callable[..., ModelSpec], norm: str) -> None:
    model = UNet(make_spec(norm=norm)).eval()
    image = torch.randint(0, 256, (1, 1, 24, 24), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(fold_batch_norm(model)(image), model(image), rtol=0, atol=1e-4)
