import json
from pathlib import Path

import pytest

from pipeline.command import note_seconds
from pipeline.history import Move, move_champion
from pipeline.receipt import write_receipt
from pipeline.registration import ensure_version
from pipeline.summary import read_timings, summary
from pipeline.tracking import Version
from unet_core.errors import RegistryError, UnetError

METRICS, RECEIPT, REPORT = Path("metrics"), Path("models/receipt.json"), Path("reports/report.html")
SCORES = {"dice": 0.75, "interval_95": [0.7, 0.8], "images": 12}


def write_json(path: Path, body: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body), encoding="utf-8")


def test_of_each_stage_the_last_seconds_are_kept(tmp_path: Path) -> None:
    timings = tmp_path / ".unet" / "timings.jsonl"
    for stage, seconds in (("train", 90.0), ("ingest", 1.0), ("train", 30.126)):
        note_seconds(timings, stage, seconds)
    assert read_timings(timings) == {"train": 30.13, "ingest": 1.0}


def test_without_timings_there_are_none(tmp_path: Path) -> None:
    assert read_timings(tmp_path / "none.jsonl") == {}


def test_a_half_written_line_of_timings_is_left_out(tmp_path: Path) -> None:
    timings = tmp_path / "timings.jsonl"
    note_seconds(timings, "train", 90.0)
    with timings.open("a", encoding="utf-8") as stream:
        stream.write('{"stage": "regi')
    assert read_timings(timings) == {"train": 90.0}


def test_before_anything_is_registered_the_summary_says_what_to_do(tree) -> None:
    with pytest.raises(
        RegistryError, match=r"^nothing is registered: models/receipt.json can't be read. Run `dvc repro`"
    ):
        summary(metrics=METRICS, receipt=RECEIPT, report=REPORT)


@pytest.mark.slow
def test_the_summary_says_scores_version_gate_report_and_seconds(
    client, tree, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(RECEIPT, {"model": "unet", "model_sha256": "cd" * 32, "weights_sha256": "ab" * 32})
    write_json(METRICS / "evaluate.json", SCORES)
    write_json(METRICS / "train.json", {"val_loss": 0.1234})
    for stage, seconds in (("ingest", 1.0), ("training", 50.0), ("train", 60.0)):
        note_seconds(tree.root / ".unet" / "timings.jsonl", stage, seconds)
    summary(metrics=METRICS, receipt=RECEIPT, report=REPORT)
    said = capsys.readouterr().out
    assert "scores    test Dice 0.750 (95 % interval 0.700 to 0.800) on 12 images; validation loss 0.1234" in said
    assert f"version   unet not in this registry, weights {'ab' * 6}\n" in said
    assert "champion  none\n" in said
    assert "gate      not asked yet: unet promote" in said
    assert "report    reports/report.html" in said
    assert "seconds   ingest 1, train 60; of these training 50, all else 11" in said


@pytest.mark.slow
def test_before_evaluation_the_summary_says_what_to_do(client, tree) -> None:
    write_json(RECEIPT, {"model": "unet", "model_sha256": "cd" * 32, "weights_sha256": "ab" * 32})
    write_json(METRICS / "train.json", {"val_loss": 0.1234})
    with pytest.raises(UnetError, match="dvc repro"):
        summary(metrics=METRICS, receipt=RECEIPT, report=REPORT)


@pytest.fixture
def version(client, tree, write_model_dir) -> Version:
    """A registered model, its receipt and its scores; nobody asked the gate."""
    write_model_dir(Path("model"))
    write_receipt(RECEIPT, model="unet", model_dir=Path("model"))
    write_json(METRICS / "evaluate.json", SCORES)
    write_json(METRICS / "train.json", {"val_loss": 0.1234})
    made, _ = ensure_version(client, "unet", Path("model"))
    return made


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_verdict_on_another_version_is_not_shown_as_this_ones(
    version: Version, capsys: pytest.CaptureFixture[str]
) -> None:
    # Another registry may have given its number to another model.
    old = {"version": version.number, "model_sha256": "ab" * 32, "sentence": "promoted: an older training"}
    write_json(REPORT.with_name("verdict.json"), old)
    summary(metrics=METRICS, receipt=RECEIPT, report=REPORT)
    assert "gate      not asked yet: unet promote\n" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_champion_by_hand_is_told_beside_an_older_verdict(
    client, version: Version, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = {"model_sha256": version.model_sha256, "sentence": "not promoted: worse"}
    write_json(REPORT.with_name("verdict.json"), verdict)

    def said() -> str:
        summary(metrics=METRICS, receipt=RECEIPT, report=REPORT)
        return capsys.readouterr().out

    client.set_registered_model_alias("unet", "champion", version.number)
    assert f"champion  version {version.number}, not by this command\n" in said()
    client.delete_registered_model_alias("unet", "champion")
    entry = move_champion(client, "unet", lambda _: Move(action="forced", version=version.number, reason="it must be"))
    assert f"champion  version {version.number}, forced {entry.time}: it must be\n" in said()
    assert "gate      not promoted: worse" in said()
