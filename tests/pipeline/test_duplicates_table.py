from pathlib import Path

import pytest

from pipeline.duplicates_table import DuplicatePair, read_duplicates, write_duplicates
from unet_core.errors import DataError

ONE = DuplicatePair(a='größe, "x"', b="with\nline", kind="near", masks_agree=False)
OTHER = DuplicatePair(a="007", b="008", kind="exact", masks_agree=True)


def test_pairs_are_read_as_they_were_written_in_order(tmp_path: Path) -> None:
    path = tmp_path / "data" / "duplicates.csv"
    write_duplicates(path, [ONE, OTHER])
    assert read_duplicates(path) == [OTHER, ONE]
    assert path.read_bytes().startswith(b'"a","b","kind","masks_agree"\n"007","008","exact","true"\n')


def test_a_table_without_pairs_is_read_as_one(tmp_path: Path) -> None:
    write_duplicates(tmp_path / "d.csv", [])
    assert read_duplicates(tmp_path / "d.csv") == []


@pytest.mark.parametrize("line", ["a,b,alike,true", "a,b,near,yes", "a,b,near", ""])
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(f"a,b,kind,masks_agree\n007,008,exact,true\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_duplicates(path)
    assert str(caught.value) == (
        f"not a pair of duplicates: {path}, line 3: {line.split(',') if line else []}, expected two keys, exact or near, "
        "true or false. Run the stage validate again."
    )


@pytest.mark.parametrize("text", ["", "key,split\na,b\n"])
def test_another_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"^not a table of duplicates: .*d.csv: its columns are \[.*\], not \['a', 'b'"):
        read_duplicates(path)
