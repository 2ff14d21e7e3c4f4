from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.listing import find_pairs
from pipeline.patterns import compile_pattern
from pipeline.source import IngestConfig, Pair
from unet_core.errors import DataError, RecipeError
from unet_core.samples import ClassMap

ONE_MASK = ClassMap(kind="multiclass", classes={"background": 0, "cell": 255})
PLANES = ClassMap(kind="multilabel", classes={"ring": 255, "plus": 255})
OBJECTS = ClassMap(kind="instances", classes={"background": 0, "cell": 1})  # type: ignore[arg-type]


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(path)


def config(**about: object) -> IngestConfig:
    return IngestConfig(source="unused", ledger="unused", **about)  # type: ignore[arg-type]


def refusal(source: Path, class_map: ClassMap = ONE_MASK, **about: object) -> str:
    with pytest.raises(DataError) as caught:
        find_pairs(str(source), config(**about), class_map)
    return str(caught.value)


def test_pairs_come_in_order_of_their_keys_with_paths_below_the_source(tmp_path: Path) -> None:
    for path in ("images/b.png", "images/a.bmp", "masks/a.png", "masks/b.tif"):
        put(tmp_path / path)
    assert find_pairs(str(tmp_path), config(), ONE_MASK) == [
        Pair(key="a", image="images/a.bmp", masks=("masks/a.png",)),
        Pair(key="b", image="images/b.png", masks=("masks/b.tif",)),
    ]


def test_folders_are_named_by_the_recipe(tmp_path: Path) -> None:
    put(tmp_path / "photos/a.png")
    put(tmp_path / "labels/a.png")
    pairs = find_pairs(str(tmp_path), config(image_pattern="photos/{key}.*", mask_pattern="labels/{key}.*"), ONE_MASK)
    assert pairs == [Pair(key="a", image="photos/a.png", masks=("labels/a.png",))]


def test_overlapping_classes_have_a_folder_each_in_the_recipes_order(tmp_path: Path) -> None:
    for path in ("images/a.png", "masks/ring/a.png", "masks/plus/a.png", "masks/unused/z.png"):
        put(tmp_path / path)
    assert find_pairs(str(tmp_path), config(), PLANES) == [
        Pair(key="a", image="images/a.png", masks=("masks/ring/a.png", "masks/plus/a.png"))
    ]


def test_a_mask_missing_in_one_class_folder_is_an_image_without_mask(tmp_path: Path) -> None:
    for path in ("images/a.png", "masks/ring/a.png"):
        put(tmp_path / path)
    assert refusal(tmp_path, PLANES) == (
        f"image without mask: {tmp_path}/images/a.png: there is no masks/plus/a.*. Add the mask, or remove the image."
    )


def test_no_such_folder(tmp_path: Path) -> None:
    text = refusal(tmp_path / "none")
    assert text == f"no such folder: {tmp_path}/none. Correct ingest.source in params.yaml, or restore the data."


