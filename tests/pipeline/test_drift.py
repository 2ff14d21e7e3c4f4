"""`unet predict --log`, then `unet drift`: real images, a real model, the real log."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.cli import main
from pipeline.drift import drift, read_time
from pipeline.predict import predict
from pipeline.predict_image import Options
from pipeline.prediction_log import What
from unet_core.errors import DataError, RecipeError

SHARDS, PAGE, LOG = Path("data/shards"), Path("reports/drift.html"), Path(".unet/predictions")
NUM_NEW = 24
OPTIONS = Options(exact=False, tta=False, save=frozenset({"mask"}))


@pytest.fixture
def trained(tree, write_model_dir):
    """Shards of 48 pairs, a model that finds bright pixels, and 24 new images of the same kind in new/."""
    new = [f"n{number:02d}" for number in range(NUM_NEW)]
    tree.add_pairs([*(f"s{number:02d}" for number in range(48)), *new])
    Path("new").mkdir()
    for name in new:
        (tree.source / "images" / f"{name}.png").rename(f"new/{name}.png")
        (tree.source / "masks" / f"{name}.png").unlink()
    tree.write_recipe()
    tree.record()
    tree.run("ingest", "validate", "split", "shard")
    write_model_dir(Path("model"))
    return tree


def change(pixels: Callable[[np.ndarray], np.ndarray], folder: str) -> list[str]:
    """The new images, changed, in another folder."""
    Path(folder).mkdir()
    for path in sorted(Path("new").iterdir()):
        with Image.open(path) as picture:
            Image.fromarray(pixels(np.asarray(picture))).save(f"{folder}/{path.name}")
    return [folder]


def look(*, model: str = "model", since: str | None = None, last: int | None = None) -> tuple[int, dict]:
    code = drift(model=model, shards=SHARDS, page=PAGE, since=since, last=last)
    return code, json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))


def give(places: list[str], out: str, what: What | None = "statistics", model: str = "model") -> None:
    predict(places, out=Path(out), model=model, options=OPTIONS, log_what=what)


def test_images_like_those_of_the_training_are_no_drift_and_darker_ones_are(trained, capsys) -> None:
    give(["new"], "out")
    assert f"{NUM_NEW} images logged in .unet/predictions: statistics\n" in capsys.readouterr().out
    code, told = look()
    assert (code, told["decision"]) == (0, "alike"), told["sentence"]
    said = capsys.readouterr().out
    assert said.startswith(f"recent inputs look like the training data: {NUM_NEW} images since ")
    assert said.endswith("allowed\npage: reports/drift.html\n")
    assert told["images"]["training"] == told["images"]["training_split"] > 20

    give(change(lambda pixels: pixels // 3, "dark"), "out_dark")
    code, told = look(last=NUM_NEW)
    assert (code, told["decision"]) == (10, "drift")
    assert told["sentence"].startswith("recent inputs differ from the training data: ")
    drifted = {finding["name"]: finding for finding in told["quantities"] if finding["is_drift"]}
    assert {"brightness", "contrast", "embedding distance", "share of cell"} <= set(drifted)
    # Nothing is bright any more.
    assert drifted["share of cell"]["recent"]["median"] == 0
    # Directions need more training images than there are.
    directions = {f"feature direction {number}" for number in (1, 2, 3)}
    assert {finding["name"] for finding in told["quantities"]} - set(drifted) == {"height", "width", *directions}
    assert told["odd_images"][0]["image"].startswith("dark/")
    assert PAGE.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    page = PAGE.read_text(encoding="utf-8")
    for words in ("Quantities", "Classes", "When", "The oddest recent images", told["sentence"].split(":")[0]):
        assert words in page
    # What is kept of the training images is what is computed of them.
    (kept,) = Path(".unet/drift").iterdir()
    before = kept.read_bytes()
    kept.unlink()
    again = look(last=NUM_NEW)[1]
    assert kept.read_bytes() == before
    assert {**again, "time": None, "since": None} == {**told, "time": None, "since": None}


def test_what_is_skipped_is_not_logged_twice_and_without_log_nothing_is(trained, capsys) -> None:
    give(["new/n00.png"], "out", None)
    assert not LOG.exists()
    give(["new"], "out")
    give(["new"], "out")
    (file,) = LOG.glob("*.jsonl")
    assert len(file.read_text().splitlines()) == NUM_NEW - 1
    # Another run of the same images by the same model counts once.
    give(["new"], "again")
    assert look()[1]["images"]["recent"] == NUM_NEW


def test_a_large_image_that_goes_through_by_rows_is_logged_as_one_in_memory(
    tree, write_model_dir, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model_dir(Path("model"))
    pixels = np.random.default_rng(0).integers(0, 256, size=(100, 110), dtype=np.uint8)
    tifffile.imwrite("a.tif", pixels, tile=(32, 32))
    give(["a.tif"], "small", "images")
    monkeypatch.setattr("pipeline.predict_image.LARGE_PIXELS", 5000)
    give(["a.tif"], "large", "images")
    assert (Path("large/masks/a.tif").is_file(), Path("small/masks/a.png").is_file()) == (True, True)
    (file,) = LOG.glob("*.jsonl")
    lines = [{**json.loads(line), "time": None} for line in file.read_text().splitlines()]
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert lines[0]["means"] == pytest.approx([pixels.mean() / 255], rel=1e-4)
    # One copy, which was not written twice.
    assert len(list(LOG.glob("images/*/*.png"))) == 1


def test_too_few_are_too_few_to_tell_and_need_no_training_data(tree, write_model_dir, capsys) -> None:
    write_model_dir(Path("model"))
    code, told = look(since="2026-11-01")
    assert (code, told["decision"], told["images"]["recent"]) == (11, "too few to tell", 0)
    said = capsys.readouterr().out.splitlines()[0]
    assert said == "too few to tell: 0 images since 2026-11-01 in .unet/predictions, 20 needed"
    assert said in PAGE.read_text(encoding="utf-8")
    assert not PAGE.with_suffix(".png").exists()


def test_other_models_predictions_are_left_out_and_told(trained, write_model_dir) -> None:
    write_model_dir(Path("other"), seed=1)
    give(["new"], "out", model="other")
    told = look()[1]
    assert (told["decision"], told["images"]["of_other_models"]) == ("too few to tell", NUM_NEW)
    assert f"{NUM_NEW} predictions by other models are left out" in PAGE.read_text(encoding="utf-8")


def test_a_log_that_cannot_be_written_is_told_before_anything_is_predicted(
    tree, write_model_dir, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    write_model_dir(Path("model"))
    Image.new("L", (9, 6)).save("a.png")
    Path("file").touch()
    monkeypatch.setenv("UNET_PREDICTION_LOG", str(tree.root / "file" / "log"))
    with pytest.raises(SystemExit) as ended:
        main(["predict", "a.png", "--out", "out", "--model", "model", "--log", "statistics"])
    assert ended.value.code == 7
    assert capsys.readouterr().err == (
        f"unet predict: the log of predictions can't be written: {tree.root}/file/log: Not a directory. Let "
        "UNET_PREDICTION_LOG name a folder that can be made and written.\n"
    )
    assert not Path("out").exists()


def test_copies_of_images_are_shown_and_have_a_limit(trained, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("UNET_PREDICTION_LOG_GB", "0.000002")
    give(["new"], "out", "images")
    copies = sorted(LOG.glob("images/*/*.png"))
    assert 0 < sum(path.stat().st_size for path in copies) <= 2000
    assert f"{NUM_NEW - len(copies)} of them have no copy: all copies may take 2e-06 GB" in capsys.readouterr().out
    with Image.open(copies[0]) as picture:
        assert picture.size == (16, 12)
    assert look()[0] == 0
    assert "<figcaption>new/n" in PAGE.read_text(encoding="utf-8")


def test_a_class_that_the_model_gives_too_often_on_old_images_too_is_told_and_is_no_drift(
    trained, write_model_dir
) -> None:
    write_model_dir(Path("inverted"), inverted=True)
    give(["new"], "out", model="inverted")
    code, told = look(model="inverted")
    assert code == 0
    assert told["training_mask_shares"]["cell"] == pytest.approx(0.25)
    (share,) = [finding for finding in told["quantities"] if finding["name"] == "share of cell"]
    assert share["training"]["median"] == pytest.approx(0.75)
    page = PAGE.read_text(encoding="utf-8")
    assert "On the training images too, the model predicts cell more than twice, or less than half, as often" in page


def test_a_log_that_somebody_else_wrote_shows_no_other_file_and_no_markup(trained) -> None:
    Path(".unet").mkdir()
    Image.new("L", (3, 3)).save(".unet/secret.png")
    give(["new"], "out")
    (file,) = LOG.glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    changed = [{**line, "image": f"<b>{number}\udcff", "copy": "../secret.png"} for number, line in enumerate(lines)]
    file.write_text("".join(json.dumps(line) + "\n" for line in changed))
    look()
    page = PAGE.read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page
    assert "\\udcff</td>" in page
    assert "<b>1" not in page
    # Pictures of the quantities and of two by time.
    assert page.count("<img ") <= 3


def test_a_model_that_reads_images_in_another_way_is_refused(trained) -> None:
    give(["new"], "out")
    trained.write_recipe(images={"percentiles": [1, 99]})
    with pytest.raises(DataError) as caught:
        look()
    assert str(caught.value).startswith("the model was trained on images that are read in another way: params.yaml: ")


def test_the_recipe_has_limits_and_the_command_line_a_window(trained) -> None:
    give(["new"], "out")
    recipe = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(recipe + "drift: {min_images: 30}\n", encoding="utf-8")
    assert look()[1]["sentence"].endswith("30 needed")
    with pytest.raises(RecipeError) as caught:
        look(last=24)
    assert str(caught.value) == (
        "--last 24: fewer than drift.min_images (30) never suffice. Give more, or leave it out."
    )
    Path("params.yaml").write_text(recipe + "drift: {limit: 1}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="unknown key: params.yaml: drift: limit"):
        look()


@pytest.mark.parametrize("name", ["drift", "reports/drift.", "drift.png", "drift.json", "drift.pdf", ".html"])
def test_a_page_that_is_not_named_as_one_is_refused(tree, name: str) -> None:
    """A picture, or a record, of the page's name would take its place."""
    with pytest.raises(RecipeError) as caught:
        drift(model="nowhere", shards=SHARDS, page=Path(name), since=None, last=None)
    assert str(caught.value) == (
        f"--out {name}: a page is written, with a picture and a record beside it. Let it end in .html."
    )
    assert list(tree.root.iterdir()) == []


