"""How an array lies in a shard: raw (mapped, so that a crop costs what the crop costs) or as PNG (smaller, slower).

Both are lossless; the third way, the original file, is read by `images` and `masks`. Lowest on the road, beside the
samples: bytes <-> arrays, nothing of files or tars.
"""

import io
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from unet_core.errors import DataError

Codec = Literal["raw", "png", "original"]
Pixels = npt.NDArray[Any]

CODECS: tuple[Codec, ...] = ("raw", "png", "original")


def num_planes(array: Pixels) -> int:
    """Channels of (H, W, C), 1 for (H, W)."""
    return 1 if array.ndim == 2 else array.shape[2]


def codec_of_mask(mask: Pixels, codec: Codec) -> Codec:
    """How a mask is stored beside images of `codec`: many planes are always raw, PNG has no place for them."""
    return codec if num_planes(mask) in (1, 3, 4) else "raw"


def encode_array(array: Pixels, codec: Codec, *, where: str) -> tuple[bytes, int]:
    """Bytes of a tar's member, raw or png, and at which of them the payload begins (behind an npy header).

    `array`: (H, W) or (H, W, C), uint8 or uint16. Raises DataError for what the codec has no place for.
    """
    if array.dtype not in (np.uint8, np.uint16):
        raise DataError(f"a shard holds 8 or 16 bits a pixel: {where}: {array.dtype}. Convert the image.")
    if codec == "raw":
        stream = io.BytesIO()
        # Little-endian and C order on every machine: equal pixels are equal bytes.
        ordered = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        np.save(stream, ordered, allow_pickle=False)
        data = stream.getvalue()
        return data, len(data) - ordered.nbytes
    if num_planes(array) not in (1, 3, 4):
        raise DataError(
            f"PNG has no place for this many channels: {where}: {num_planes(array)}, it takes 1, 3 or 4. "
            "Set shard.codec: raw."
        )
    return _encode_png(array, where=where), 0


def decode_array(data: Pixels, codec: Codec, *, shape: tuple[int, ...], dtype: str, where: str) -> Pixels:
    """The array in a member's payload, a view of it where it is raw. DataError where it is not what the index says."""
    if codec == "raw":
        return data.view(np.dtype(dtype).newbyteorder("<")).reshape(shape)
    return _decode_png(data, shape=shape, dtype=dtype, where=where)


def _encode_png(array: Pixels, *, where: str) -> bytes:
    # Costs the light stages a tenth of a second, and raw arrays don't need it.
    import cv2

    swap = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}.get(num_planes(array))
    # One filter for all rows, little searching: quicker to write and to read than libpng's choice (docs/shards.md).
    settings = (
        cv2.IMWRITE_PNG_COMPRESSION, 2,
        cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT,
        cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP,
    )  # fmt: skip
    done, encoded = cv2.imencode(".png", array if swap is None else cv2.cvtColor(array, swap), settings)
    assert done, where
    return encoded.tobytes()


def _decode_png(data: Pixels, *, shape: tuple[int, ...], dtype: str, where: str) -> Pixels:
    import cv2

    try:
        decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error:
        # An empty payload, or a header that promises billions of pixels.
        decoded = None
    if decoded is None or decoded.dtype != dtype or decoded.size != math.prod(shape):
        found = "no image" if decoded is None else f"{decoded.dtype} {decoded.shape}"
        raise DataError(
            f"a shard is damaged: {where}: {found}, the index says {dtype} {shape}. Run `dvc repro -f -s shard`."
        )
    swap = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}.get(num_planes(decoded))
    return (decoded if swap is None else cv2.cvtColor(decoded, swap)).reshape(shape)
