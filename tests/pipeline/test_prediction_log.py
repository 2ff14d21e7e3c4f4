import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.prediction_log import Logbook, append_entry, read_log, small_copy
from unet_core.traits import Traits

TRAITS = Traits(
    height=12, width=16, means=(0.25, 0.5), deviations=(0.1, 0.0), channel_range=0.25,
    shares={"ring": 0.125}, embedding=(1.5, None),
)  # fmt: skip
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def book(folder: Path, *, model: str = "m1", most: int = 10**6) -> Logbook:
    return Logbook(folder=folder, what="images", model_sha256=model, copies_bytes=most)


def add(log: Logbook, image: str, *, version: str = "v", copy: bytes | None = None) -> bool:
    return append_entry(log, image=image, version=version, traits=TRAITS, copy=copy)


def read(folder: Path, *, since: datetime = LONG_AGO, most: int = 100, model: str = "m1"):
    return read_log(folder, model_sha256=model, since=since, most=most)


def file_of(folder: Path) -> Path:
    (path,) = folder.glob("*.jsonl")
    return path


def test_what_is_written_is_read_with_undefined_values(tmp_path: Path) -> None:
    assert read(tmp_path).entries == ()
    before = datetime.now(UTC).replace(microsecond=0)
    assert add(book(tmp_path / "log"), "scans/ä.tif")
    (entry,) = read(tmp_path / "log").entries
    assert before <= entry.time <= datetime.now(UTC)
    assert (entry.image, entry.version, entry.model_sha256, entry.copy) == ("scans/ä.tif", "v", "m1", None)
    assert entry.traits == TRAITS
    assert file_of(tmp_path / "log").stem == entry.time.date().isoformat()


def test_a_name_that_is_no_utf8_is_logged(tmp_path: Path) -> None:
    image = os.fsdecode(b"n\xe4h.png")
    assert add(book(tmp_path), image, copy=small_copy(np.zeros((4, 4, 1), np.uint8)))
    (entry,) = read(tmp_path).entries
    assert entry.image == image
    assert entry.copy is not None


def test_a_line_with_a_size_that_is_no_number_of_pixels_is_damaged(tmp_path: Path) -> None:
    add(book(tmp_path), "a")
    path = file_of(tmp_path)
    path.write_text(path.read_text().replace('"height":12', '"height":Infinity'))
    assert (read(tmp_path).entries, read(tmp_path).num_damaged) == ((), 1)


def test_the_newest_of_each_image_counts_and_other_models_are_counted(tmp_path: Path) -> None:
    for image in ("a", "b", "a", "c"):
        add(book(tmp_path), image)
    add(book(tmp_path, model="m2"), "d")
    add(book(tmp_path), "a", version="changed")
    found = read(tmp_path)
    assert [(entry.image, entry.version) for entry in found.entries] == [
        ("b", "v"), ("a", "v"), ("c", "v"), ("a", "changed"),
    ]  # fmt: skip
    assert found.num_of_others == 1
    assert [entry.image for entry in read(tmp_path, most=2).entries] == ["c", "a"]


@pytest.mark.parametrize("block_bytes", [1, 7, 300, 2**20])
def test_a_log_is_read_from_its_end_in_blocks_of_any_size(tmp_path: Path, monkeypatch, block_bytes: int) -> None:
    for image in "abcd":
        add(book(tmp_path), image)
    today = file_of(tmp_path)
    yesterday = date.fromisoformat(today.stem) - timedelta(days=1)
    # A line that its writer could not end is the last of its file.
    (tmp_path / f"{yesterday}.jsonl").write_bytes(today.read_bytes() + b'{"format":')
    monkeypatch.setattr("pipeline.prediction_log.BLOCK_BYTES", block_bytes)
    found = read(tmp_path, most=5)
    assert ([entry.image for entry in found.entries], found.num_damaged) == (["a", "b", "c", "d"], 1)
    found = read(tmp_path, most=3)
    assert ([entry.image for entry in found.entries], found.num_damaged) == (["b", "c", "d"], 0)


