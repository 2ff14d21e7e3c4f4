"""How an image could lie in a shard: size, and the speed of reading it whole, reading a 256 crop, and writing it.

`python -m benchmarks.codecs --source FOLDER [--jpeg] [--quick]`, FOLDER/images with pictures, on one core; `--jpeg`
saves them as JPEG (quality 90) first, as a camera would. `ratio` is size over
raw arrays, speeds are in images a second; lz4 and zstd come with the extra `bench`. A table, then one JSON line.
"""

import argparse
import importlib.util
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from benchmarks.loader import CROP_PX, use_one_core
from benchmarks.workspace import print_result
from unet_core.codecs import decode_array, encode_array
from unet_core.images import FileBytes, ImageConfig, read_image

Pixels = Any


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to store an image."""

    encode: Callable[[Pixels], bytes]
    decode: Callable[[bytes, tuple[int, ...]], Pixels]


def main() -> None:
    """Store every image in every way and read it back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--jpeg", action="store_true", help="take the pictures as JPEG files")
    parser.add_argument("--quick", action="store_true", help="24 images")
    arguments = parser.parse_args()
    use_one_core()
    paths = sorted(path for path in (arguments.source / "images").iterdir() if path.is_file())
    files = [path.read_bytes() for path in paths[: 24 if arguments.quick else 200]]
    if not files:
        sys.exit(f"no images: {arguments.source / 'images'}. Name a folder with images/NAME.")
    if arguments.jpeg:
        files = [_jpeg(_read_pillow(data, ())) for data in files]
    images = [_read_pillow(data, ()) for data in files]
    raw_bytes = sum(image.nbytes for image in images)
    table = {
        "original": _measure_original(files, images, _read_ours),
        "original, OpenCV": _measure_original(files, images, _read_opencv),
    }
    table |= {name: measure(way, images) for name, way in _ways().items()}
    print("| codec | size / raw | read whole | read crop | write |\n|---|---|---|---|---|")
    for name, row in table.items():
        row["ratio"] = round(row.pop("num_bytes") / raw_bytes, 3)
        print(f"| {name} | {row['ratio']} | {row['whole']} | {row['crop']} | {row.get('write', '')} |")
    print_result({"images": len(images), "raw_mb": round(raw_bytes / 1e6, 1), "codecs": table})


def measure(way: Way, images: Sequence[Pixels]) -> dict[str, Any]:
    """Size and images a second; what comes back must be what went in."""
    started = time.perf_counter()
    stored = [way.encode(image) for image in images]
    write = time.perf_counter() - started
    return {
        "num_bytes": sum(map(len, stored)),
        "whole": _rate(lambda data, image: np.array(way.decode(data, image.shape)), stored, images),
        "crop": _rate(lambda data, image: _crop(way.decode(data, image.shape)), stored, images),
        "write": round(len(images) / write),
    }


def _measure_original(files: Sequence[bytes], images: Sequence[Pixels], read: Callable[..., Pixels]) -> dict[str, Any]:
    return {
        "num_bytes": sum(map(len, files)),
        "whole": _rate(lambda data, image: read(data, image.shape), files, images),
        "crop": _rate(lambda data, image: _crop(read(data, image.shape)), files, images),
    }


def _rate(read: Callable[[bytes, Pixels], Pixels], stored: Sequence[bytes], images: Sequence[Pixels]) -> int:
    """Images a second: the best of three rounds, since others use the machine too."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        for data, image in zip(stored, images, strict=True):
            read(data, image)
        best = min(best, time.perf_counter() - started)
    return round(len(images) / best)


def _crop(image: Pixels) -> Pixels:
    top, left = (max(0, side - CROP_PX) // 2 for side in image.shape[:2])
    return np.array(image[top : top + CROP_PX, left : left + CROP_PX])


def _ways() -> dict[str, Way]:
    ways = {
        "raw": Way(encode=lambda image: _ours(image, "raw"), decode=_read_raw),
        "png, fast settings": Way(encode=lambda image: _ours(image, "png"), decode=_read_png),
        "png, level 6": Way(
            encode=lambda image: _opencv(image, ".png", cv2.IMWRITE_PNG_COMPRESSION, 6), decode=_read_opencv
        ),
        "webp, lossless": Way(
            encode=lambda image: _opencv(image, ".webp", cv2.IMWRITE_WEBP_QUALITY, 101), decode=_read_opencv
        ),
    }
    if importlib.util.find_spec("lz4"):
        import lz4.block

        ways["lz4"] = Way(
            encode=lambda image: lz4.block.compress(image.tobytes()),
            decode=lambda data, shape: np.frombuffer(lz4.block.decompress(data), np.uint8).reshape(shape),
        )
    if importlib.util.find_spec("zstandard"):
        import zstandard

        ways["zstd, level 1"] = Way(
            encode=lambda image: zstandard.ZstdCompressor(1).compress(image.tobytes()),
            decode=lambda data, shape: np.frombuffer(zstandard.ZstdDecompressor().decompress(data), np.uint8).reshape(
                shape
            ),
        )
    return ways


def _ours(image: Pixels, codec: Any) -> bytes:
    data, begin = encode_array(image, codec, where="benchmark")
    return data[begin:]


def _read_raw(data: bytes, shape: tuple[int, ...]) -> Pixels:
    return decode_array(np.frombuffer(data, np.uint8), "raw", shape=shape, dtype="uint8", where="benchmark")


def _read_png(data: bytes, shape: tuple[int, ...]) -> Pixels:
    return decode_array(np.frombuffer(data, np.uint8), "png", shape=shape, dtype="uint8", where="benchmark")


def _opencv(image: Pixels, ending: str, *settings: int) -> bytes:
    return cv2.imencode(ending, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)[1].tobytes()


def _read_ours(data: bytes, shape: tuple[int, ...]) -> Pixels:
    return read_image(FileBytes(name="benchmark", data=data), ImageConfig(channels=shape[2]))


def _read_opencv(data: bytes, shape: tuple[int, ...]) -> Pixels:  # noqa: ARG001
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None
    return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)


def _read_pillow(data: bytes, shape: tuple[int, ...]) -> Pixels:  # noqa: ARG001
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _jpeg(image: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="JPEG", quality=90)
    return stream.getvalue()


if __name__ == "__main__":
    main()