def test_a_folder_without_images_says_what_belongs_there(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").write_text("nothing", encoding="utf-8")
    text = refusal(tmp_path)
    assert text.startswith(
        f"no images: {tmp_path}/images/{{key}}.*: no file there is a picture of such a name (.bmp, .gif, .jpeg"
    )
    assert text.endswith("or correct ingest.image_pattern.")


def test_an_image_without_mask_is_named_and_the_others_counted(tmp_path: Path) -> None:
    for path in ("images/a.png", "images/b.png", "images/c.png", "masks/b.png"):
        put(tmp_path / path)
    assert refusal(tmp_path) == (
        f"image without mask: {tmp_path}/images/a.png (and 1 more): there is no masks/a.*. "
        "Add the mask, or remove the image."
    )


def test_a_mask_without_image_is_named(tmp_path: Path) -> None:
    for path in ("images/a.png", "masks/a.png", "masks/b.png"):
        put(tmp_path / path)
    assert refusal(tmp_path) == (
        f"mask without image: {tmp_path}/masks/b.png: no image goes with it. Add the image, or remove the mask."
    )


def test_one_name_with_two_endings_is_refused(tmp_path: Path) -> None:
    for name in ("images/a.jpg", "images/a.png", "masks/a.png"):
        put(tmp_path / name)
    assert refusal(tmp_path) == (
        f"two images for one sample: a: {tmp_path}/images/a.jpg and images/a.png. Keep one of them."
    )


def test_two_masks_for_one_image_are_refused_unless_they_are_objects(tmp_path: Path) -> None:
    for name in ("images/a.png", "masks/a.gif", "masks/a.png"):
        put(tmp_path / name)
    assert refusal(tmp_path).startswith(
        f"two masks for one image: {tmp_path}/images/a.png: masks/a.gif and masks/a.png. Keep one of them, or set masks.ki"
    )
    (pair,) = find_pairs(str(tmp_path), config(), OBJECTS)
    assert pair.masks == ("masks/a.gif", "masks/a.png")


def test_names_may_hold_dots_spaces_and_any_letters_in_any_form(tmp_path: Path) -> None:
    composed, apart = "gr\u00f6\u00dfe 1.v2", "gro\u0308\u00dfe 1.v2"
    put(tmp_path / f"images/{composed}.png")
    put(tmp_path / f"masks/{apart}.png")
    (pair,) = find_pairs(str(tmp_path), config(), ONE_MASK)
    assert (pair.key, pair.masks) == (composed, (f"masks/{apart}.png",))


def test_keys_that_differ_in_case_are_allowed_and_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("images/A.png", "images/a.png", "masks/A.png", "masks/a.png"):
        put(tmp_path / name)
    assert len(find_pairs(str(tmp_path), config(), ONE_MASK)) == 2
    assert caplog.messages == ["1 keys differ from another only in case, such as A and a"]


def test_files_beside_are_counted_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("images/A.PNG", "masks/A.png", "old/A.png", "images/.hidden.png", ".thumbs/1.png", ".thumbs/2.png"):
        put(tmp_path / name)
    (tmp_path / "images/Thumbs.db").write_bytes(b"")
    (tmp_path / "t.csv").write_text("key\nA\n", encoding="utf-8")
    (pair,) = find_pairs(str(tmp_path), config(table="t.csv"), ONE_MASK)
    assert pair.key == "A"
    assert caplog.messages == ["4 files are no images or masks of this recipe, such as .thumbs/"]


DRIVE = {"image_pattern": "training/{key}_training.tif", "mask_pattern": "1st_manual/{key}_manual1.gif"}
DSB = {"image_pattern": "stage1_train/{key}/images/*.png", "mask_pattern": "stage1_train/{key}/masks/*.png"}
SAME = {"image_pattern": "**/{key}.png", "mask_pattern": "**/{key}_mask.png"}


@pytest.mark.parametrize(
    ("about", "files", "expected"),
    [
        (DRIVE, ["training/21_training.tif", "1st_manual/21_manual1.gif"], {"21": 1}),
        (DSB, ["stage1_train/x/images/x.png", *(f"stage1_train/x/masks/{n}.png" for n in "123")], {"x": 3}),
        (SAME, ["a.png", "a_mask.png", "p/q/b.png", "p/q/b_mask.png"], {"a": 1, "b": 1}),
    ],
)
def test_patterns_describe_how_people_keep_their_data(
    tmp_path: Path, about: dict[str, str], files: list[str], expected: dict[str, int]
) -> None:
    for name in files:
        put(tmp_path / name)
    pairs = find_pairs(str(tmp_path), config(**about), OBJECTS if len(files) == 4 and "x" in expected else ONE_MASK)
    assert {pair.key: len(pair.masks) for pair in pairs} == expected


def test_fields_tell_group_split_and_slices(tmp_path: Path) -> None:
    for name in ("train/p1/ct_a.png", "train/p1/ct_a_seg.png"):
        put(tmp_path / name)
    patterns = {
        "image_pattern": "{split}/{group}/{modality}_{key}.*",
        "mask_pattern": "{split}/{group}/{modality}_{key}_seg.*",
    }
    (pair,) = find_pairs(str(tmp_path), config(**patterns), ONE_MASK)
    assert (pair.key, pair.group, pair.split, pair.slices) == ("a", "p1", "train", {"modality": "ct"})


def test_images_of_one_name_in_several_folders_are_told_apart_by_the_recipe(tmp_path: Path) -> None:
    patterns = {"image_pattern": "images/{group}/{key}.*", "mask_pattern": "masks/{group}/{key}.*"}
    for group in "pq":
        put(tmp_path / f"images/{group}/001.png")
        put(tmp_path / f"masks/{group}/001.png")
    assert refusal(tmp_path, **patterns) == (
        f"two images for one sample: 001: {tmp_path}/images/p/001.png and images/q/001.png. Keep one of them, "
        'or tell them apart with ingest.key: "{group}_{key}".'
    )
    pairs = find_pairs(str(tmp_path), config(**patterns, key="{group}_{key}"), ONE_MASK)
    assert [(pair.key, pair.masks) for pair in pairs] == [
        ("p_001", ("masks/p/001.png",)),
        ("q_001", ("masks/q/001.png",)),
    ]
    text = refusal(tmp_path, **{**patterns, "mask_pattern": "masks/*/{key}.*"}, key="{group}_{key}")
    assert text.startswith(f"one mask for two images: {tmp_path}/images/p/001.png and images/q/001.png: ")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (
            {"image_pattern": "/data/{key}.png"},
            "ingest.image_pattern: '/data/{key}.png': write a path below the source",
        ),
        ({"image_pattern": "../{key}.png"}, "ingest.image_pattern: '../{key}.png': write a path below the source"),
        ({"image_pattern": "images/*.png"}, "ingest.image_pattern: 'images/*.png': no {key}, which names the sample."),
        ({"image_pattern": "images/{key.png"}, "ingest.image_pattern: 'images/{key.png': a brace that is no {field}."),
        ({"image_pattern": "a**/{key}.png"}, "ingest.image_pattern: 'a**/{key}.png': ** stands for whole folders."),
        ({"image_pattern": "{class}/{key}.*"}, "ingest.image_pattern: '{class}/{key}.*': {class} is for masks of kind"),
        (
            {"mask_pattern": "m/{reader}/{key}.*"},
            "ingest.mask_pattern: 'm/{reader}/{key}.*': {reader} is not in image_p",
        ),
        ({"mask_pattern": "images/{key}.*"}, "ingest.mask_pattern: 'images/{key}.*': images have the same."),
        ({"key": "{group}_{key}"}, "ingest.key: '{group}_{key}': made of fields of image_pattern, {key} among them"),
        ({"key": "x"}, "ingest.key: 'x': made of fields of image_pattern, {key} among them"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused(tmp_path: Path, about: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        find_pairs(str(tmp_path), config(**about), ONE_MASK)
    assert str(caught.value).startswith(message)


def test_masks_of_overlapping_classes_need_their_class(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"^ingest.mask_pattern: 'm/\{key\}.\*': no \{class\}. Masks of kind multilabel"
    ):
        find_pairs(str(tmp_path), config(mask_pattern="m/{key}.*"), PLANES)


def test_a_field_takes_as_little_as_it_can_within_one_folder() -> None:
    pattern = compile_pattern("{group}_{key}.*", "here")
    assert pattern.match("a_b_c.d.PNG") == {"group": "a", "key": "b_c.d"}
    assert pattern.match("a/b_c.png") is None
    assert compile_pattern("{key}/images/{key}.png", "here").match("a/images/b.png") is None
    assert compile_pattern("**/{key}.*", "here").match(".git/a.png") is None
    assert compile_pattern("m/{key}_{class}.*", "here", ["a_b", "b"]).match("m/x_a_b.png") == {
        "key": "x",
        "class": "a_b",
    }


@pytest.mark.slow
def test_ten_thousand_files_in_a_folder_are_quick(tmp_path: Path) -> None:
    import time

    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for number in range(10_000):
            (tmp_path / folder / f"{number:05d}.png").touch()
    started = time.monotonic()
    assert len(find_pairs(str(tmp_path), config(), ONE_MASK)) == 10_000
    assert time.monotonic() - started < 5
