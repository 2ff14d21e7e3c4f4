import datetime
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from pipeline.source import IngestConfig, Pair
from pipeline.table import About, list_samples, read_table, tell_about
from unet_core.errors import DataError, RecipeError
from unet_core.samples import ClassMap

ONE_MASK = ClassMap(kind="multiclass", classes={"background": 0, "cell": 255})
PLANES = ClassMap(kind="multilabel", classes={"ring": 255, "plus": 255})
OBJECTS = ClassMap(kind="instances", classes={"background": 0, "cell": 1})  # type: ignore[arg-type]


def config(**about: object) -> IngestConfig:
    return IngestConfig(source="unused", ledger="unused", **about)  # type: ignore[arg-type]


def write_table(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_without_a_table_nothing_is_known(tmp_path: Path) -> None:
    assert read_table(str(tmp_path), config()) == {}


def test_a_csv_has_its_columns_in_the_first_line(tmp_path: Path) -> None:
    write_table(tmp_path, "t.csv", 'key,patient,note\na,p1,"one, two"\n\nb,p2,\n')
    assert read_table(str(tmp_path), config(table="t.csv", group_column="patient")) == {
        "a": {"key": "a", "patient": "p1", "note": "one, two"},
        "b": {"key": "b", "patient": "p2", "note": ""},
    }


def test_a_tsv_is_parted_at_tabs(tmp_path: Path) -> None:
    write_table(tmp_path, "t.tsv", "key\tpatient\na\tp 1\n")
    assert read_table(str(tmp_path), config(table="t.tsv")) == {"a": {"key": "a", "patient": "p 1"}}


def test_a_text_without_header_takes_its_columns_from_the_recipe(tmp_path: Path) -> None:
    write_table(tmp_path, "splits.txt", "train 007\nval  008\n")
    about = config(table="splits.txt", table_columns=["split", "key"], split_column="split")
    assert read_table(str(tmp_path), about) == {
        "007": {"split": "train", "key": "007"},
        "008": {"split": "val", "key": "008"},
    }


@pytest.mark.parametrize(
    "about",
    [{name: "id"} for name in ("key_column", "split_column", "group_column", "stratum_column", "order_column")]
    + [{"slice_columns": ["id"]}],
)
def test_a_missing_column_is_named_beside_those_that_exist(tmp_path: Path, about: dict[str, object]) -> None:
    write_table(tmp_path, "t.csv", "key,split\na,train\n")
    with pytest.raises(DataError) as caught:
        read_table(str(tmp_path), config(table="t.csv", **about))
    assert str(caught.value) == (
        f"no such column: {tmp_path}/t.csv: id. It has ['key', 'split']; correct the ingest section."
    )


def test_an_empty_table_has_no_columns(tmp_path: Path) -> None:
    write_table(tmp_path, "t.csv", "")
    with pytest.raises(DataError, match=r"no such column: .*t.csv: key. It has \[\]"):
        read_table(str(tmp_path), config(table="t.csv"))


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^no such table: .*t.csv. Correct ingest.table, or restore the file.$"):
        read_table(str(tmp_path), config(table="t.csv"))


def test_a_line_that_is_too_short_for_its_columns_is_named(tmp_path: Path) -> None:
    write_table(tmp_path, "splits.txt", "train 007\nval\n")
    with pytest.raises(DataError, match=r"splits\.txt.*2"):
        read_table(str(tmp_path), config(table="splits.txt", table_columns=["split", "key"], split_column="split"))


def test_a_line_without_its_group_is_named(tmp_path: Path) -> None:
    write_table(tmp_path, "t.csv", "key,patient\na,p1\nb\n")
    with pytest.raises(DataError, match=r"t\.csv.*3"):
        read_table(str(tmp_path), config(table="t.csv", group_column="patient"))


def test_blank_lines_and_lines_inside_a_cell_are_counted(tmp_path: Path) -> None:
    write_table(tmp_path, "t.csv", 'key,patient\n\na,"p\n1"\n\nb,\n')
    with pytest.raises(DataError) as caught:
        read_table(str(tmp_path), config(table="t.csv", group_column="patient"))
    assert str(caught.value) == f"an empty cell: {tmp_path}/t.csv: line 6: no patient. Complete the line."
    write_table(tmp_path, "splits.txt", "\n\ntrain 007\n\nval\n")
    with pytest.raises(DataError, match=r"splits.txt: line 5: no key"):
        read_table(str(tmp_path), config(table="splits.txt", table_columns=["split", "key"]))


def test_a_cell_too_large_for_csv_is_no_traceback(tmp_path: Path) -> None:
    write_table(tmp_path, "t.csv", "key\na\n" + "b" * 200_000 + "\n")
    with pytest.raises(DataError, match=r"^table can't be read: .*t.csv: line 3: field larger"):
        read_table(str(tmp_path), config(table="t.csv"))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path, "t.csv", "key,a,a\n")
    with pytest.raises(DataError, match=r"^two columns of one name: .*t.csv: a. Rename"):
        read_table(str(tmp_path), config(table="t.csv"))


