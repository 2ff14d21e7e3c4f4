"""A file is there whole, or as it was before."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.whole_file import write_whole

#: A writer that may write ten thousand bytes and not one more: as a full disk stops it in the middle.
ON_A_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from pipeline.whole_file import write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
write_whole(Path(sys.argv[1]), bytes(20_000))
"""


def test_a_file_is_written_with_its_folders(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "file", b"\x00whole\r\n")
    assert (tmp_path / "new" / "file").read_bytes() == b"\x00whole\r\n"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_link_gets_a_file_of_its_own(tmp_path: Path) -> None:
    # DVC may link its cache into the tree.
    cached, link = tmp_path / "cached", tmp_path / "link"
    cached.write_bytes(b"old")
    link.hardlink_to(cached)
    write_whole(link, b"new")
    assert (cached.read_bytes(), link.read_bytes()) == (b"old", b"new")


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK, path], capture_output=True, text=True, check=False, timeout=60
    )
    assert "File too large" in done.stderr
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("file", b"old")]


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "file.partial").write_bytes(b"half of so")
    write_whole(tmp_path / "file", b"whole")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("file", b"whole")]


def test_a_folder_in_the_files_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        write_whole(tmp_path / "file", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
