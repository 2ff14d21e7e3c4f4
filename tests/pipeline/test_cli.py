"""Exit codes and what a user reads. Processes of their own where the process is the claim; otherwise `main` itself."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cli import main


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run a command in this process; its exit code and standard error."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code, capsys.readouterr().err  # type: ignore[return-value]


def assert_one_line(text: str) -> None:
    assert text.count("\n") == 1, text
    assert text.endswith("\n")
    assert "Traceback" not in text


def test_a_key_that_does_not_exist_ends_with_3(tree, unet) -> None:
    tree.write_recipe(split={"val_fracton": 0.1})
    done = unet(*tree.words("split"))
    assert done.returncode == 3
    assert done.stderr == "unet split: unknown key: params.yaml: split: val_fracton. Did you mean val_fraction?\n"
    assert done.stdout == ""


def test_a_section_that_does_not_exist_ends_with_3(small_data, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path("params.yaml")
    recipe.write_text(recipe.read_text(encoding="utf-8") + "evalaute: {}\n", encoding="utf-8")
    code, text = call(capsys, *small_data.words("ingest"))
    assert code == 3
    assert text == "unet ingest: unknown key: params.yaml: evalaute. Did you mean evaluate?\n"


def test_an_empty_folder_ends_with_4(tree, unet) -> None:
    Path("mine").mkdir()
    done = unet("init", "--source", "mine")
    assert done.returncode == 4
    assert_one_line(done.stderr)
    assert done.stderr.startswith("unet init: images and masks are not found in mine: it has 0 files. Put images in ")
    assert not Path("params.yaml").exists()


def test_a_missing_recipe_ends_with_3(tree, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = call(capsys, "add")
    assert code == 3
    assert_one_line(text)
    assert text.startswith(f"unet add: no recipe: {tree.root}/params.yaml. Run `unet init --source FOLDER`")


def test_a_changed_file_ends_with_4(small_data, capsys: pytest.CaptureFixture[str]) -> None:
    small_data.add_pair("s03", draw="changed")
    code, text = call(capsys, *small_data.words("ingest"))
    assert code == 4
    assert_one_line(text)
    assert text.startswith("unet ingest: a recorded sample has changed: s03: ")


def test_rejected_samples_end_with_4_and_are_listed(tree, capsys: pytest.CaptureFixture[str]) -> None:
    tree.add_pair("a", value=7)
    tree.write_recipe()
    tree.record()
    tree.run("ingest")
    code, text = call(capsys, *tree.words("validate"))
    assert code == 4
    assert "\n  a: class value outside the recipe: raw/masks/a.png: 7." in text
    assert "Traceback" not in text


def test_data_that_dvc_cannot_track_end_with_7(tree, capsys: pytest.CaptureFixture[str]) -> None:
    tree.add_pair("a")
    tree.write_recipe()
    code, text = call(capsys, "add")
    assert code == 7
    assert text.startswith("unet add: DVC can't track the ledger arrivals/raw.jsonl: ")
    assert "Traceback" not in text


def test_a_folder_that_is_no_model_ends_with_8(tree, capsys: pytest.CaptureFixture[str]) -> None:
    tree.add_pair("a")
    Path("model").mkdir()
    code, text = call(capsys, "predict", "raw/images", "--out", "out", "--model", "model")
    assert code == 8
    assert_one_line(text)
    assert text.startswith("unet predict: not a model directory: model/model.json: ")


def test_a_place_that_cannot_be_written_ends_with_7(tree, write_model_dir, capsys: pytest.CaptureFixture[str]) -> None:
    tree.add_pair("a")
    write_model_dir(Path("model"))
    Path("out").write_text("a file where a folder should be", encoding="utf-8")
    code, text = call(capsys, "predict", "raw/images", "--out", "out", "--model", "model")
    assert code == 7
    assert_one_line(text)
    assert "out" in text


def test_a_path_that_does_not_exist_ends_with_4(tree, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = call(capsys, "predict", "none.png", "--out", "out")
    assert code == 4
    assert_one_line(text)
    assert text.startswith("unet predict: no images: none.png. ")


def test_blanks_beside_what_is_to_be_saved_are_nothing_and_the_command_is_named_once(
    tree, write_model_dir, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.add_pair("a")
    write_model_dir(Path("model"))
    words = ["predict", "raw/images", "--out", "out", "--model", "model", "--save"]
    assert call(capsys, *words, "mask, polygons ,") == (0, "")
    assert Path("out/polygons/a.geojson").is_file()
    assert call(capsys, *words, "mask, heatmap") == (
        3,
        "unet predict: --save: unknown: 'heatmap'. Choose among mask, overlay, probabilities, uncertainty, polygons, "
        "instances.\n",
    )


@pytest.mark.parametrize("command", ["register", "predict"])
def test_a_tracking_server_that_is_away_ends_with_6(
    tree, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    tree.add_pair("a")
    tree.write_recipe()
    words = tree.words("register") if command == "register" else ["predict", "raw/images", "--out", "out"]
    code, text = call(capsys, *words)
    assert code == 6
    assert_one_line(text)
    assert text.startswith(f"unet {command}: tracking server can't be reached: http://127.0.0.1:9: ")
    assert text.endswith("correct MLFLOW_TRACKING_URI, or unset it to use the working tree's own store.\n")


@pytest.mark.slow
def test_a_tracking_server_that_is_away_ends_a_process_with_6(tree, unet) -> None:
    tree.add_pair("a")
    done = unet("predict", "raw/images", "--out", "out", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 6
    assert_one_line(done.stderr)
    assert "http://127.0.0.1:9" in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_without_a_champion_predicting_ends_with_6(tree, client, capsys: pytest.CaptureFixture[str]) -> None:
    tree.add_pair("a")
    code, text = call(capsys, "predict", "raw/images", "--out", "out")
    assert code == 6
    assert_one_line(text)
    assert text.startswith("unet predict: no such model: models:/unet@champion: ")
    assert text.endswith("Run `unet promote` first.\n")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["promote", "summary"])
def test_before_anything_is_registered_commands_end_with_6(
    tree, client, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    tree.write_recipe()
    code, text = call(capsys, command)
    assert code == 6
    assert_one_line(text)
    assert text == (
        f"unet {command}: nothing is registered: models/receipt.json can't be read. Run `dvc repro` first.\n"
    )


@pytest.mark.slow
def test_a_training_that_cannot_start_ends_with_5(sharded, capsys: pytest.CaptureFixture[str]) -> None:
    sharded.write_recipe(model={"input_statistics": "imagenet"})
    code, text = call(capsys, *sharded.words("train"))
    assert code == 5
    assert_one_line(text)
    assert text == (
        "unet train: model.input_statistics: imagenet is for RGB images. Set images.channels: 3, or train.\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "change", "code", "named"),
    [
        ("train", {"lanes": 3}, 3, "train.lanes: 3"),
        ("train", {"loss": {"dise": 1.0}}, 3, "dise"),
        ("train", {"lanes": 64}, 5, "too few training samples: "),
        ("train", {"deep_supervision_weights": [1.0, 0.5]}, 3, "the network has no heads to be weighted"),
        ("train", {"loss": {"dice": 1.0}, "border_weight": {"w0": 10, "sigma_px": 5}}, 3, "none of the losses weighs"),
        ("train", {"initial_weights": {"path": "none.safetensors", "sha256": "0"}}, 8, "no initial weights: none"),
        ("model", {"preset": "smal"}, 3, "Did you mean small?"),
        ("augment", {"transforms": [{"name": "HorizontalFlop"}]}, 3, "Did you mean HorizontalFlip?"),
        ("augment", {"transforms": [{"name": "HorizontalFlip", "q": 0.5}]}, 3, "augment.transforms[0]"),
    ],
)
def test_a_recipe_that_cannot_train_is_refused_before_a_cluster_starts(
    sharded, capsys: pytest.CaptureFixture[str], section: str, change: dict, code: int, named: str
) -> None:
    sharded.write_recipe(**{section: change})
    ended, text = call(capsys, *sharded.words("train"))
    assert ended == code
    assert named in text
    assert "Traceback" not in text
    assert not Path(".unet/training").exists()


@pytest.mark.slow
def test_without_shards_training_ends_with_4_and_says_how_to_make_them(
    tree, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.write_recipe()
    code, text = call(capsys, *tree.words("train"))
    assert code == 4
    assert text == "unet train: no shards: data/shards/index.json is missing. Run `dvc repro shard`.\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["prodict"],
        ["init"],
        ["predict", "a.png"],
        ["shapes", "raw"],
        ["stage"],
        ["stage", "ingset"],
        ["stage", "split"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_ends_with_2(tree, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, text = call(capsys, *words)
    assert code == 2
    assert text.startswith("usage: unet")


@pytest.mark.parametrize(
    "words", [["--help"], ["predict", "--help"], ["stage", "--help"], ["stage", "split", "--help"]]
)
def test_help_ends_with_0(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: unet")


def test_a_count_of_pictures_below_one_is_refused(tree, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = call(capsys, "shapes", "raw", "--count", "-3")
    assert code != 0


def test_the_module_can_be_run_as_a_program(tree) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "predict"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2


def test_a_reader_that_leaves_early_does_not_stop_the_work(tree) -> None:
    code = "from pipeline.command import say\nfor line in range(20_000): say(str(line))\nopen('done', 'w').close()"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", '"$0" -c "$1" | head -n 1', sys.executable, code],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
    assert Path("done").exists()


def test_light_stages_import_no_heavy_library(tree) -> None:
    program = (
        "import sys\n"
        "import pipeline.cli, pipeline.arrivals, pipeline.init\n"
        "for name in ('ingest', 'validate', 'split', 'shard', 'report'):\n"
        "    __import__(f'pipeline.stages.{name}')\n"
        "print(sorted({'torch', 'cv2', 'mlflow', 'ray', 'albumentations', 'webdataset', 'dvc'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_seconds_of_a_stage_are_written_down(small_data, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = call(capsys, *small_data.words("ingest"))
    assert code == 0
    assert '"stage": "ingest"' in Path(".unet/timings.jsonl").read_text(encoding="utf-8")


def test_shapes_are_written_as_files(tree, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = call(capsys, "shapes", "raw/shapes", "--count", "2", "--seed", "1")
    assert code == 0
    with Image.open("raw/shapes/masks/ring/00001.png") as picture:
        assert set(np.unique(np.asarray(picture))) == {0, 255}
