from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.source import IngestConfig, Pair, find_pairs, list_pictures, read_table
from unet_core.errors import DataError
from unet_core.samples import ClassMap

ONE_MASK = ClassMap(kind="multiclass", classes={"background": 0, "cell": 255})
PLANES = ClassMap(kind="multilabel", classes={"ring": 255, "plus": 255})


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(path)


def config(**about: object) -> IngestConfig:
    return IngestConfig(source="unused", ledger="unused", **about)  # type: ignore[arg-type]


def refusal(source: Path, class_map: ClassMap = ONE_MASK, **about: object) -> str:
    with pytest.raises(DataError) as caught:
        find_pairs(source, config(**about), class_map)
    return str(caught.value)


def test_pairs_come_in_order_of_their_keys_with_paths_below_the_source(tmp_path: Path) -> None:
    for path in ("images/b.png", "images/a.bmp", "masks/a.png", "masks/b.tif"):
        put(tmp_path / path)
    assert find_pairs(tmp_path, config(), ONE_MASK) == [
        Pair(key="a", image="images/a.bmp", masks=("masks/a.png",)),
        Pair(key="b", image="images/b.png", masks=("masks/b.tif",)),
    ]


def test_folders_are_named_by_the_recipe(tmp_path: Path) -> None:
    put(tmp_path / "photos/a.png")
    put(tmp_path / "labels/a.png")
    pairs = find_pairs(tmp_path, config(images="photos", masks="labels"), ONE_MASK)
    assert pairs == [Pair(key="a", image="photos/a.png", masks=("labels/a.png",))]


def test_overlapping_classes_have_a_folder_each_in_the_recipes_order(tmp_path: Path) -> None:
    for path in ("images/a.png", "masks/ring/a.png", "masks/plus/a.png", "masks/unused/z.png"):
        put(tmp_path / path)
    assert find_pairs(tmp_path, config(), PLANES) == [
        Pair(key="a", image="images/a.png", masks=("masks/ring/a.png", "masks/plus/a.png"))
    ]


def test_a_mask_missing_in_one_class_folder_is_an_image_without_mask(tmp_path: Path) -> None:
    for path in ("images/a.png", "masks/ring/a.png"):
        put(tmp_path / path)
    assert refusal(tmp_path, PLANES) == (
        f"image without mask: {tmp_path}/images/a.png: nothing of that name in {tmp_path}/masks/plus. "
        "Add the mask, or remove the image."
    )


def test_no_such_folder(tmp_path: Path) -> None:
    text = refusal(tmp_path / "none")
    assert text == f"no such folder: {tmp_path}/none. Correct ingest.source in params.yaml, or restore the data."


def test_a_folder_without_images_says_what_belongs_there(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").write_text("nothing", encoding="utf-8")
    text = refusal(tmp_path)
    assert text.startswith(f"no images: {tmp_path}/images has no picture files. Put images there (.bmp, .gif, .jpeg")
    assert text.endswith("or correct ingest.images.")


def test_an_image_without_mask_is_named_and_the_others_counted(tmp_path: Path) -> None:
    for path in ("images/a.png", "images/b.png", "images/c.png", "masks/b.png"):
        put(tmp_path / path)
    assert refusal(tmp_path) == (
        f"image without mask: {tmp_path}/images/a.png (and 1 more): nothing of that name in {tmp_path}/masks. "
        "Add the mask, or remove the image."
    )


def test_a_mask_without_image_is_named(tmp_path: Path) -> None:
    for path in ("images/a.png", "masks/a.png", "masks/b.png"):
        put(tmp_path / path)
    assert refusal(tmp_path) == (
        f"mask without image: {tmp_path}/masks/b.png: nothing of that name in {tmp_path}/images. "
        "Add the image, or remove the mask."
    )


def test_one_name_with_two_endings_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"^two files of one name: .*a.jpg and a.png. Keep one of them."):
        list_pictures(tmp_path)