@pytest.mark.parametrize("name", ["a.htm", "A.HTML"])
def test_a_page_is_written_under_its_name_with_the_record_beside_it(tree, write_model_dir, name: str) -> None:
    write_model_dir(Path("model"))
    assert drift(model="model", shards=SHARDS, page=Path("out", name), since=None, last=None) == 11
    assert {path.name for path in Path("out").iterdir()} == {name, f"{name[0]}.json"}
    assert Path("out", name).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_time_without_a_zone_is_utc() -> None:
    assert read_time("2026-11-01") == datetime(2026, 11, 1, tzinfo=UTC)
    assert read_time("2026-11-01T08:00+02:00") == datetime(2026, 11, 1, 6, tzinfo=UTC)
    with pytest.raises(RecipeError) as caught:
        read_time("yesterday")
    assert str(caught.value) == ("--since yesterday: not a time. Give one as in 2026-11-01 or 2026-11-01T08:00.")


@pytest.mark.slow
def test_a_scheduler_gets_an_exit_code_only_where_it_asks(tree, write_model_dir, unet) -> None:
    write_model_dir(Path("model"))
    assert unet("drift", "--model", "model").returncode == 0
    done = unet("drift", "--model", "model", "--exit-code")
    assert (done.returncode, done.stderr) == (11, "")
