import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipeline.export
from pipeline.export import export
from unet_core.checkpoint import read_model, weights_hash, write_model
from unet_core.encoders import build_network
from unet_core.errors import ModelError, RecipeError
from unet_core.model import ModelConfig, ModelSpec, Network
from unet_core.model_config import ENCODER_KNOBS
from unet_core.samples import ClassMap, ImageConfig


def write(directory: Path, **config: Any) -> Network:
    """A small RGB model of two levels with random weights."""
    spec = ModelSpec(
        config=ModelConfig(**{"width": 8, "depth": 2, "norm": "batch", "input_statistics": "train", **config}),
        images=ImageConfig(channels=3, percentiles=[1, 99]),
        class_map=ClassMap(kind="multiclass", classes={"soil": 0, "crop": 7}),
        mean=(0.5,) * 3,
        deviation=(0.25,) * 3,
        precision="float32",
    )
    torch.manual_seed(0)
    write_model(directory, spec, build_network(spec).state_dict())
    return read_model(directory)[0]


def pixels(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, height, width), dtype=np.uint8)


def expected(network: Network, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.from_numpy(images)).numpy()


def test_a_network_that_mirrors_its_image_is_refused(tree) -> None:
    write(Path("model"), padding="none")
    with pytest.raises(ModelError) as caught:
        export("model", to=Path("model.onnx"))
    assert str(caught.value) == (
        "can't be exported: model: with model.padding: none the network mirrors its image, which a graph for images of any "
        "size can't. Train it with padding: zeros."
    )
    assert not Path("model.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [{"norm": "batch"}, {"norm": "instance"}, {"stem_stride": 2}, {"nested": True, "deep_supervision": 1}]
)
def test_onnx_file_gives_the_models_logits_for_images_of_any_size(
    tree, capsys: pytest.CaptureFixture[str], config: dict[str, Any]
) -> None:
    import onnxruntime

    network = write(Path("model"), **config)
    export("model", to=Path("out/model.onnx"))
    assert capsys.readouterr().out.startswith("out/model.onnx: 0.")
    assert [path.name for path in Path("out").iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession("out/model.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 32, 32), (3, 21, 30), (2, 5, 50), (1, 3, 2), (1, 1, 1)):
        images = pixels(*shape)
        (logits,) = session.run(["logits"], {"images": images})
        np.testing.assert_allclose(logits, expected(network, images), rtol=0, atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == {"soil": 0, "crop": 7}
    assert about["channels"] == "3"
    assert ImageConfig(**json.loads(about["images"])) == ImageConfig(channels=3, percentiles=[1, 99])
    assert about["weights_sha256"] == weights_hash(Path("model"))


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("segmentation_models_pytorch") is None,
    reason="segmentation_models_pytorch is not installed: pip install 'unet-pipeline[encoders]'",
)
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2"])
def test_a_network_with_an_encoder_is_exported_for_any_size(tree, encoder: str, ending: str) -> None:
    import onnxruntime

    network = write(Path("model"), **ENCODER_KNOBS, encoder=encoder)
    file = Path(f"model.{ending}")
    export("model", to=file)
    for shape in ((1, 64, 64), (3, 45, 90), (2, 33, 100)):
        images = pixels(*shape)
        if ending == "onnx":
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            (logits,) = session.run(["logits"], {"images": images})
        else:
            logits = torch.export.load(file).module()(torch.from_numpy(images)).detach().numpy()
        found = expected(network, images)
        np.testing.assert_allclose(logits, found, rtol=0, atol=1e-4 * max(1, np.abs(found).max()))


@pytest.mark.slow
def test_torch_export_file_gives_the_models_logits_and_holds_no_pickle(tree) -> None:
    network = write(Path("model"))
    export("model", to=Path("model.pt2"))
    extra = {"classes.txt": "", "images.txt": "", "weights_sha256.txt": ""}
    read = torch.export.load("model.pt2", extra_files=extra).module()
    for shape in ((1, 32, 32), (3, 21, 30), (2, 5, 50)):
        images = pixels(*shape)
        np.testing.assert_allclose(
            read(torch.from_numpy(images)).detach().numpy(), expected(network, images), rtol=0, atol=1e-4
        )
    assert json.loads(extra["classes.txt"]) == {"soil": 0, "crop": 7}
    assert json.loads(extra["images.txt"])["percentiles"] == [1, 99]
    assert extra["weights_sha256.txt"] == weights_hash(Path("model"))
    with zipfile.ZipFile("model.pt2") as archive:
        for name in archive.namelist():
            assert "/weights/weight_" in name or not archive.read(name).startswith((b"PK", b"\x80")), name
        assert archive.read("model/data/sample_inputs/model.pt") == b""


def test_another_ending_is_refused(tree) -> None:
    write(Path("model"))
    with pytest.raises(RecipeError) as caught:
        export("model", to=Path("model.h5"))
    assert str(caught.value) == ("--to model.h5: the ending says what is written. Choose .onnx or .pt2.")


def test_without_the_extra_onnx_is_refused(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    write(Path("model"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError) as caught:
        export("model", to=Path("model.onnx"))
    assert str(caught.value) == (
        "model.onnx: onnx is not installed. Run `pip install 'unet-pipeline[export]'`, or export to .pt2, "
        "which needs nothing more."
    )


def test_a_graph_that_is_not_the_model_is_no_file(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    write(Path("model"))

    def write_wrong(graph: Any, images: torch.Tensor, path: Path, about: dict[str, str]) -> Any:
        path.write_bytes(b"graph")
        return lambda images: np.zeros((len(images), 2, *images.shape[2:]), dtype=np.float32)

    monkeypatch.setattr(pipeline.export, "_write_pt2", write_wrong)
    with pytest.raises(
        ModelError, match=r"^the exported graph is not the model: its logits differ by 1.0e\+00, 0.0001"
    ):
        export("model", to=Path("model.pt2"))
    assert not list(Path().glob("*.pt2"))


def test_a_folder_that_is_no_model_is_named(tree) -> None:
    Path("model").mkdir()
    with pytest.raises(ModelError, match=r"^not a model directory: model/model.json: "):
        export("model", to=Path("model.pt2"))
