"""The page about drift: of comparisons made here, with copies of images as files."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from pipeline.drift_look import Found
from pipeline.drift_page import NUM_ODD, odd_images, render
from pipeline.drift_reference import Reference
from pipeline.drift_statistics import Comparison, DriftConfig, compare, recent_quantities, training_quantities
from pipeline.prediction_log import Entry, LogRead
from unet_core.traits import Traits

#: The page takes the picture as it is.
SHARES = b"a picture"
FEW = DriftConfig(min_images=3)
SINCE = datetime(2026, 11, 1, tzinfo=UTC)
PLAIN = Traits(
    height=512, width=512, means=(0.5,), deviations=(0.1,), channel_range=None, shares={"ring": 0.2}, embedding=()
)
EVIL = "<script>alert('1')</script>\" onerror=\"x"


class Reader(HTMLParser):
    """Tags, texts of alternatives, and rows of tables; every tag must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.alternatives: list[str] = []
        self.attributes: set[str] = set()
        self.rows: list[list[str]] = []
        self.heads: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.alternatives += [value or "" for name, value in attrs if name == "alt"]
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.rows[-1][-1] += data
        if self.open and self.open[-1] == "h2":
            self.heads.append(data)

    def row(self, name: str, *, last: bool = False) -> list[str]:
        """The cells beside a name, in the first table that has it, or the last one."""
        return [row[1:] for row in self.rows if row and row[0] == name][-1 if last else 0]


def images(count: int = 6, **changes) -> list[Traits]:
    """Images that differ a little, in brightness and in two features."""
    return [
        replace(PLAIN, **{"means": (0.5 + number / 100,), "embedding": (float(number), float(number % 2)), **changes})
        for number in range(count)
    ]


def look(
    recent: Sequence[Traits],
    training: Sequence[Traits],
    *,
    copies: Sequence[str | None] = (),
    masks: Mapping[str, float | None] | None = None,
    sentence: str = "what was said",
) -> Found:
    new, old = recent_quantities(recent, training), training_quantities(training)
    entries = tuple(
        Entry(
            time=SINCE + timedelta(days=number),
            image=f"new/{number}.png",
            version="v",
            model_sha256="m",
            traits=traits,
            copy=copies[number] if number < len(copies) else None,
        )
        for number, traits in enumerate(recent)
    )
    return Found(
        log=LogRead(entries=entries, num_of_others=0, num_damaged=0),
        since=SINCE,
        reference=Reference(
            training_sha256="t", num_images=len(training), images=tuple(training), mask_shares=masks or {}
        ),
        comparison=compare(new, old, FEW),
        recent=new,
        training=old,
        sentence=sentence,
    )


def page_of(found: Found, folder: Path = Path("nowhere")) -> str:
    return render(found, SHARES, folder)


@pytest.fixture
def nothing() -> Found:
    """A look that found no predictions."""
    return Found(
        log=LogRead(entries=(), num_of_others=0, num_damaged=0),
        since=SINCE,
        reference=None,
        comparison=Comparison(decision="too few to tell", num_recent=0, num_training=None, findings=()),
        recent={},
        training={},
        sentence="too few to tell: 0 images",
    )


def test_without_predictions_the_page_is_the_sentence_alone(nothing: Found) -> None:
    text = render(nothing, None, Path("nowhere"))
    page = Reader(text)
    assert '<div class="verdict wait"><p><b>too few to tell: 0 images</b></p></div>' in text
    assert (page.heads, page.rows, "img" in page.tags) == ([], [], False)
    assert odd_images(nothing) == []


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (1, "1 prediction by another model is left out. 1 line of the log can't be read."),
        (2, "2 predictions by other models are left out. 2 lines of the log can't be read."),
    ],
)
def test_what_is_left_out_is_counted(nothing: Found, count: int, told: str) -> None:
    log = replace(nothing.log, num_of_others=count, num_damaged=count)
    assert f">{told}<" in render(replace(nothing, log=log), None, Path("nowhere"))


@pytest.mark.parametrize(("brighter", "css"), [(0.0, "promoted"), (0.4, "not")])
def test_the_verdict_has_the_colour_of_the_decision(brighter: float, css: str) -> None:
    recent = [replace(image, means=(image.means[0] + brighter,)) for image in images(30)]
    text = page_of(look(recent, images(30)))
    assert f'<div class="verdict {css}"><p><b>what was said</b>' in text
    assert base64.b64encode(SHARES).decode() in text


def test_names_that_others_chose_are_text_and_no_markup(tmp_path: Path) -> None:
    Image.new("L", (4, 3)).save(tmp_path / "a.png")
    found = look(
        images(shares={EVIL: 0.5}), images(shares={EVIL: 0.5}), copies=["a.png"], masks={EVIL: 0.1}, sentence=EVIL
    )
    log = replace(found.log, entries=tuple(replace(entry, image=EVIL) for entry in found.log.entries))
    text = page_of(replace(found, log=log), tmp_path)
    page = Reader(text)
    assert "script" not in page.tags
    assert "onerror" not in page.attributes
    assert EVIL in page.alternatives
    assert page.row(f"share of {EVIL}")[0] == "0.00"
    assert page.row(EVIL)[0] == "50.00%"
    assert "the model predicts &lt;script&gt;" in text


