"""Other loaders, set up as their documentation shows, for `python -m benchmarks.loader`."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import albumentations
import cv2
import numpy as np
import torch
from PIL import Image

from unet_core.encoders import let_torchvision_in

CROP_PX = 256
BATCH = 8

Pair = tuple[Path, Path]
Epoch = Callable[[], Iterable[Any]]


def _augmentation() -> Callable[..., dict[str, Any]]:
    return albumentations.Compose(
        [
            albumentations.RandomCrop(CROP_PX, CROP_PX),
            albumentations.D4(p=1.0),
            albumentations.RandomBrightnessContrast(p=0.5),
        ]
    )


def _batch(samples: list[tuple[Any, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(np.stack([image for image, _ in samples])).permute(0, 3, 1, 2)
    return images, torch.from_numpy(np.stack([mask for _, mask in samples]))


def _batches(pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    augment = _augmentation()
    waiting = []
    for image, mask in pairs:
        done = augment(image=image, mask=mask)
        waiting.append((done["image"], done["mask"]))
        if len(waiting) == BATCH:
            yield _batch(waiting)
            waiting = []
    if waiting:
        yield _batch(waiting)


def _decode_by_opencv(image: bytes, mask: bytes) -> tuple[Any, Any]:
    colour = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    gray = cv2.imdecode(np.frombuffer(mask, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert colour is not None
    assert gray is not None
    return cv2.cvtColor(colour, cv2.COLOR_BGR2RGB), gray


def _write_tars(directory: Path, pairs: list[Pair]) -> list[str]:
    """The users' own files in WebDataset tars."""
    import webdataset

    directory.mkdir(parents=True)
    with webdataset.ShardWriter(str(directory / "%06d.tar"), maxcount=64, verbose=0) as writer:
        for image, mask in pairs:
            writer.write(
                {"__key__": image.stem, "image.png": image.read_bytes(), "mask.png": mask.read_bytes()},
            )
    return sorted(str(path) for path in directory.glob("*.tar"))


def webdataset_pillow(directory: Path, pairs: list[Pair]) -> Epoch:
    """As in WebDataset's README: shuffle, decode("pil"), to_tuple, map, batched."""
    import webdataset

    urls, augment = _write_tars(directory, pairs), _augmentation()

    def transform(sample: tuple[Image.Image, Image.Image]) -> tuple[Any, Any]:
        done = augment(image=np.asarray(sample[0]), mask=np.asarray(sample[1].convert("L")))
        return done["image"], done["mask"]

    def epoch() -> Iterable[Any]:
        dataset = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(100).decode("pil")
        return dataset.to_tuple("image.png", "mask.png").map(transform).batched(BATCH, collation_fn=_batch)

    return epoch


def webdataset_opencv(directory: Path, pairs: list[Pair]) -> Epoch:
    """The same with the faster decoder."""
    import webdataset

    urls = _write_tars(directory, pairs)

    def epoch() -> Iterable[Any]:
        dataset = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(100).to_tuple("image.png", "mask.png")
        return _batches(_decode_by_opencv(image, mask) for image, mask in dataset)

    return epoch


def mosaicml_streaming(directory: Path, pairs: list[Pair]) -> Epoch:
    """MDS shards of the users' files, shuffled by its default algorithm, decoded by OpenCV."""
    # MosaicML imports torchvision and calls none of its operators.
    let_torchvision_in()
    from streaming import MDSWriter, StreamingDataset

    with MDSWriter(out=str(directory), columns={"image": "bytes", "mask": "bytes"}) as writer:
        for image, mask in pairs:
            writer.write({"image": image.read_bytes(), "mask": mask.read_bytes()})
    dataset = StreamingDataset(local=str(directory), shuffle=True, batch_size=BATCH)

    def epoch() -> Iterable[Any]:
        return _batches(_decode_by_opencv(sample["image"], sample["mask"]) for sample in dataset)

    return epoch


def litdata(directory: Path, pairs: list[Pair]) -> Epoch:
    """Litdata's chunks of the users' files, decoded by OpenCV."""
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(directory), chunk_bytes="64MB")
    for number, (image, mask) in enumerate(pairs):
        writer[number] = {"image": image.read_bytes(), "mask": mask.read_bytes()}
    writer.done()
    writer.merge()
    dataset = StreamingDataset(str(directory), shuffle=True)

    def epoch() -> Iterable[Any]:
        return _batches(_decode_by_opencv(sample["image"], sample["mask"]) for sample in dataset)

    return epoch


#: Name -> the module that must be installed, and what makes its epochs.
PEERS: dict[str, tuple[str, Callable[[Path, list[Pair]], Epoch]]] = {
    "webdataset_pillow": ("webdataset", webdataset_pillow),
    "webdataset_opencv": ("webdataset", webdataset_opencv),
    "mosaicml_streaming": ("streaming", mosaicml_streaming),
    "litdata": ("litdata", litdata),
}
