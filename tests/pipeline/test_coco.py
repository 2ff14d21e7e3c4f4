import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.listing import find_pairs
from pipeline.references import read_reference
from pipeline.source import IngestConfig, Pair
from unet_core.errors import DataError
from unet_core.samples import ClassMap

ONE_MASK = ClassMap(kind="multiclass", classes={"background": 0, "cell": 1})
SQUARE = [[0, 0, 4, 0, 4, 4, 0, 4]]


def body(**changes: Any) -> dict[str, Any]:
    return {
        "categories": [{"id": 3, "name": "cell"}],
        "images": [
            {"id": 7, "file_name": "b.png", "height": 8, "width": 9},
            {"id": 5, "file_name": "sub/a.v1.png", "height": 6, "width": 6},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "segmentation": SQUARE, "bbox": [0, 0, 4, 4], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 3, "segmentation": {"size": [8, 9], "counts": "abc"}, "iscrowd": 1},
        ],
        **changes,
    }


def put(source: Path, content: object) -> IngestConfig:
    for name in ("images/b.png", "images/sub/a.v1.png"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"picture")
    text = content if isinstance(content, str) else json.dumps(content)
    (source / "all.json").write_text(text, encoding="utf-8")
    return IngestConfig(source=str(source), ledger="unused", coco="all.json")


def test_each_image_of_the_file_is_a_pair_with_its_annotations(tmp_path: Path) -> None:
    config = put(tmp_path, body())
    assert find_pairs(str(tmp_path), config, ONE_MASK) == [
        Pair(key="a.v1", image="images/sub/a.v1.png", masks=("all.json#5",)),
        Pair(key="b", image="images/b.png", masks=("all.json#7",)),
    ]


def test_an_images_annotations_are_canonical_bytes(tmp_path: Path) -> None:
    put(tmp_path, body())
    found = read_reference(str(tmp_path), "all.json#7")
    assert found.name == f"{tmp_path}/all.json#7"
    assert found.data.decode() == (
        '{"annotations":[{"category":"cell","iscrowd":0,"segmentation":[[0,0,4,0,4,4,0,4]]},'
        '{"category":"cell","iscrowd":1,"segmentation":{"counts":"abc","size":[8,9]}}],"height":8,"width":9}'
    )
    assert read_reference(str(tmp_path), "all.json#5").data == b'{"annotations":[],"height":6,"width":6}'


def test_another_images_annotations_do_not_change_this_ones_bytes(tmp_path: Path) -> None:
    put(tmp_path, body())
    before = read_reference(str(tmp_path), "all.json#5")
    put(tmp_path, body(annotations=[]))
    # A file written within the same tick of the clock would look unchanged.
    os.utime(tmp_path / "all.json", ns=(1, 1))
    assert read_reference(str(tmp_path), "all.json#5") == before
    assert read_reference(str(tmp_path), "all.json#7").data == b'{"annotations":[],"height":8,"width":9}'


BAD: list[tuple[object, str]] = [
    ("{", "COCO file is no JSON: {f}: "),
    ("[]", "COCO file is incomplete: {f}: file: categories: expected a list, got nothing. Export it again."),
    (body(images=[{"id": 1}]), "COCO file is incomplete: {f}: image 1: height: expected a whole number, got nothing."),
    (
        body(images=[{"id": 1, "height": 1, "width": 1}]),
        "COCO file is incomplete: {f}: image 1: file_name: expected a text",
    ),
    (body(annotations=[{"id": 9}]), "COCO file is incomplete: {f}: annotation 9: image_id: expected a whole number"),
    (body(annotations=["x"]), "COCO file is incomplete: {f}: annotation 0: image_id: expected a whole number"),
    (
        body(annotations=[{"id": 9, "image_id": 7, "category_id": 3}]),
        "COCO file is incomplete: {f}: annotation 9: segmentation: expected a list or an object, got nothing.",
    ),
    (
        body(annotations=[{"id": 9, "image_id": 8, "category_id": 3}]),
        "COCO file names what it does not have: {f}: annotation 9: image 8. Export it again.",
    ),
    (
        body(annotations=[{"id": 9, "image_id": 7, "category_id": 4}]),
        "COCO file names what it does not have: {f}: annotation 9: category 4. Export it again.",
    ),
    (body(images=[], annotations=[]), "no images: {f} lists none."),
    (body(images=[body()["images"][0]] * 2), "two images of one id: {f}: 7. "),
    (
        body(images=[{**body()["images"][0], "file_name": "../../b.png"}], annotations=[]),
        "a path out of the source: {f}: image 7: images/../../b.png. ",
    ),
    (
        body(images=[{**body()["images"][0], "file_name": "c.png"}], annotations=[]),
        "image of a COCO file is missing: {s}/images/c.png, named in {f}. Restore it, or correct ingest.coco_images.",
    ),
    (
        body(
            images=[{**body()["images"][0], "id": n, "file_name": name} for n, name in ((1, "b.png"), (2, "b.jpg"))],
            annotations=[],
        ),
        "two images for one sample: {f}: b: images/b.png and images/b.jpg. ",
    ),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_a_file_that_cannot_be_used_says_where(tmp_path: Path, content: object, message: str) -> None:
    config = put(tmp_path, content)
    with pytest.raises(DataError) as caught:
        find_pairs(str(tmp_path), config, ONE_MASK)
    assert str(caught.value).startswith(message.format(f=f"{tmp_path}/all.json", s=tmp_path))


def test_a_missing_file_or_image_is_named(tmp_path: Path) -> None:
    config = put(tmp_path, body())
    with pytest.raises(DataError, match=r"^no such image in a COCO file: .*all.json: id 1. "):
        read_reference(str(tmp_path), "all.json#1")
    (tmp_path / "all.json").unlink()
    with pytest.raises(DataError, match=r"^no such COCO file: all.json is not in .* Correct ingest.coco."):
        find_pairs(str(tmp_path), config, ONE_MASK)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "images": [], "annotations": []}',
         "two categories of one id: .*: 1"),
        ('{"categories": [], "images": [], "annotations": [], "annotations": []}', "an object with two 'annotations'"),
        ('{"categories": [{"id": 1, "name": "a"}], "images": [{"id": 1, "file_name": "a.png", "height": 2, "width": 2}],'
         ' "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "segmentation": []},'
         ' {"id": 7, "image_id": 1, "category_id": 1, "segmentation": []}]}', "two annotations of one id: .*: 7"),
    ],
)  # fmt: skip
def test_what_is_said_twice_is_refused(tmp_path: Path, text: str, told: str) -> None:
    from pipeline.coco import read_annotations

    (tmp_path / "c.json").write_text(text)
    with pytest.raises(DataError, match=told):
        read_annotations(str(tmp_path), "c.json", 1)
