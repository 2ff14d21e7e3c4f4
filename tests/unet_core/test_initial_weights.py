from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unet_core.backward import batch_loss
from unet_core.errors import ModelError, RecipeError
from unet_core.hashing import hash_file
from unet_core.initial_weights import tutorial_state
from unet_core.loader import Batch
from unet_core.model import ModelConfig, ModelSpec, UNet
from unet_core.model_config import IMAGENET_DEVIATION, IMAGENET_MEAN, PRESETS
from unet_core.reduction import LaneTree
from unet_core.samples import ClassMap, ImageConfig
from unet_core.train_config import TrainConfig
from unet_core.trainer import Trainer, make_network


def initial(path: Path, state: dict[str, torch.Tensor]) -> dict[str, str]:
    """What the recipe says of a file with these weights."""
    save_file(state, path)
    return {"path": str(path), "sha256": hash_file(path)}


def test_training_goes_on_from_the_weights_that_the_recipe_names(
    tmp_path: Path, make_spec: Callable[..., ModelSpec], make_config: Callable[..., TrainConfig]
) -> None:
    torch.manual_seed(7)
    earlier = UNet(make_spec())
    told = initial(tmp_path / "earlier.safetensors", dict(earlier.state_dict()))
    # Heads that the earlier network did not have are new.
    spec = replace(make_spec(deep_supervision=1), mean=(0.4,))
    model = Trainer(spec, make_config(initial_weights=told), LaneTree(lanes=4)).model
    state = earlier.state_dict()
    new = [
        name for name, tensor in model.state_dict().items() if name not in state or not torch.equal(tensor, state[name])
    ]
    assert new == ["normalise.mean", "coarse_heads.0.weight", "coarse_heads.0.bias"]
    assert float(model.normalise.mean) == pytest.approx(0.4)


@pytest.mark.slow
def test_the_tutorials_network_trains_on(tmp_path: Path, make_config: Callable[..., TrainConfig]) -> None:
    # The layers of the tutorial as they are called there, at random.
    spec = ModelSpec(
        config=ModelConfig(**PRESETS["tutorial"]),
        images=ImageConfig(channels=3),
        class_map=ClassMap(kind="multilabel", classes={"square": 255, "circle": 255}),
        mean=IMAGENET_MEAN,
        deviation=IMAGENET_DEVIATION,
        precision="float32",
    )
    torch.manual_seed(5)
    theirs = {
        _tutorial_name(name): tensor
        for name, tensor in UNet(spec).state_dict().items()
        if not name.startswith("normalise")
    }
    told = initial(tmp_path / "tutorial.safetensors", tutorial_state(theirs))
    trainer = Trainer(spec, make_config(lanes=1, initial_weights=told, learning_rate=1e-4), LaneTree(lanes=1))
    assert torch.equal(trainer.model.head.weight, theirs["outconv.weight"])
    compute = batch_loss(spec, trainer.loss, torch.device("cpu"))
    masks = torch.zeros(1, 2, 16, 16, dtype=torch.uint8)
    masks[..., 4:12, 4:12] = 1
    batch = Batch(keys=("a",), images=(masks[:, :1] * 255).expand(1, 3, 16, 16), masks=masks, border=None)
    found = []
    for _ in range(3):
        loss = compute(trainer.model, batch)
        trainer.optimizer.zero_grad()
        loss.backward()
        trainer.optimizer.step()
        found.append(float(loss.detach()))
    assert found[2] < found[1] < found[0]


def _tutorial_name(name: str) -> str:
    """encoder.0.2.weight -> e12.weight, decoder.1.0.bias -> d21.bias, and so on."""
    module, *numbers, part = name.split(".")
    if module == "head":
        return f"outconv.{part}"
    level = int(numbers[0]) + 1
    if module == "upsample":
        return f"upconv{level}.{part}"
    return f"{module[0]}{level}{1 + int(numbers[1]) // 2}.{part}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state | {"e11.weight": torch.zeros(2)},
            "initial weights are of another network: {path}: e11.weight: there [2], in the network missing. "
            "Change model in the recipe to the network that they belong to.",
        ),
        (
            lambda state: state | {"head.bias": torch.zeros(3)},
            "initial weights are of another network: {path}: head.bias: there [3], in the network [6]. "
            "Change model in the recipe to the network that they belong to.",
        ),
    ],
    ids=["unknown", "shape"],
)
def test_initial_weights_of_another_network_are_refused(
    tmp_path: Path, make_spec: Callable[..., ModelSpec], make_config: Callable[..., TrainConfig],
    change: Callable[..., Any], message: str,
) -> None:  # fmt: skip
    path = tmp_path / "weights.safetensors"
    told = initial(path, change(dict(UNet(make_spec()).state_dict())))
    with pytest.raises(ModelError) as caught:
        make_network(make_spec(), make_config(initial_weights=told), torch.device("cpu"))
    assert str(caught.value) == message.format(path=path)


def test_initial_weights_that_are_not_the_recipes_are_refused(
    tmp_path: Path, make_spec: Callable[..., ModelSpec], make_config: Callable[..., TrainConfig]
) -> None:
    path = tmp_path / "weights.safetensors"
    told = initial(path, dict(UNet(make_spec()).state_dict()))
    config = make_config(initial_weights={**told, "sha256": "0" * 64})
    with pytest.raises(ModelError) as caught:
        make_network(make_spec(), config, torch.device("cpu"))
    assert str(caught.value) == (
        f"initial weights are not those of the recipe: {path}: sha256 {told['sha256']}, the recipe says {'0' * 64}. "
        "Bring the right file there, or correct the recipe."
    )
    path.unlink()
    with pytest.raises(
        ModelError, match="^no initial weights: .*. Bring the file there, or set train.initial_weights: null.$"
    ):
        make_network(make_spec(), config, torch.device("cpu"))
    with pytest.raises(RecipeError) as refused:
        make_config(initial_weights={"path": "a"})
    assert str(refused.value) == (
        "train.initial_weights: path given. Give path and sha256, which `sha256sum FILE` prints."
    )