def test_a_row_tells_of_both_sides_and_of_what_training_never_had() -> None:
    recent = [replace(PLAIN, means=(value,)) for value in (0.1, 0.5, 0.5, 0.9)]
    training = [replace(PLAIN, means=(value,)) for value in (0.4, 0.5, 0.6)]
    distance, _, new, old, unseen, is_drift = Reader(page_of(look(recent, training))).row("brightness")
    # By hand: below 0.4 lies one of four and none, up to 0.6 three of four and all.
    assert (distance, new, old) == ("0.25", "0.5 (0.16 to 0.84)", "0.5 (0.41 to 0.59)")
    assert (unseen, is_drift) == ("50%", "")


def test_sizes_of_large_images_are_told_to_the_pixel() -> None:
    training = images(height=1024)
    page = Reader(page_of(look(images(height=1536), training)))
    assert page.row("height")[2:] == ["1536 (1536 to 1536)", "1024 (1024 to 1024)", "100%", "drift"]


def test_what_recent_images_lack_is_undefined() -> None:
    page = Reader(page_of(look(images(shares={}, embedding=()), images(), masks={"ring": None})))
    assert page.row("share of ring") == ["undefined", "", "none", "0.2 (0.2 to 0.2)", "", ""]
    assert page.row("ring") == ["undefined", "20.00%", "undefined"]
    # Without features no image is odd.
    assert page.heads == ["Quantities", "Classes", "When"]


@pytest.mark.parametrize(
    ("predicted", "true", "is_told"),
    [(0.4, 0.2, False), (0.41, 0.2, True), (0.1, 0.2, False), (0.09, 0.2, True), (0.0, 0.0, False), (0.1, 0.0, True)],
)
def test_a_class_is_told_where_predictions_on_training_images_are_beyond_twice_or_half_their_masks(
    predicted: float, true: float, is_told: bool
) -> None:
    training = images(4, shares={"ring": predicted})
    text = page_of(look(training, training, masks={"ring": true}))
    assert ("the model predicts ring more than twice" in text) == is_told


def test_odd_images_are_those_with_features_farthest_from_the_training_images() -> None:
    far = [replace(PLAIN, embedding=(float(number), 0.0)) for number in (3, 50, 4, 90)]
    unknown = replace(PLAIN, embedding=(None, None))
    found = look([*far, unknown], images())
    assert [entry.image for entry, _ in odd_images(found)] == ["new/3.png", "new/1.png", "new/2.png", "new/0.png"]
    distances = [distance for _, distance in odd_images(found)]
    assert distances == sorted(distances, reverse=True)
    page = Reader(page_of(found))
    assert page.row("new/3.png") == ["2026-11-04", f"{distances[0]:.2f}"]
    assert not any("new/4.png" in row for row in page.rows)
    assert len(odd_images(look(images(NUM_ODD + 5), images()))) == NUM_ODD


def test_only_pictures_below_the_logs_folder_are_shown(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    for path in ("log/a.png", "outside.png", "log/b.txt"):
        Image.new("L", (4, 3)).save(tmp_path / path, format="PNG")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "folder.png").mkdir()
    (folder / "circle.png").symlink_to(folder / "circle.png")
    no_names = ["zero\0.png", "n" * 300 + ".png", "circle.png"]
    copies = [
        "a.png",
        *no_names,
        "../outside.png",
        str(tmp_path / "outside.png"),
        "link.png",
        "b.txt",
        "folder.png",
        "gone.png",
    ]
    page = Reader(page_of(look(images(10), images(10), copies=copies), folder))
    assert [text for text in page.alternatives if text.startswith("new/")] == ["new/0.png"]
    # All of them are in the table.
    assert all(page.row(f"new/{number}.png") for number in range(10))


def test_the_largest_distance_and_that_of_features_are_shown_by_time() -> None:
    brighter = [replace(image, means=(0.9,)) for image in images()]
    by_time = [text for text in Reader(page_of(look(brighter, images()))).alternatives if text.endswith(" by time")]
    assert by_time == ["brightness by time", "embedding distance by time"]
    # To both sides, which a direction sees half of.
    odd = [replace(image, embedding=(400.0 * (-1) ** number, 0.0)) for number, image in enumerate(images())]
    by_time = [text for text in Reader(page_of(look(odd, images()))).alternatives if text.endswith(" by time")]
    assert by_time == ["embedding distance by time"]


def test_times_of_other_zones_are_told_as_those_of_utc() -> None:
    found = look(images(), images())
    east = timezone(timedelta(hours=14))
    moved = tuple(replace(entry, time=entry.time.astimezone(east)) for entry in found.log.entries)
    assert page_of(replace(found, log=replace(found.log, entries=moved))) == page_of(found)
    west = tuple(replace(entry, time=entry.time.replace(tzinfo=east)) for entry in found.log.entries)
    assert page_of(replace(found, log=replace(found.log, entries=west))) != page_of(found)
