"""Networks around encoders of segmentation_models_pytorch. Those that need the library are skipped without it."""

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unet_core.backward import LaneByLane
from unet_core.checkpoint import read_model, read_spec, write_model
from unet_core.encoders import EncoderUNet, build_network
from unet_core.errors import ModelError, RecipeError
from unet_core.folding import fold_batch_norm
from unet_core.hashing import hash_file
from unet_core.inference import predict_logits
from unet_core.loader import Batch
from unet_core.model import ModelConfig, ModelSpec
from unet_core.model_config import ENCODER_KNOBS, ENCODERS, IMAGENET_DEVIATION, IMAGENET_MEAN, PRESETS
from unet_core.reduction import LaneTree
from unet_core.tiling import receptive_radius, span_seen
from unet_core.train_config import TrainConfig
from unet_core.trainer import Trainer, make_network

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("segmentation_models_pytorch") is None,
    reason="segmentation_models_pytorch is not installed: pip install 'unet-pipeline[encoders]'",
)
#: The smallest one.
MOBILE = {**ENCODER_KNOBS, "encoder": "mobilenet_v2"}


@pytest.fixture
def spec(make_spec: Callable[..., ModelSpec]) -> ModelSpec:
    """Gray images into an encoder that knows colours."""
    made = make_spec(**{**MOBILE, "input_statistics": "imagenet"})
    return replace(made, mean=IMAGENET_MEAN, deviation=IMAGENET_DEVIATION)


def batch(size: int = 2, side: int = 40) -> Batch:
    draw = torch.Generator().manual_seed(size)
    return Batch(
        keys=tuple(map(str, range(size))),
        images=torch.randint(0, 256, (size, 1, side, side), generator=draw, dtype=torch.uint8),
        masks=torch.randint(0, 2, (size, 6, side, side), generator=draw, dtype=torch.uint8),
        border=None,
    )


# The recipe


def test_a_section_with_an_encoder_says_what_is_left_to_choose() -> None:
    section = {"encoder": "resnet34", "input_statistics": "imagenet"}
    config = ModelConfig(**ModelConfig.complete(section))
    assert (config.width, config.depth, config.norm) == (16, 5, "batch")
    # What a model remembers builds the same network again.
    assert ModelConfig(**asdict(config)) == config
    assert ModelConfig.complete({"encoder": None, "width": 8}) == {"encoder": None, "width": 8}