def test_a_dot_inside_a_name_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "scan.v2.png")
    with pytest.raises(DataError, match=r"^a dot inside a name: .*scan.v2.png. Rename the file: a key ends at its"):
        list_pictures(tmp_path)


def test_hidden_and_other_files_are_no_pictures(tmp_path: Path) -> None:
    put(tmp_path / "A.PNG")
    (tmp_path / ".a.png").write_bytes(b"of a file manager")
    (tmp_path / "Thumbs.db").write_bytes(b"")
    assert list(list_pictures(tmp_path)) == ["A"]


def write_table(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_without_a_table_nothing_is_known(tmp_path: Path) -> None:
    assert read_table(tmp_path, config()) == {}


def test_a_csv_has_its_columns_in_the_first_line(tmp_path: Path) -> None:
    write_table(tmp_path, "t.csv", 'key,patient,note\na,p1,"one, two"\n\nb,p2,\n')
    assert read_table(tmp_path, config(table="t.csv", group_column="patient")) == {
        "a": {"key": "a", "patient": "p1", "note": "one, two"},
        "b": {"key": "b", "patient": "p2", "note": ""},
    }


def test_a_tsv_is_parted_at_tabs(tmp_path: Path) -> None:
    write_table(tmp_path, "t.tsv", "key\tpatient\na\tp 1\n")
    assert read_table(tmp_path, config(table="t.tsv")) == {"a": {"key": "a", "patient": "p 1"}}


def test_a_text_without_header_takes_its_columns_from_the_recipe(tmp_path: Path) -> None:
    write_table(tmp_path, "splits.txt", "train 007\nval  008\n")
    about = config(table="splits.txt", table_columns=["split", "key"], split_column="split")
    assert read_table(tmp_path, about) == {
        "007": {"split": "train", "key": "007"},
        "008": {"split": "val", "key": "008"},
    }


@pytest.mark.parametrize("about", [{"key_column": "id"}, {"split_column": "id"}, {"group_column": "id"}])
def test_a_missing_column_is_named_beside_those_that_exist(tmp_path: Path, about: dict[str, str]) -> None:
    write_table(tmp_path, "t.csv", "key,split\na,train\n")
    with pytest.raises(DataError) as caught:
        read_table(tmp_path, config(table="t.csv", **about))
    assert str(caught.value) == (
        f"no such column: {tmp_path}/t.csv: id. It has ['key', 'split']; correct the ingest section."
    )


def test_an_empty_table_has_no_columns(tmp_path: Path) -> None:
    write_table(tmp_path, "t.csv", "")
    with pytest.raises(DataError, match=r"no such column: .*t.csv: key. It has \[\]"):
        read_table(tmp_path, config(table="t.csv"))


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^table can't be read: .*t.csv: No such file or directory. Correct ingest"):
        read_table(tmp_path, config(table="t.csv"))


def test_a_line_that_is_too_short_for_its_columns_is_named(tmp_path: Path) -> None:
    write_table(tmp_path, "splits.txt", "train 007\nval\n")
    with pytest.raises(DataError, match=r"splits\.txt.*2"):
        read_table(tmp_path, config(table="splits.txt", table_columns=["split", "key"], split_column="split"))


def test_a_line_without_its_group_is_named(tmp_path: Path) -> None:
    write_table(tmp_path, "t.csv", "key,patient\na,p1\nb\n")
    with pytest.raises(DataError, match=r"t\.csv.*3"):
        read_table(tmp_path, config(table="t.csv", group_column="patient"))


def test_two_lines_for_one_sample_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path, "t.csv", "key,split\na,train\na,test\n")
    with pytest.raises(DataError, match=r"t\.csv.*a"):
        read_table(tmp_path, config(table="t.csv", split_column="split"))


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("key,patient\na,p1\n", encoding="utf-8-sig")
    assert read_table(tmp_path, config(table="t.csv")) == {"a": {"key": "a", "patient": "p1"}}


def test_a_table_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"key,patient\na,M\xfcller\n")
    with pytest.raises(DataError, match=r"table can't be read: .*t\.csv"):
        read_table(tmp_path, config(table="t.csv"))