def test_parquet_is_read_as_a_csv_would_be(tmp_path: Path) -> None:
    columns = {"key": ["a", "b"], "n": [3.0, None], "files": [["x", "y"], []], "day": [datetime.date(2024, 1, 2)] * 2}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    assert read_table(str(tmp_path), config(table="t.parquet")) == {
        "a": {"key": "a", "n": "3", "files": ("x", "y"), "day": "2024-01-02"},
        "b": {"key": "b", "n": "", "files": (), "day": "2024-01-02"},
    }
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"^table can't be read: .*t.parquet: "):
        read_table(str(tmp_path), config(table="t.parquet"))


def test_a_place_in_a_volume_is_a_whole_number(tmp_path: Path) -> None:
    write_table(tmp_path, "t.csv", "key,z\na,1\nb,two\n")
    with pytest.raises(DataError) as caught:
        read_table(str(tmp_path), config(table="t.csv", order_column="z"))
    assert str(caught.value) == (
        f"not a whole number: {tmp_path}/t.csv: line 3: z: two. Write the place as 0, 1, 2 ..."
    )


def test_table_and_path_tell_about_a_sample() -> None:
    pair = Pair(key="a", image="p1/a.png", masks=("m.png",), group="p1", slices={"modality": "ct"})
    row = {"site": "north", "z": "4", "stain": "", "age": "30", "use": "train"}
    about = config(
        table="t.csv", stratum_column="site", order_column="z", split_column="use", slice_columns=["stain", "age"]
    )
    assert tell_about(pair, row, about) == About(
        group="p1", split="train", stratum="north", position=4, slices={"modality": "ct", "age": "30"}
    )
    alone = Pair(key="a", image="a.png", masks=("m.png",))
    assert tell_about(alone, {}, config()) == About(group="a", split=None, stratum=None, position=None, slices={})
    with pytest.raises(RecipeError, match=r"^ingest: group_column and \{group\} in image_pattern both name groups"):
        tell_about(pair, row, config(table="t.csv", group_column="site"))


MANIFEST = {"table": "m.csv", "image_column": "image", "mask_column": "mask"}


def manifest(folder: Path, text: str, class_map: ClassMap = ONE_MASK, **about: object) -> list[Pair]:
    write_table(folder, "m.csv", text)
    names = ["x/a.png", "x/b.png", "y/a.png", "y/b.png", "y/c.png"]
    return list_samples(str(folder), names, config(**{**MANIFEST, **about}), class_map)


def test_a_manifest_lists_samples_named_by_their_images(tmp_path: Path) -> None:
    assert manifest(tmp_path, "image,mask\n./x/b.png,y/b.png\nx/a.png,y/a.png\n") == [
        Pair(key="a", image="x/a.png", masks=("y/a.png",)),
        Pair(key="b", image="x/b.png", masks=("y/b.png",)),
    ]


def test_a_manifest_may_name_its_samples(tmp_path: Path) -> None:
    (pair,) = manifest(tmp_path, "key,image,mask\nscan 7.b,x/b.png,y/b.png\n")
    assert pair.key == "scan 7.b"


