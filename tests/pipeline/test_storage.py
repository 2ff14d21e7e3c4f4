"""Files on this machine and at URLs, read by name."""

from pathlib import Path

import pytest

from pipeline.storage import read_file
from unet_core.errors import DataError


def test_a_file_below_a_folder_is_read_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"seven")
    found = read_file(str(tmp_path), "a.txt")
    assert (found.name, found.data) == (f"{tmp_path}/a.txt", b"seven")


def test_a_file_at_a_url_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"seven")
    assert read_file(f"file://{tmp_path}", "a.txt").data == b"seven"


@pytest.mark.parametrize("root", ["", "file://"])
@pytest.mark.parametrize("name", ["gone.png", "."])
def test_what_is_no_file_is_named(tmp_path: Path, root: str, name: str) -> None:
    with pytest.raises(DataError) as caught:
        read_file(f"{root}{tmp_path}", name)
    assert str(caught.value) == f"a file is missing: {root}{tmp_path}/{name}. Restore it, or remove the sample."
