import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.catalog import CatalogRow
from pipeline.references import hash_image, hash_masks, read_reference, read_row
from unet_core.errors import DataError
from unet_core.images import FileBytes


def recorded(source: Path) -> CatalogRow:
    for name in ("a.png", "m1.png", "m2.png"):
        (source / name).write_text(name, encoding="utf-8")
    masks = [FileBytes(name="", data=name.encode()) for name in ("m1.png", "m2.png")]
    return CatalogRow(
        key="a",
        image="a.png",
        masks=("m1.png", "m2.png"),
        group="a",
        declared_split=None,
        batch=1,
        image_sha256=hash_image(FileBytes(name="", data=b"a.png")),
        mask_sha256=hash_masks(masks),
    )


def test_masks_are_hashed_by_their_hashes() -> None:
    one = hashlib.sha256(b"x").hexdigest()
    assert hash_masks([FileBytes(name="", data=b"x")]) == hashlib.sha256(one.encode()).hexdigest()


def test_a_row_is_read_as_it_was_recorded(tmp_path: Path) -> None:
    image, masks = read_row(str(tmp_path), recorded(tmp_path))
    assert (image.data, [mask.data for mask in masks]) == (b"a.png", [b"m1.png", b"m2.png"])


@pytest.mark.parametrize("name", ["a.png", "m2.png"])
def test_a_file_that_is_not_what_was_recorded_is_refused(tmp_path: Path, name: str) -> None:
    row = recorded(tmp_path)
    (tmp_path / name).write_text("another", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_row(str(tmp_path), row)
    assert str(caught.value) == (
        "a recorded sample has changed: a: a.png or its mask is not what the catalog says. "
        "Record the change with `unet add`, or restore the file."
    )
    with pytest.raises(DataError, match=r"^a recorded sample has changed"):
        read_row(str(tmp_path), dataclasses.replace(row, masks=("m2.png", "m1.png")))


@pytest.mark.parametrize("name", ["a.bmp", "a.gif", "a.tif", "m.bmp"])
def test_any_changed_bit_of_a_file_without_checksums_is_noticed(tmp_path: Path, name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    mask = "m.bmp"
    image = "a.bmp" if name == mask else name
    for file in (image, mask):
        Image.fromarray(pixels).save(tmp_path / file)
    files = [FileBytes(name="", data=(tmp_path / file).read_bytes()) for file in (image, mask)]
    row = dataclasses.replace(
        recorded(tmp_path),
        image=image, masks=(mask,), image_sha256=hash_image(files[0]), mask_sha256=hash_masks(files[1:]),
    )  # fmt: skip
    whole = (tmp_path / name).read_bytes()
    for place in range(0, 8 * len(whole), 13):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(DataError, match=r"^a recorded sample has changed"):
            read_row(str(tmp_path), row)
    (tmp_path / name).write_bytes(whole)
    assert read_row(str(tmp_path), row)[0].data == files[0].data


def test_only_a_json_file_has_annotations(tmp_path: Path) -> None:
    (tmp_path / "a.png#1").write_bytes(b"picture")
    assert read_reference(str(tmp_path), "a.png#1").data == b"picture"