def test_a_manifest_has_a_mask_per_class_or_several_per_image(tmp_path: Path) -> None:
    columns = {"ring": "r", "plus": "p"}
    (pair,) = manifest(tmp_path, "image,p,r\nx/a.png,y/a.png,y/b.png\n", PLANES, mask_column=None, mask_columns=columns)
    assert pair.masks == ("y/b.png", "y/a.png")
    (pair,) = manifest(tmp_path, "image,mask\nx/a.png,y/a.png;y/b.png\n", OBJECTS)
    assert pair.masks == ("y/a.png", "y/b.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image,mask\n/etc/passwd,y/a.png\n",
            "a path out of the source: {t}: passwd: /etc/passwd. Write paths relative",
        ),
        ("image,mask\nx/a.png,../a.png\n", "a path out of the source: {t}: a: ../a.png. Write paths relative to "),
        ("image,mask\nx/a.png,y/z.png\n", "no such file: {t}: a: y/z.png is not in "),
        (
            "image,mask\nx/a.png,y/a.png;y/b.png\n",
            "several masks for one image: {t}: a: ('y/a.png', 'y/b.png'). Masks of",
        ),
        ("image,mask\nx/a.png,;\n", "an empty cell: {t}: a: no mask. "),
        (
            "image,mask\nx/a.png,y/a.png\ny/a.png,y/b.png\n",
            "two lines for one sample: {t}: line 3: a. Keep one of them or,",
        ),
        (
            "key,image,mask\n1,x/a.png,y/a.png\n2,x/a.png,y/b.png\n",
            "one image for two samples: {t}: x/a.png: 1 and 2. ",
        ),
        ("key,image,mask\na/b,x/a.png,y/a.png\n", "a key is a name, not a path: {t}: line 2: a/b. "),
        ("image,mask\n", "no samples: {t} has no lines. "),
    ],
)
def test_a_manifest_that_lists_what_is_not_there_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        manifest(tmp_path, text)
    assert str(caught.value).startswith(message.format(t=f"{tmp_path}/m.csv"))


def test_columns_of_masks_must_fit_the_kind(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^masks of kind multilabel: set ingest.mask_columns"):
        manifest(tmp_path, "image,mask\n", PLANES)
    with pytest.raises(
        RecipeError, match=r"^ingest.mask_columns: has \['ring'\], masks.classes has \['plus', 'ring'\]."
    ):
        manifest(tmp_path, "image,mask\n", PLANES, mask_column=None, mask_columns={"ring": "mask"})


def test_two_lines_for_one_sample_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path, "t.csv", "key,split\na,train\na,test\n")
    with pytest.raises(DataError, match=r"t\.csv.*a"):
        read_table(str(tmp_path), config(table="t.csv", split_column="split"))


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("key,patient\na,p1\n", encoding="utf-8-sig")
    assert read_table(str(tmp_path), config(table="t.csv")) == {"a": {"key": "a", "patient": "p1"}}


def test_a_table_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"key,patient\na,M\xfcller\n")
    with pytest.raises(DataError, match=r"table can't be read: .*t\.csv"):
        read_table(str(tmp_path), config(table="t.csv"))


def test_a_line_with_more_cells_than_columns_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path, "about.csv", "key,stain,group\na,H,E,p1\n")
    with pytest.raises(DataError, match=r"^too many cells: .*about.csv: line 2: 4 cells, 3 columns. Quote cells that"):
        read_table(str(tmp_path), config(table="about.csv"))


def test_spaces_around_a_cell_make_no_other_group(tmp_path: Path) -> None:
    write_table(tmp_path, "about.csv", "key,group\na,p1\nb, p1 \n")
    found = read_table(str(tmp_path), config(table="about.csv", group_column="group"))
    assert {row["group"] for row in found.values()} == {"p1"}


def test_a_mask_belongs_to_one_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^one mask for two: .*: y/c.png: a and b\. Name each sample's own mask"):
        manifest(tmp_path, "image,mask\nx/a.png,y/c.png\nx/b.png,y/c.png\n")
    with pytest.raises(DataError, match=r"^one mask for two: .*: x/a.png: its own image\."):
        manifest(tmp_path, "image,mask\nx/a.png,x/a.png\n")
