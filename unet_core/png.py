"""PNG files: every checksum is verified, since Pillow skips those of the pixels; plain gray and colour are decoded
here, by libpng: 16 bits, which Pillow cuts to 8, and 8 bits, where it takes two thirds of Pillow's time.
"""

import zlib
from dataclasses import dataclass

import imagecodecs

from unet_core.picture import Picture, check_size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Deflate gives at most so many bytes out of one.
LARGEST_RATIO = 1040


@dataclass(frozen=True, kw_only=True)
class PngHeader:
    """A PNG's first chunk."""

    width: int
    height: int
    bits: int
    colour_type: int
    """0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGB and alpha."""
    chunks: frozenset[bytes]

    @property
    def is_plain(self) -> bool:
        """One frame of gray or colour, 8 or 16 bits a channel."""
        return self.bits >= 8 and self.colour_type != 3 and b"acTL" not in self.chunks

    @property
    def has_metadata(self) -> bool:
        """Whether an orientation may stand somewhere."""
        return not self.chunks.isdisjoint((b"eXIf", b"tEXt", b"zTXt", b"iTXt"))


def check_png(data: bytes) -> PngHeader:
    """Walk all chunks and verify their checksums; ValueError names the damaged one. What follows IEND is no part."""
    position = len(SIGNATURE)
    names: list[bytes] = []
    while not names or names[-1] != b"IEND":
        head = data[position : position + 8]
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        end = position + 8 + length
        if len(head) < 8 or end + 4 > len(data):
            raise ValueError("PNG file is truncated")
        # The checksum covers name and content.
        if zlib.crc32(memoryview(data)[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError(f"checksum of PNG chunk {name!r} is wrong")
        names.append(name)
        position = end + 4
    if names[0] != b"IHDR" or names.count(b"IHDR") > 1 or b"IDAT" not in names:
        raise ValueError("PNG file without header or pixels")
    header = PngHeader(
        width=int.from_bytes(data[16:20], "big"),
        height=int.from_bytes(data[20:24], "big"),
        bits=data[24],
        colour_type=data[25],
        chunks=frozenset(names),
    )
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(header.colour_type, 4)
    num_bytes = header.width * header.height * channels * header.bits // 8
    if num_bytes > LARGEST_RATIO * len(data):
        # It is refused by what it claims to be, if it is too large for us anyway.
        check_size(width=header.width, height=header.height)
        raise ValueError("PNG file has fewer pixels than its header claims")
    check_size(width=header.width, height=header.height, channels=channels, bytes_per_value=(header.bits + 7) // 8)
    return header


def decode_plain_png(data: bytes, header: PngHeader) -> Picture:
    """A checked PNG that is plain, not yet turned."""
    pixels = imagecodecs.png_decode(data)
    pixels = pixels.reshape(header.height, header.width, -1)
    return Picture(
        pixels=pixels,
        colour="gray" if header.colour_type in (0, 4) else "rgb",
        bits=header.bits,
        has_alpha=pixels.shape[2] in (2, 4),
    )