def test_what_is_older_does_not_count(tmp_path: Path) -> None:
    add(book(tmp_path), "new")
    path = file_of(tmp_path)
    line = json.loads(path.read_text())
    day = datetime.now(UTC) - timedelta(days=9)
    old = {**line, "image": "old", "time": day.isoformat(timespec="seconds")}
    (tmp_path / f"{day.date().isoformat()}.jsonl").write_text(json.dumps(old) + "\n")
    (tmp_path / "notes.jsonl").write_text("somebody's\n")
    assert [entry.image for entry in read(tmp_path).entries] == ["old", "new"]
    assert [entry.image for entry in read(tmp_path, since=day + timedelta(hours=1)).entries] == ["new"]


@pytest.mark.parametrize("part", ["{", '{"format":1,"time":"2026-11-28T00:00:00+00:00","image":"x"', "[]", "1"])
def test_half_a_line_of_a_killed_process_spoils_no_other(tmp_path: Path, part: str) -> None:
    add(book(tmp_path), "a")
    with file_of(tmp_path).open("a") as stream:
        stream.write(part)
    add(book(tmp_path), "b")
    found = read(tmp_path)
    assert [entry.image for entry in found.entries] == ["a", "b"]
    assert found.num_damaged == 1


def test_a_time_without_a_zone_and_another_format_are_damage(tmp_path: Path) -> None:
    add(book(tmp_path), "a")
    line = json.loads(file_of(tmp_path).read_text())
    others = [{**line, "format": 2}, {**line, "time": "2026-11-28T00:00:00"}, {**line, "means": ["bright"]}]
    with file_of(tmp_path).open("a") as stream:
        stream.writelines(json.dumps(other) + "\n" for other in others)
    assert read(tmp_path).num_damaged == 3


WRITER = """
import sys
from pathlib import Path
from pipeline.prediction_log import Logbook, append_entry
from unet_core.traits import Traits
log = Logbook(folder=Path(sys.argv[1]), what="images", model_sha256="m1", copies_bytes=40_000)
traits = Traits(height=1, width=1, means=(0.5,), deviations=(0.0,), channel_range=None, shares={}, embedding=(0.5,) * 999)
for number in range(100):
    append_entry(log, image=f"{sys.argv[2]} {number}", version="", traits=traits, copy=b"x" * 1000)
"""


def test_several_processes_write_whole_lines_and_keep_the_limit_together(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    found = read(tmp_path, most=1000)
    assert (len(found.entries), found.num_damaged) == (300, 0)
    kept = [entry for entry in found.entries if entry.copy is not None]
    assert len(kept) == len(list(tmp_path.glob("images/*/*.png"))) == 40


def test_a_copy_is_never_overwritten_and_removing_some_makes_place(tmp_path: Path) -> None:
    log = book(tmp_path, most=25)
    assert add(log, "a", copy=b"1" * 10)
    assert add(log, "a", copy=b"2" * 10)
    (path,) = tmp_path.glob("images/*/*.png")
    assert path.read_bytes() == b"1" * 10
    assert add(log, "b", copy=b"3" * 10)
    assert not add(log, "c", copy=b"4" * 10)
    path.unlink()
    # Who found it full has done with it; the next process counts again.
    assert not add(log, "c", copy=b"4" * 10)
    assert add(replace(log, copies_bytes=26), "c", copy=b"4" * 10)
    assert [entry.copy is not None for entry in read(tmp_path).entries] == [True, True, True]


def test_a_copy_is_small_and_gray_or_colour() -> None:
    def opened(image: np.ndarray) -> Image.Image:
        return Image.open(io.BytesIO(small_copy(image)))

    assert opened(np.zeros((3000, 1000, 1), dtype=np.uint8)).size == (85, 256)
    small = opened(np.full((5, 7, 5), 65535, dtype=np.uint16))
    assert (small.size, small.mode, small.getpixel((0, 0))) == ((7, 5), "RGB", (255, 255, 255))
