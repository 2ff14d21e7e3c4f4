"""What samples tell: sizes, duplicates, masks that contradict each other, and the page that shows it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.catalog import read_catalog
from pipeline.duplicates_table import read_duplicates
from pipeline.findings import masks_agree
from unet_core.errors import DataError
from unet_core.samples import ClassMap
from unet_core.synthetic import draw_shapes

REJECTED, DUPLICATES, PAGE = Path("data/rejected.json"), Path("data/duplicates.csv"), Path("reports/data.html")


def put(tree, key: str, image: np.ndarray, mask: np.ndarray | None = None) -> None:
    for folder, array in (("images", image), ("masks", (image > 128) * np.uint8(255) if mask is None else mask)):
        path = tree.source / folder / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def drawing(number: int, size: int = 96) -> np.ndarray:
    return draw_shapes(seed=3, number=number, height=size, width=size)[0]


def validate(tree, **config) -> list[dict[str, str]]:
    """Run the stage with a limit of 1; what it rejects."""
    tree.write_recipe(validate={"max_rejected_fraction": 1.0, **config})
    tree.record()
    tree.run("ingest", "validate")
    return json.loads(REJECTED.read_text(encoding="utf-8"))


def test_too_small_and_too_long_images_are_rejected_with_what_to_do(tree) -> None:
    put(tree, "good", drawing(0))
    put(tree, "long", np.full((8, 401), 200, dtype=np.uint8))
    put(tree, "small", np.full((7, 40), 200, dtype=np.uint8))
    assert [entry["reason"] for entry in validate(tree)] == [
        "image too long for its width: long: 401x8. Cut it, remove it, or raise validate.max_aspect (50).",
        "image too small: small: 40x7. Remove it, or lower validate.min_px (8).",
    ]


def test_equal_pixels_and_alike_pictures_are_found(tree) -> None:
    image = drawing(1)
    put(tree, "a", image)
    put(tree, "b", image)
    put(tree, "c", np.clip(image.astype(int) + 9, 0, 255).astype(np.uint8), (image > 128) * np.uint8(255))
    put(tree, "other", drawing(2))
    assert validate(tree) == []
    pairs = {(pair.a, pair.b): (pair.kind, pair.masks_agree) for pair in read_duplicates(DUPLICATES)}
    assert pairs[("a", "b")] == ("exact", True)
    assert pairs[("a", "c")] == ("near", True)
    assert not any("other" in pair for pair in pairs)


def test_of_contradicting_masks_both_go_when_they_came_together(tree) -> None:
    image = drawing(1)
    put(tree, "a", image)
    put(tree, "b", image, np.zeros_like(image))
    put(tree, "c", drawing(2))
    assert validate(tree) == [
        {
            "key": key,
            "reason": f"masks contradict each other: {key}: {other} has the same pixels and another mask. "
            "Remove one of them, or correct its mask.",
        }
        for key, other in (("a", "b"), ("b", "a"))
    ]
    assert [row.key for row in read_catalog(Path("data/accepted.parquet"))] == ["c"]
    assert read_duplicates(DUPLICATES) == []


def test_of_contradicting_masks_the_one_that_was_there_first_stays(tree) -> None:
    image = drawing(1)
    put(tree, "z", image)
    tree.write_recipe()
    tree.record()
    put(tree, "a", image, np.zeros_like(image))
    assert [entry["key"] for entry in validate(tree)] == ["a"]
    assert [row.key for row in read_catalog(Path("data/accepted.parquet"))] == ["z"]


def test_masks_agree_within_a_shift_and_across_sizes_but_not_when_they_say_something_else() -> None:
    cells = ClassMap(kind="multiclass", classes={"background": 0, "cell": 1}, background="background")
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[10:30, 10:30] = 1
    assert masks_agree(mask, np.roll(mask, 2, axis=0), cells)
    assert masks_agree(mask, mask[::2, ::2], cells)
    assert masks_agree(mask * 0, mask * 0, cells)
    assert not masks_agree(mask, mask.T * 0, cells)
    assert not masks_agree(mask, np.roll(mask, 20, axis=0), cells)


def test_the_page_names_every_problem_and_shows_it_even_when_the_stage_fails(tree) -> None:
    image = drawing(1)
    put(tree, "good", image)
    put(tree, "sizes", drawing(2), np.zeros((5, 5), dtype=np.uint8))
    put(tree, "values", drawing(3), np.full((96, 96), 7, dtype=np.uint8))
    put(tree, "zero", drawing(4))
    (tree.source / "images" / "zero.png").write_bytes(b"")
    put(tree, "<script>alert(1)<", drawing(5), np.full((96, 96), 9, dtype=np.uint8))
    tree.write_recipe()
    tree.record()
    tree.run("ingest")
    with pytest.raises(DataError, match="4 of 5 samples are rejected"):
        tree.run("validate")
    text = PAGE.read_text(encoding="utf-8")
    for entry in json.loads(REJECTED.read_text(encoding="utf-8")):
        assert entry["key"].replace("<", "&lt;").replace(">", "&gt;") in text
    assert "<script" not in text
    # Sizes and values: both files; of the empty file its mask; two pictures in a figure are one image.
    assert text.count("data:image/png;base64,") >= 4
    assert "mask size differs from image" in text
    assert not Path("data/accepted.parquet").exists()


def test_copies_of_rejected_samples_stay_duplicates_of_each_other(tree) -> None:
    image = drawing(1)
    put(tree, "a", image)
    put(tree, "b", image, np.zeros_like(image))
    tree.write_recipe()
    tree.record()
    for key in ("n0", "n1", "n2"):
        put(tree, key, image)
    assert [entry["key"] for entry in validate(tree)] == ["a", "b"]
    assert [(pair.a, pair.b) for pair in read_duplicates(DUPLICATES)] == [("n0", "n1"), ("n0", "n2")]


def test_of_many_contradicting_masks_all_that_came_together_go(tree) -> None:
    image = drawing(1)
    put(tree, "a", image)
    put(tree, "b", image, np.zeros_like(image))
    put(tree, "c", image)
    put(tree, "other", drawing(2))
    tree.write_recipe()
    tree.record()
    # Compared with each other once the first ones are gone.
    put(tree, "d", image)
    put(tree, "e", image, np.full_like(image, 255))
    assert [entry["key"] for entry in validate(tree)] == ["a", "b", "c", "d", "e"]
