import dataclasses
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.comparison import Comparison
from pipeline.gate import Measured, Verdict
from pipeline.report_page import Page, add_promotion, render
from pipeline.scores import ScoreRow
from pipeline.tracking import Version

EVIL = "<script>alert(1)</script>"
SENTENCE = "promoted: Dice 0.912 vs 0.874, +0.038 (95 % interval +0.021 to +0.055) on 96 images"
PROMOTED = Verdict(decision="promoted", sentence=SENTENCE, images=96, groups=96, challenger=0.912, champion=0.874)


def version(number: str, **tags: str) -> Version:
    return Version(
        name="unet", number=number, run_id="run 7", model_sha256="cd" * 32, weights_sha256="ab" * 32, tags=tags
    )


def row(key: str, name: str, hit: int, missed: int) -> ScoreRow:
    score = hit / (hit + missed) if hit + missed else None
    return ScoreRow(
        key=key,
        class_name=name,
        scored=name != "soil",
        true_positive=hit,
        false_positive=0,
        false_negative=missed,
        dice=score,
        iou=score,
    )


def put_files(folder: Path) -> None:
    cases = folder / "cases"
    cases.mkdir()
    for number, path in enumerate(
        (folder / "data.png", folder / "val.png", cases / "0.png", cases / "1.png", folder / "plot.png")
    ):
        Image.fromarray(np.full((4, 4, 3), number, dtype=np.uint8)).save(path)
    lines = "\n".join(f"{step},{1 / step},0.01" for step in range(1, 5))
    (folder / "curves.csv").write_text(f"step,train_loss,learning_rate\n{lines}\n", encoding="utf-8")
    # Before the first defined score the cell is empty.
    (folder / "validation.csv").write_text("step,val_loss,val_dice\n2,0.6,\n4,0.4,0.8\n", encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    tmp_path = tmp_path_factory.mktemp("page")
    put_files(tmp_path)
    return Page(
        arrivals=[
            {"batch": 1, "new": 10, "changed": 0, "removed": 0},
            {"batch": 2, "new": 3, "changed": 4, "removed": 1},
        ],
        data={"accepted": 12, "image_sizes": 2, "class_fraction": {"soil": 0.9, "crop": 0.1, EVIL: 0.0}},
        splits={"train": 8, "val": 2, "test": 2},
        training={"val_loss": 0.1234, "steps": 40, "best_epoch": 7, "samples_resting_per_epoch": 1},
        scores={
            "dice": 0.8765,
            "interval_95": [0.81, 0.93],
            "images": 2,
            "class_dice": {"soil": 0.95, "crop": 0.8765, EVIL: None},
            "class_iou": {"soil": 0.9, "crop": 0.78, EVIL: None},
            "class_precision": {"soil": 0.91, "crop": 0.79, EVIL: None},
            "class_recall": {"soil": 0.92, "crop": 0.81, EVIL: None},
            "class_surface_dice": {"crop": 0.77, EVIL: None},
            "class_hausdorff95_px": {"crop": 4.25, EVIL: None},
            "images_without_dice": {"soil": 0, "crop": 0, EVIL: 2},
            "images_without_hausdorff95": {"crop": 1, EVIL: 2},
            "slices": {
                "stain": {
                    EVIL: {"dice": 0.5, "interval_95": [0.4, 0.6], "images": 1, "groups": 1},
                    "pink": {"dice": None, "interval_95": None, "images": 0, "groups": 0},
                }
            },
            "confusion": {"soil": {"soil": 1}},
            "pooled_dice": {"soil": 0.96, "crop": 0.88, EVIL: None},
            "pixel_error": 0.0321,
        },
        rejected=[{"key": EVIL, "reason": f"mask size differs: {EVIL}"}],
        cases=[
            {"kind": "worst", "key": EVIL, "score": 0.111, "picture": "0.png"},
            {"kind": "median", "key": "s01", "score": 0.999, "picture": "1.png"},
        ],
        colours={"soil": "#000000", "crop": "#e69f00", EVIL: "#56b4e9"},
        rows=[
            *(row("s00", "soil", 5, 0), row("s00", "crop", 3, 1), row("s00", EVIL, 0, 0)),
            *(row("s01", "soil", 5, 0), row("s01", "crop", 0, 0), row("s01", EVIL, 0, 0)),
        ],
        receipt={"model": f"unet {EVIL}", "weights_sha256": "ab" * 32},
        recipe=f"masks:\n  classes:\n    {EVIL}: 1\n",
        curves=tmp_path / "curves.csv",
        validation=tmp_path / "validation.csv",
        data_examples=tmp_path / "data.png",
        validation_examples=tmp_path / "val.png",
        score_plots=dict.fromkeys(("score_histogram", "calibration", "confusion", "slices"), tmp_path / "plot.png"),
        cases_dir=tmp_path / "cases",
    )


@pytest.fixture(scope="module")
def rendered(page: Page) -> str:
    return render(page)


@pytest.fixture
def report(rendered: str, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(rendered, encoding="utf-8")
    return path


class Reader(HTMLParser):
    """Tags in order, with what they refer to, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(rendered: str) -> None:
    read = Reader(rendered)
    # Data, validation, two cases, the curves, and four plots of scores.
    assert len(read.addresses) == 9
    assert all(address.startswith("data:image/png;base64,") for address in read.addresses)
    assert not {"script", "link", "iframe", "object", "embed"} & set(read.tags)
    assert "http://" not in rendered
    assert "https://" not in rendered
    assert "url(" not in rendered
    assert "@import" not in rendered


def test_every_tag_that_is_opened_is_closed(rendered: str) -> None:
    assert Reader(rendered).open == []


def test_the_page_says_the_scores(rendered: str) -> None:
    text = Reader(rendered).text
    for shown in ("0.876", "test Dice (95 % interval 0.810 to 0.930)", "0.123", "0.950", "0.780", "0.880", "3.21%"):
        assert shown in text, shown
    assert (
        "40 steps; the weights are those after epoch 7, best on validation. 1 sample rests in each epoch, another"
        in text
    )
    assert "12 images of 2 sizes: 8 train, 2 val, 2 test." in text
    assert "s01: 0.999" in text
    assert "ab" * 32 in text


def test_a_class_says_whether_it_counts_and_in_how_many_images_it_is(rendered: str) -> None:
    assert re.search(r"<td>soil \(not in the mean\)</td>(<td>[^<]+</td>){7}<td>2</td>", rendered)
    cells = ("0.876", "0.780", "0.790", "0.810", "0.880", "0.770", "4.2 px", "1")
    assert f"<td>crop</td>{''.join(f'<td>{cell}</td>' for cell in cells)}" in rendered


def test_undefined_scores_are_called_so_and_counted(rendered: str) -> None:
    cells = "<td>undefined</td>" * 7
    assert f"<td>{html.escape(EVIL)}</td>{cells}<td>0</td>" in rendered
    assert "Images where the Hausdorff distance is undefined, left out of its mean: crop 1" in rendered


def test_slices_are_shown_with_their_intervals(rendered: str) -> None:
    text = Reader(rendered).text
    assert "Test images by stain" in text
    assert f"{EVIL}0.5000.400 to 0.60011" in text
    assert "pinkundefinedunknown, too few groups00" in text


def test_without_a_confusion_matrix_there_is_no_picture_of_one(page: Page) -> None:
    scores = {name: value for name, value in page.scores.items() if name != "confusion"}
    assert "Where pixels of each true class went" not in render(dataclasses.replace(page, scores=scores))


def test_objects_have_a_table_of_their_own(page: Page, rendered: str) -> None:
    assert "average precision" not in rendered
    objects = {
        "average_precision": 0.612,
        "interval_95": [0.55, 0.67],
        "average_precision_at": {"0.50": 0.9, "0.75": 0.7, "0.90": None},
        "true": 120,
        "predicted": 118,
        "mean_absolute_count_error": 2.5,
    }
    text = Reader(render(dataclasses.replace(page, scores={**page.scores, "objects": objects}))).text
    assert "average precision, IoU 0.50 to 0.950.612 (0.550 to 0.670)" in text
    assert "objects, true and predicted120 and 118" in text


def test_names_from_outside_are_text_and_no_code(rendered: str) -> None:
    assert EVIL not in rendered
    # Heading, title, class tables, colours, rejected key and reason, case, recipe.
    assert rendered.count(html.escape(EVIL)) >= 8


def test_equal_results_are_equal_pages(page: Page, rendered: str) -> None:
    assert render(page) == rendered


def test_without_rejected_files_the_page_says_so(page: Page, rendered: str) -> None:
    assert "No file was rejected." in render(dataclasses.replace(page, rejected=[]))
    assert "1 files were rejected:" in rendered


def test_iou_can_be_the_main_score(page: Page) -> None:
    scores = {**page.scores, "iou": 0.654, "slices": {}}
    del scores["dice"]
    assert "test IoU (95 % interval 0.810 to 0.930)" in render(dataclasses.replace(page, scores=scores))


def test_a_promotion_is_a_page_of_its_own_and_leaves_the_report_alone(report: Path) -> None:
    before = report.read_bytes()
    made = add_promotion(report, PROMOTED, version("3", **{"git.commit": EVIL, "gate.sentence": "old"}), version("2"))
    assert made == report.with_name("promotion.html")
    assert report.read_bytes() == before
    text = made.read_text(encoding="utf-8")
    assert f"<b>{SENTENCE}</b>" in text
    assert "unet version 3 against version 2" in text
    assert '<div class="verdict promoted">' in text
    assert "run 7" in text
    assert EVIL not in text
    assert "gate.sentence" not in text
    assert Reader(text).open == []


def test_a_promotion_shows_classes_and_slices_side_by_side(report: Path) -> None:
    crop = Comparison(
        name="crop",
        column=None,
        images=9,
        groups=8,
        challenger=0.9,
        champion=0.85,
        difference=0.05,
        interval_95=(0.01, 0.09),
    )
    rare = dataclasses.replace(crop, name=EVIL, column="stain", difference=-0.05, interval_95=None)
    measured = Measured(ece=0.0312, weights_mb=1.94)
    verdict = dataclasses.replace(PROMOTED, classes=(crop,), slices=(rare,), measured=measured)
    text = add_promotion(report, verdict, version("3"), version("2")).read_text(encoding="utf-8")
    assert "crop0.9000.850+0.050+0.010 to +0.09098" in Reader(text).text
    assert f"stain: {EVIL}0.9000.850-0.050too few groups98" in Reader(text).text
    assert "Challenger: calibration error 0.031, weights 1.94 MB." in text


def test_a_first_champion_has_no_version_against_it(report: Path) -> None:
    assert "unet version 1 against no champion before" in add_promotion(report, PROMOTED, version("1"), None).read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(("decision", "css"), [("not promoted", "not"), ("too few to tell", "wait")])
def test_a_verdict_that_moved_nothing_looks_like_it(report: Path, decision, css: str) -> None:
    verdict = Verdict(decision=decision, sentence=f"{decision}: so", images=2, groups=2, challenger=0.5)
    text = add_promotion(report, verdict, version("3"), version("2")).read_text(encoding="utf-8")
    assert f'<div class="verdict {css}">' in text


def test_the_newest_verdict_replaces_an_older_one(report: Path) -> None:
    old = Verdict(decision="not promoted", sentence="an older sentence", images=2, groups=2, challenger=0.5)
    add_promotion(report, old, version("2"), version("1"))
    text = add_promotion(report, PROMOTED, version("3"), version("1")).read_text(encoding="utf-8")
    assert "an older sentence" not in text
    assert SENTENCE in text


def test_what_the_latest_batches_brought_is_shown_from_the_second_on(page: Page, rendered: str) -> None:
    assert "<tr><td>2</td><td>3</td><td>4</td><td>1</td></tr>" in rendered
    assert "latest batches" not in render(dataclasses.replace(page, arrivals=page.arrivals[:1]))