@pytest.mark.parametrize("preset", PRESETS)
def test_what_does_not_apply_to_an_encoder_is_refused_also_from_a_preset(preset: str) -> None:
    section = {**PRESETS[preset], "encoder": "resnet18", "dropout": 0.1}
    with pytest.raises(
        RecipeError,
        match=r"^model.encoder: resnet18: the network around an encoder is given, width, depth, norm, .*dropout can't be "
        r"chosen. Remove them, or the preset that stands for them.$",
    ):
        ModelConfig.complete(section)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"deep_supervision": 1},
            "model.deep_supervision: 1: the network around encoder mobilenet_v2 has 0. Remove the key.",
        ),
        ({"norm": "group"}, "model.norm: group: the network around encoder mobilenet_v2 has batch. Remove the key."),
        (
            {"encoder": "tu-resnet18"},
            "model.encoder: tu-resnet18: unknown. Choose from resnet18, resnet34, resnet50, resnet101, "
            "resnext50_32x4d, mobilenet_v2.",
        ),
        (
            {"encoder_weights": {"path": "a"}},
            "model.encoder_weights: path given. Give path and sha256, which `sha256sum FILE` prints.",
        ),
        (
            {"encoder": None, "encoder_weights": {"path": "a", "sha256": "b"}},
            "model.encoder_weights: there is no encoder to give them to. Set model.encoder.",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_that_is_no_such_network_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        ModelConfig(**{"input_statistics": "train", **MOBILE, **change})
    assert str(caught.value) == message


def test_a_library_that_is_not_installed_is_named(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unet_core.encoders.NEEDED", ("no_such_package",))
    with pytest.raises(ModelError) as caught:
        build_network(spec)
    assert str(caught.value) == (
        "model.encoder: no_such_package is not installed. Run `pip install 'unet-pipeline[encoders]'`, on every host."
    )


# The network


@needs_library
@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_is_said_of_an_encoder_is_true(make_spec: Callable[..., ModelSpec], encoder: str) -> None:
    spec = make_spec(**{**ENCODER_KNOBS, "encoder": encoder})
    with torch.device("meta"):
        model = build_network(spec)
        assert isinstance(model, EncoderUNet)
        shapes = [tuple(found.shape[2:]) for found in model.encoder(torch.zeros(1, 3, 64, 96))]
    assert shapes == [(64 // 2**level, 96 // 2**level) for level in range(ENCODER_KNOBS["depth"] + 1)]
    assert model.head.in_channels == ENCODER_KNOBS["width"]
    kinds = {type(module).__name__ for module in model.modules()}
    # Nothing that draws random numbers, and no normalisation but one.
    assert {kind for kind in kinds if "Norm" in kind} - {"Conv2dNormActivation", "InputNormalisation"} == {
        "BatchNorm2d"
    }
    assert not {kind for kind in kinds if "Drop" in kind or "Stochastic" in kind}


@needs_library
def test_a_gray_image_is_seen_as_one_with_three_equal_colours(spec: ModelSpec) -> None:
    torch.manual_seed(0)
    gray = build_network(spec).eval()
    colour = build_network(replace(spec, images=replace(spec.images, channels=3))).eval()
    colour.load_state_dict(gray.state_dict())
    images = batch(side=45).images
    with torch.inference_mode():
        logits = gray(images)
        assert logits.shape == (2, 6, 45, 45)
        assert torch.equal(logits, colour(images.expand(-1, 3, -1, -1)))
        # Of any size, also below the stride.
        assert gray(images[..., :1, :7]).shape == (2, 6, 1, 7)
        torch.testing.assert_close(fold_batch_norm(gray)(images), logits, rtol=1e-3, atol=1e-4)
    with pytest.raises(ModelError, match=r"^the model takes 1 channels, the image has 3\. "):
        gray(images.expand(-1, 3, -1, -1))
    with pytest.raises(ModelError) as caught:
        build_network(replace(spec, images=replace(spec.images, channels=4)))
    assert str(caught.value) == (
        "model.encoder: mobilenet_v2: encoders take gray or RGB images, images.channels is 4. "
        "Set model.encoder: null for such images."
    )


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_network_looks_as_far_as_a_gradient_reaches(make_spec: Callable[..., ModelSpec], encoder: str) -> None:
    spec = make_spec(**{**ENCODER_KNOBS, "encoder": encoder})
    model = build_network(spec).double().eval()
    _let_everything_through(model)
    side = 2 * (receptive_radius(spec.config) // 32 + 2) * 32
    for place in (side // 2, side // 2 + 13, side // 2 + 31):
        image = torch.full((1, 1, side, 32), 255.0, dtype=torch.float64, requires_grad=True)
        model(image)[0, 0, place, 0].backward()
        assert image.grad is not None
        (touched,) = np.nonzero(image.grad[0, 0].abs().sum(dim=1).numpy())
        assert span_seen(spec.config, place) == (touched.min(), touched.max())


def _let_everything_through(model: nn.Module) -> None:
    """Positive weights and no activations: nothing cancels, no unit sleeps; averages pass on to all that they see."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(module, name, nn.Identity())
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
    for parameter in model.parameters():
        parameter.data.fill_(1.0 if parameter.dim() == 1 else 1 / parameter[0].numel())


@needs_library
@pytest.mark.slow
def test_exact_tiles_give_the_whole_images_logits(spec: ModelSpec) -> None:
    torch.manual_seed(1)
    model = build_network(spec).eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    image = np.random.default_rng(0).integers(0, 256, (1500, 40, 1), dtype=np.uint8)
    whole = predict_logits(model, spec, image, tile_px=2000)
    exact = predict_logits(model, spec, image, exact=True, tile_px=768)
    torch.testing.assert_close(exact, whole, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(predict_logits(model, spec, image, tile_px=768), whole, rtol=1e-3, atol=1e-3)


# Training


@needs_library
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_it_learns(
    spec: ModelSpec, make_config: Callable[..., TrainConfig], precision: Any, channels_last: bool
) -> None:
    spec = replace(spec, precision=precision)
    config = make_config(lanes=2, precision=precision, channels_last=channels_last, ema_decay=0.9)
    trainer = Trainer(spec, config, LaneTree(lanes=2))
    assert isinstance(trainer._backward, LaneByLane)
    lanes = [batch(3), batch(2)]
    found = [trainer.step(lanes, steps_per_epoch=4).loss for _ in range(4)]
    assert found[-1] < found[0]
    state = trainer.model.state_dict()
    assert not torch.equal(state["encoder.features.0.1.running_mean"], torch.zeros(32))
    assert trainer.average is not None
    assert not torch.equal(trainer.average.model.state_dict()["head.weight"], state["head.weight"])


@needs_library
@pytest.mark.slow
def test_two_workers_train_the_bits_of_one(
    train_groups: Callable[..., Callable[[int], list[Any]]], make_config: Callable[..., TrainConfig]
) -> None:
    config = make_config(epochs=1, lanes=2, samples_per_lane=3)
    trained_by = train_groups([1, 2], {"encoder": {"model": MOBILE, "train": asdict(config)}})
    (alone,) = trained_by(1)
    assert len(alone["encoder"]["losses"]) == 2
    assert [found["encoder"] for found in trained_by(2)] == [alone["encoder"]] * 2


# Weights of a file


@pytest.fixture
def classifier(spec: ModelSpec) -> dict[str, Tensor]:
    """A state_dict as torchvision's: the encoder's, with the classifier's last layer."""
    torch.manual_seed(3)
    network = build_network(spec)
    assert isinstance(network, EncoderUNet)
    head = {"classifier.1.weight": torch.zeros(1000, 1280), "classifier.1.bias": torch.zeros(1000)}
    return {**network.encoder.state_dict(), **head}


def with_weights(spec: ModelSpec, path: Path) -> ModelSpec:
    told = {"path": str(path), "sha256": hash_file(path)}
    return replace(spec, config=replace(spec.config, encoder_weights=told))


def save(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    return path


@needs_library
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_training_begins_with_the_encoder_of_the_file(
    spec: ModelSpec, tmp_path: Path, make_config: Callable[..., TrainConfig], classifier: dict[str, Tensor], name: str
) -> None:
    older = {key: tensor for key, tensor in classifier.items() if not key.endswith("num_batches_tracked")}
    path = save(older, tmp_path / name)
    network = make_network(with_weights(spec, path), make_config(), torch.device("cpu"))
    plain = make_network(spec, make_config(), torch.device("cpu"))
    for key, tensor in network.state_dict().items():
        expected = classifier.get(key.removeprefix("encoder."), plain.state_dict()[key])
        assert torch.equal(tensor, expected)
    with pytest.raises(RecipeError) as caught:
        make_network(
            with_weights(spec, path), make_config(initial_weights={"path": "a", "sha256": "b"}), torch.device("cpu")
        )
    assert str(caught.value) == (
        "model.encoder_weights: train.initial_weights gives the encoder other weights. Set one of them to null."
    )


class Stranger:
    """What a file with another pickle might hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("was_here"),))


@needs_library
def test_other_weights_are_refused(
    spec: ModelSpec, tmp_path: Path, make_config: Callable[..., TrainConfig], classifier: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)

    def refused(spec: ModelSpec) -> str:
        with pytest.raises(ModelError) as caught:
            make_network(spec, make_config(), torch.device("cpu"))
        return str(caught.value)

    path = Path("weights.safetensors")
    name = "features.0.0.weight"
    for state, there in (
        ({key: tensor for key, tensor in classifier.items() if key != name}, "missing"),
        (classifier | {name: torch.zeros(2, 3)}, "[2, 3]"),
    ):
        assert refused(with_weights(spec, save(state, path))) == (
            f"encoder weights are of another network: {path}: {name}: there {there}, in the encoder [32, 3, 3, 3]. "
            "Change model.encoder to the network that they belong to."
        )
    told = with_weights(spec, path)
    save(classifier, path)
    assert refused(told).startswith(f"encoder weights are not those of the recipe: {path}: sha256 {hash_file(path)}, ")
    path.unlink()
    assert refused(told) == (f"no encoder weights: {path}. Bring the file there, or set model.encoder_weights: null.")
    pickled = Path("weights.pth")
    for content in ({"a": Stranger()}, {"a": 1}, [torch.zeros(1)]):
        torch.save(content, pickled)
        assert refused(with_weights(spec, pickled)).startswith(f"encoder weights can't be read: {pickled}: ")
        assert not Path("was_here").exists()


# A model's files


@needs_library
def test_a_model_is_read_again_and_a_strangers_description_refused(spec: ModelSpec, tmp_path: Path) -> None:
    spec = replace(spec, config=replace(spec.config, encoder_weights={"path": "gone.pth", "sha256": "0" * 64}))
    model = build_network(spec).eval()
    write_model(tmp_path / "model", spec, model.state_dict())
    read, of_file = read_model(tmp_path / "model")
    # What the encoder began with is told, and not needed any more.
    assert of_file == spec
    images = batch().images
    with torch.inference_mode():
        assert torch.equal(read(images), model(images))
    description = tmp_path / "model" / "model.json"
    text = description.read_text()
    description.write_text(text.replace('"mobilenet_v2"', '"resnet101"'))
    with pytest.raises(ModelError, match=r"^weights do not fit the network: .*: the file has .*, model.json asks for "):
        read_model(tmp_path / "model")
    for name in ('"hf-hub:someone/something"', '["resnet18"]', '{"a": 1}', "3"):
        description.write_text(text.replace('"mobilenet_v2"', name))
        with pytest.raises(ModelError, match=r"^model description is damaged: "):
            read_spec(tmp_path / "model")
