"""A folder that is spoiled on purpose, with one sample of each kind of problem, and the page that shows it."""

import io
import json
import os
import signal
import struct
import zlib
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline import findings
from pipeline.catalog import CatalogRow
from pipeline.data_page import NUM_SHOWN, render
from pipeline.findings import KILLED, Finding, Findings, Reading, check_row, killed
from pipeline.page import Bar, table
from pipeline.references import hash_image, hash_masks
from unet_core.errors import DataError
from unet_core.images import FileBytes
from unet_core.samples import ClassMap, ImageConfig
from unet_core.synthetic import draw_shapes

PAGE, REJECTED = Path("reports/data.html"), Path("data/rejected.json")
EVIL = "<img src=x onerror=alert(1)>"
CELLS = ClassMap(kind="multiclass", classes={"background": 0, "cell": 255}, background="background")


class Reader(HTMLParser):
    """Texts, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def drawing(number: int, size: int = 96) -> np.ndarray:
    return draw_shapes(seed=3, number=number, height=size, width=size)[0]


def png(array: np.ndarray, mode: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format=mode)
    return stream.getvalue()


def mask_of(image: np.ndarray) -> bytes:
    return png((image > 128) * np.uint8(255))


def bomb() -> bytes:
    """A PNG of a few kilobytes that claims, and would unpack to, 40,000 x 40,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def spoil(tree) -> dict[str, str]:
    """Put good samples and one of each kind of problem; key -> how its reason begins."""
    whole = png(drawing(9))
    spoiled: dict[str, tuple[bytes, bytes, str]] = {
        "bomb": (bomb(), mask_of(drawing(1)), "image"),
        "empty": (b"", mask_of(drawing(3)), "image can't be read: raw/images/empty.png: the file is empty"),
        "long": (png(np.full((8, 401), 99, np.uint8)), png(np.zeros((8, 401), np.uint8)), "image too long for its"),
        "mask": (png(drawing(4)), mask_of(drawing(5))[:60], "mask can't be read: raw/masks/mask.png: "),
        "sizes": (png(drawing(6)), mask_of(drawing(6, 90)), "mask size differs from image: sizes: image 96x96, "),
        "small": (
            png(np.full((7, 40), 99, np.uint8)),
            png(np.zeros((7, 40), np.uint8)),
            "image too small: small: 40x7",
        ),
        "text": (b"no picture at all", mask_of(drawing(7)), "image can't be read: raw/images/text.png: "),
        "truncated": (whole[: len(whole) // 2], mask_of(drawing(9)), "image can't be read: raw/images/truncated.png: "),
        "twin_a": (png(drawing(10)), mask_of(drawing(10)), "masks contradict each other: twin_a: twin_b has"),
        "twin_b": (png(drawing(10)), png(np.zeros((96, 96), np.uint8)), "masks contradict each other: twin_b: twin_a"),
        "values": (png(drawing(11)), png(np.full((96, 96), 7, np.uint8)), "class value outside the recipe: "),
        EVIL: (png(drawing(12)), png(np.full((96, 96), 9, np.uint8)), "class value outside the recipe: "),
    }
    good = {f"good{number}": drawing(20 + number) for number in range(6)}
    good["copy"] = good["good0"]
    good["brighter"] = np.clip(good["good1"].astype(int) + 9, 0, 255).astype(np.uint8)
    for key, image in good.items():
        mask = mask_of(good["good1"] if key == "brighter" else image)
        # The ending says PNG, the content JPEG: what a file is, its content decides.
        put(tree, key, png(image, "JPEG") if key == "good5" else png(image), mask)
    for key, (image, mask, _) in spoiled.items():
        put(tree, key, image, mask)
    return {key: reason for key, (_, _, reason) in spoiled.items()}


def put(tree, key: str, image: bytes, mask: bytes) -> None:
    for folder, data in (("images", image), ("masks", mask)):
        path = tree.source / folder / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_a_spoiled_folder_gives_every_reason_and_a_whole_page_though_the_stage_fails(tree) -> None:
    reasons = spoil(tree)
    tree.write_recipe()
    tree.record()
    tree.run("ingest")
    with pytest.raises(DataError, match=rf"^{len(reasons)} of {len(reasons) + 8} samples are .* in reports/data.html;"):
        tree.run("validate")
    rejected = {entry["key"]: entry["reason"] for entry in json.loads(REJECTED.read_text(encoding="utf-8"))}
    assert set(rejected) == set(reasons)
    for key, beginning in reasons.items():
        assert rejected[key].startswith(beginning), rejected[key]
    page = Reader(PAGE.read_text(encoding="utf-8"))
    for key, reason in rejected.items():
        assert key in page.text
        assert reason in page.text
    assert "copy and good0: exact, masks agree" in page.text
    assert "brighter and good1: near, masks agree" in page.text
    assert "PNG, gray, 8 bits" in page.text
    assert "JPEG, gray, 8 bits" in page.text
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "script" not in page.tags


def test_an_image_with_other_channels_is_rejected(tree) -> None:
    put(tree, "a", png(np.zeros((96, 96, 3), np.uint8)), png(np.zeros((96, 96), np.uint8)))
    put(tree, "b", png(np.zeros((96, 96), np.uint8)), png(np.zeros((96, 96), np.uint8)))
    tree.write_recipe(images={"channels": 4})
    tree.record()
    tree.run("ingest")
    with pytest.raises(DataError, match="wrong number of channels: raw/images/a.png: 3, expected 4 "):
        tree.run("validate")


def row(folder: Path, key: str, image: bytes) -> CatalogRow:
    """A sample in `folder` with an empty mask."""
    mask = png(np.zeros((96, 96), np.uint8))
    for name, data in ((f"{key}.png", image), (f"{key}_mask.png", mask)):
        (folder / name).write_bytes(data)
    return CatalogRow(
        key=key,
        image=f"{key}.png",
        masks=(f"{key}_mask.png",),
        group=key,
        declared_split=None,
        batch=1,
        image_sha256=hash_image(FileBytes(name="", data=image)),
        mask_sha256=hash_masks([FileBytes(name="", data=mask)]),
    )


def reading(folder: Path) -> Reading:
    return Reading(source=str(folder), images=ImageConfig(channels=1), class_map=CELLS, min_px=8, max_aspect=50)


def test_a_file_that_killed_its_reader_is_not_read_for_the_page(tmp_path: Path, monkeypatch) -> None:
    read = []
    monkeypatch.setattr("pipeline.data_page.read_reference", lambda *about: read.append(about))
    bad = killed(row(tmp_path, "k", png(drawing(1))))
    assert (bad.reason or "").startswith(f"{KILLED}: k: k.png: ")
    found = Findings(good=(), bad=(bad,), pairs=(), num_crowded=3)
    page = Reader(render(summary(0, 1), found, reading(tmp_path), None))
    assert read == []
    assert "not read again" in page.text
    assert bad.reason in page.text
    assert "3 samples look like so many others" in page.text


def summary(accepted: int, rejected: int) -> dict:
    return {
        "accepted": accepted,
        "rejected": rejected,
        "image_sizes": 0,
        "class_fraction": {"background": 0.25, "cell": 0.75},
        "images_without_class": {"background": 0, "cell": 4},
        "exact_duplicates": 0,
        "near_duplicates": 0,
    }


def test_of_many_with_one_problem_some_are_shown_and_all_listed(tmp_path: Path) -> None:
    rows = [row(tmp_path, f"k{number}", b"") for number in range(5)]
    bad = tuple(Finding(row=one, reason=f"image can't be read: {one.key}.") for one in rows)
    found = Findings(good=(), bad=bad, pairs=(), num_crowded=0)
    page = Reader(render(summary(0, 5), found, reading(tmp_path), None))
    assert page.text.count("Image can't be read 3 of 5") == 1
    assert page.tags.count("figure") == NUM_SHOWN
    assert "All 5 rejected samples" in page.text
    assert all(finding.reason in page.text for finding in bad)


def test_a_bar_is_as_long_as_its_share() -> None:
    text = table(["class", ""], [("cell", Bar(share=0.5, colour="#ff0000"))])
    assert "<i style='width:50.00%;background:#ff0000'></i>" in text


def kill_or_check(one: CatalogRow, reading: Reading) -> Finding:
    if one.key == "k50":
        os.kill(os.getpid(), signal.SIGKILL)
    return check_row(one, reading)


@pytest.mark.slow
def test_a_file_that_ends_its_process_is_rejected_and_the_others_are_not(tmp_path: Path, monkeypatch, tree) -> None:
    from pipeline.placement import read_placement

    monkeypatch.setattr(findings, "check_row", kill_or_check)
    monkeypatch.setenv("UNET_PROCESSES", "2")
    rows = [row(tmp_path, f"k{number:02d}", png(drawing(number))) for number in range(60)]
    found = findings.check_all(rows, reading(tmp_path), read_placement())
    assert [finding.row.key for finding in found.bad] == ["k50"]
    assert (found.bad[0].reason or "").startswith("reading it ended the process: k50: k50.png: a decoder crashed")
    assert len(found.good) == 59


@pytest.mark.slow
def test_hostile_files_leave_no_memory_behind(tmp_path: Path) -> None:
    """As a worker reads them: one process, one after the other."""
    whole = png(drawing(0, 400))
    rng = np.random.default_rng(0)

    def damage(number: int) -> bytes:
        match number % 5:
            case 0:
                return bomb_bytes
            case 1:
                return whole[: int(rng.integers(0, len(whole)))]
            case 2:
                return b""
            case 3:
                return rng.bytes(3000)
        return whole[:100] + rng.bytes(50) + whole[150:]

    bomb_bytes = bomb()
    check = partial(check_row, reading=reading(tmp_path))
    process = psutil.Process()
    seen = []
    for number in range(600):
        found = check(row(tmp_path, "hostile", damage(number)))
        assert found.reason is not None
        seen.append(process.memory_info().rss / 1e6)
    # What the first hundred need stays; the next five hundred add next to nothing.
    assert max(seen) - min(seen[:100]) < 200
    assert seen[-1] - seen[99] < 20
