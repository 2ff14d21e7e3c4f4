"""Files damaged at random, undamaged ones among them: no crash, no other error than DataError, no silent acceptance.

Only PNG and deflate carry checksums. For them a damaged file is refused or gives the same pixels. The other formats can't
tell a changed pixel from a drawn one: there the ledger's sha256 of the file's bytes is what differs, and the stages
compare it (tests/pipeline/test_references.py).
"""

import random

import numpy as np
import pytest

from tests.unet_core.pictures import every_format, named
from unet_core.coco import read_coco
from unet_core.errors import DataError
from unet_core.images import read_image
from unet_core.masks import read_mask
from unet_core.samples import ClassMap, ImageConfig

CONFIG = ImageConfig(channels=3, percentiles=[0, 100], bits=16)
INSTANCES = ClassMap(kind="instances", classes={"background": 0, "cell": 1})
CHECKSUMMED = (".png",)
ANNOTATIONS = (
    b'{"height": 24, "width": 20, "annotations": ['
    b'{"category": "cell", "segmentation": [[1, 1, 8, 1, 8, 9.5, 1, 9]]},'
    b'{"category": "cell", "segmentation": {"size": [24, 20], "counts": [100, 5, 375]}},'
    b'{"category": "cell", "segmentation": {"size": [24, 20], "counts": "X65c8"}}]}'
)


def damage(data: bytes, rng: random.Random) -> bytes:
    """Flip bits, set bytes, cut, insert, or exchange blocks, once or a few times."""
    broken = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 30])):
        if len(broken) < 8:
            break
        place, length = rng.randrange(len(broken)), rng.randint(1, 16)
        # Headers are small and decide the most: half of the damage is done there.
        if rng.random() < 0.5:
            place = rng.randrange(min(len(broken), 128))
        match rng.choice(["flip", "set", "cut", "end", "insert", "swap", "extreme"]):
            case "flip":
                broken[place] ^= 1 << rng.randrange(8)
            case "set":
                broken[place] = rng.randrange(256)
            case "cut":
                del broken[place : place + length]
            case "end":
                del broken[place:]
            case "insert":
                broken[place:place] = rng.randbytes(length)
            case "swap":
                other = rng.randrange(len(broken))
                first, second = broken[place : place + length], broken[other : other + length]
                broken[place : place + len(second)], broken[other : other + len(first)] = second, first
            case "extreme":
                broken[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"])
    return bytes(broken)


def check_names(error: DataError) -> int:
    """The message names the file; counts 1."""
    assert "scan" in str(error)
    return 1


def fuzz(num_cases: int, seed: int) -> tuple[int, int]:
    """Read damaged files and, each tenth time, a whole one. Numbers of those refused and read."""
    rng = random.Random(seed)
    files = every_format()
    whole = {name: read_image(named(data), CONFIG) for name, data in files.items()}
    refused = read = 0
    for number in range(num_cases):
        name = rng.choice(list(files))
        if number % 10 == 0:
            np.testing.assert_array_equal(read_image(named(files[name]), CONFIG), whole[name], err_msg=name)
            continue
        data = damage(files[name], rng)
        try:
            image = read_image(named(data), CONFIG)
        except DataError as error:
            refused += check_names(error)
        else:
            read += 1
            assert image.dtype == np.uint16
            assert image.shape[2] == 3
            is_same = np.array_equal(image, whole[name])
            assert is_same or not name.endswith(CHECKSUMMED), f"case {number} of seed {seed}: {name}"
        try:
            read_mask([named(data)], INSTANCES)
        except DataError as error:
            check_names(error)
    return refused, read


def test_damaged_files_are_refused_or_decode_to_some_image(capfd: pytest.CaptureFixture[str]) -> None:
    refused, read = fuzz(400, seed=0)
    assert refused > 150
    assert read > 10
    assert capfd.readouterr() == ("", "")  # no warning of a decoder on stderr


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_thousands_of_damaged_files(seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    refused, _ = fuzz(2_000, seed=seed)
    assert refused > 800
    assert capfd.readouterr() == ("", "")


def test_damaged_pixels_of_deflate_are_noticed_even_if_they_unpack() -> None:
    # The pixels lie behind an Adler-32: every flipped bit among them must be refused, or change nothing.
    data = every_format()["deflate.tif"]
    whole = read_image(named(data), ImageConfig(channels=3))
    start = data.index(b"\x78")
    rng = random.Random(0)
    for _ in range(200):
        broken = bytearray(data)
        broken[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
        try:
            image = read_image(named(bytes(broken)), ImageConfig(channels=3))
        except DataError:
            continue
        np.testing.assert_array_equal(image, whole)


def test_damaged_annotations_give_a_data_error_and_no_other() -> None:
    pytest.importorskip("pycocotools")
    whole = read_coco(ANNOTATIONS, INSTANCES, where="scan")
    assert whole.max() == 3
    rng = random.Random(0)
    refused = 0
    for _ in range(600):
        np.testing.assert_array_equal(read_coco(ANNOTATIONS, INSTANCES, where="scan"), whole)
        try:
            mask = read_coco(damage(ANNOTATIONS, rng), INSTANCES, where="scan")
        except DataError as error:
            refused += check_names(error)
        else:
            assert mask.dtype == np.uint16
    assert refused > 300
