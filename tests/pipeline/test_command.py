import json
import logging
from pathlib import Path

import pytest

from pipeline.command import first_names, run_command, say
from unet_core import errors

ERRORS = [
    (errors.UnetError, 1),
    (errors.RecipeError, 3),
    (errors.DataError, 4),
    (errors.TrainingError, 5),
    (errors.RegistryError, 6),
    (errors.StorageError, 7),
    (errors.ModelError, 8),
    (errors.DifferenceError, 9),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: getattr(value, "__name__", None))
def test_a_foreseen_mistake_is_one_sentence_and_its_exit_code(
    error: type[errors.UnetError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error("image is missing: a.png. Restore it.")

    assert run_command("add", fail) == code
    captured = capsys.readouterr()
    assert captured.err == "unet add: image is missing: a.png. Restore it.\n"
    assert captured.out == ""


def test_every_error_has_an_exit_code_of_its_own() -> None:
    known = {cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.UnetError)}
    assert known == {error for error, _ in ERRORS}
    codes = [error.exit_code for error in known]
    assert len(codes) == len(set(codes))
    # 2 is argparse's, 10 and above are left to schedulers.
    assert all(0 < code < 10 and code != 2 for code in codes)


def test_an_interrupted_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert run_command("predict", interrupt) == 130
    assert capsys.readouterr().err == "unet predict: interrupted\n"


def test_a_mistake_of_ours_is_not_hidden() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command("add", fail)


def test_a_result_that_is_missing_is_dvcs_to_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path("data/shards/index.json"), tmp_path / "data" / "shards" / "index.json"):
        assert run_command("drift", lambda path=path: path.read_bytes()) == 7
        assert capsys.readouterr().err == f"unet drift: a file is missing: {path}. Run `dvc repro`, or restore it.\n"


def test_a_place_outside_the_tree_that_cannot_be_made_is_not_dvcs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tree").mkdir()
    monkeypatch.chdir(tmp_path / "tree")
    assert run_command("drift", (tmp_path / "gone" / "x").mkdir) == 7
    assert capsys.readouterr().err == (
        f"unet drift: no such file or folder: {tmp_path}/gone/x. Make it, or choose another place.\n"
    )
    assert run_command("export", lambda: Path("../gone/model.onnx").write_bytes(b"")) == 7
    assert capsys.readouterr().err == (
        "unet export: no such file or folder: ../gone/model.onnx. Make it, or choose another place.\n"
    )


def test_seconds_are_written_down_for_what_ended_well(tmp_path: Path) -> None:
    timings = tmp_path / ".unet" / "timings.jsonl"

    def fail() -> None:
        raise errors.DataError("x")

    assert run_command("ingest", fail, timings=timings) == 4
    assert not timings.exists()
    assert run_command("ingest", lambda: None, timings=timings) == 0
    entry = json.loads(timings.read_text(encoding="utf-8"))
    assert entry["stage"] == "ingest"
    assert entry["seconds"] > 0


def test_results_are_lines_of_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    say("one")
    say()
    assert capsys.readouterr().out == "one\n\n"


def test_libraries_are_quiet_and_our_own_messages_are_not() -> None:
    run_command("add", lambda: None)
    assert logging.getLogger("mlflow").level == logging.ERROR
    assert logging.getLogger("pipeline").level == logging.NOTSET


def test_the_first_of_many_names_are_said() -> None:
    names = [f"{number:02}.py" for number in range(12)]
    assert first_names(names[:2], 10) == "00.py, 01.py"
    assert first_names(names[:10], 10).endswith(", 09.py")
    assert first_names(names, 10).endswith(", 09.py and 2 more")
