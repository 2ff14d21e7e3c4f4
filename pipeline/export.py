"""`unet export`: a model -> one file that other programs run, ONNX or torch.export's, checked against PyTorch."""

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.command import say
from pipeline.model_files import ModelFiles, open_model_files
from unet_core.any_size import AnySize
from unet_core.checkpoint import read_model
from unet_core.errors import ModelError, RecipeError
from unet_core.folding import fold_batch_norm
from unet_core.model import ModelSpec

ENDINGS = (".onnx", ".pt2")
NEEDED = ("onnx", "onnxscript", "onnxruntime")
#: Largest difference to PyTorch's logits, as a part of the largest of them, or of 1.
TOLERANCE = 1e-4

Run = Callable[[npt.NDArray[np.unsignedinteger]], npt.NDArray[np.float32]]


def export(model: str, *, to: Path) -> None:
    """Write a model as one file; ModelError if it gives other logits than PyTorch, and then there is no file."""
    if to.suffix not in ENDINGS:
        raise RecipeError(f"--to {to}: the ending says what is written. Choose {' or '.join(ENDINGS)}.")
    _check_installed(to)
    with open_model_files(model) as files:
        network, spec = read_model(files.directory)
    if spec.config.padding == "none":
        raise ModelError(
            f"can't be exported: {model}: with model.padding: none the network mirrors its image, which a graph for "
            "images of any size can't. Train it with padding: zeros."
        )
    graph = AnySize(fold_batch_norm(network)).eval()
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as scratch, _quiet():
        path = Path(scratch) / to.name
        write = _write_onnx if to.suffix == ".onnx" else _write_pt2
        run = write(graph, _images(spec, 2, *_sizes(graph)[0]), path, _about(spec, files))
        difference = _compare(run, graph, spec)
        path.replace(to)
    say(f"{to}: {to.stat().st_size / 1e6:.1f} MB, logits within {difference:.1e} of PyTorch's on three sizes")


def _check_installed(to: Path) -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if to.suffix == ".onnx" and missing:
        raise RecipeError(
            f"{to}: {missing[0]} is not installed. Run `pip install 'unet-pipeline[export]'`, or export "
            "to .pt2, which needs nothing more."
        )


def _about(spec: ModelSpec, files: ModelFiles) -> dict[str, str]:
    """What a program must know beside the graph, as the file's metadata."""
    return {
        "classes": json.dumps(dict(spec.class_map.classes)),
        "kind": spec.class_map.kind,
        "channels": str(spec.channels),
        "bits": str(spec.images.bits),
        "images": json.dumps(asdict(spec.images)),
        "weights_sha256": files.weights_sha256,
    }


def _trace(graph: AnySize, images: Tensor) -> torch.export.ExportedProgram:
    any_size = torch.export.Dim.DYNAMIC
    shapes = {"images": {0: any_size, 2: any_size, 3: any_size}}
    return torch.export.export(graph, (images,), dynamic_shapes=shapes)


def _write_onnx(graph: AnySize, images: Tensor, path: Path, about: dict[str, str]) -> Run:
    program = torch.onnx.export(
        _trace(graph, images),
        (images,),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: "batch", 2: "height", 3: "width"}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(about)
    program.save(str(path))
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["logits"], {"images": pixels})[0]


def _write_pt2(graph: AnySize, images: Tensor, path: Path, about: dict[str, str]) -> Run:
    program = _trace(graph, images)
    # Else they would be stored too, the format's only pickle.
    program.example_inputs = None
    torch.export.save(program, path, extra_files={f"{key}.txt": value for key, value in about.items()})
    read = torch.export.load(path).module()
    return lambda pixels: read(torch.from_numpy(pixels)).detach().numpy()


def _sizes(graph: AnySize) -> list[tuple[int, int]]:
    """Heights and widths to check: two that the stride does not divide, and one that it does."""
    stride = graph.network.stride
    return [(2 * stride + 1, 5 * stride - 1), (3 * stride, 4 * stride), (4 * stride + 3, 2 * stride + 2)]


def _images(spec: ModelSpec, count: int, height: int, width: int) -> Tensor:
    dtype = np.uint8 if spec.images.bits == 8 else np.uint16
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, spec.images.white + 1, (count, spec.channels, height, width), dtype=dtype))


def _compare(run: Run, graph: AnySize, spec: ModelSpec) -> float:
    """The largest difference, as a part of the largest logit or of 1."""
    differences = []
    for count, (height, width) in enumerate(_sizes(graph), start=1):
        images = _images(spec, count, height, width)
        with torch.inference_mode():
            expected = graph.network(images).numpy()
        difference = np.abs(run(images.numpy()) - expected).max() / max(1.0, np.abs(expected).max())
        differences.append(float(difference))
    if not max(differences) <= TOLERANCE:
        raise ModelError(
            f"the exported graph is not the model: its logits differ by {max(differences):.1e}, {TOLERANCE} is "
            "allowed. Export to the other format, and report this."
        )
    return max(differences)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporting tells of operators that other packages might add."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
