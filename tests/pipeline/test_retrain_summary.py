import json
from pathlib import Path

from pipeline.retrain_reasons import Reason
from pipeline.retrain_summary import Scored, Summary, to_markdown, write_summary

PROMOTED = Summary(
    outcome="promoted",
    sentence="promoted: Dice 0.912 vs 0.897, +0.015",
    model="unet",
    time="2026-01-02T03:04:05+00:00",
    reasons=(Reason(kind="data", text="3 new samples in raw"), Reason(kind="code", text="changed code: a.py")),
    samples={"new": 3, "changed": 0, "removed": 0},
    challenger=Scored(version="4", score=0.9123),
    against=Scored(version="3", score=0.897),
    champion="4",
    recorded="commit abc on branch retrain",
    seconds={"look": 2.04, "reproduce": 61.0},
    notes=("origin/main can't be fetched: what lies here is used",),
)


def test_people_read_why_what_and_how_good() -> None:
    assert to_markdown(PROMOTED) == (
        "# Retraining: promoted\n"
        "\n"
        "promoted: Dice 0.912 vs 0.897, +0.015\n"
        "\n"
        "Why: 3 new samples in raw; changed code: a.py.\n"
        "\n"
        "Samples since the commit before: 3 new, 0 changed, 0 removed.\n"
        "\n"
        "| | unet version | score |\n"
        "|---|---|---|\n"
        "| challenger | 4 | 0.9123 |\n"
        "| champion before | 3 | 0.8970 |\n"
        "\n"
        "Champion is unet version 4.\n"
        "\n"
        "Results: commit abc on branch retrain.\n"
        "\n"
        "Note: origin/main can't be fetched: what lies here is used.\n"
        "Seconds: look 2.0, reproduce 61.0.\n"
    )


def test_what_the_gate_could_not_tell_is_no_promotion() -> None:
    doubtful = Summary(outcome="not promoted", sentence="too few to tell: 3 images", model="unet", time="")
    assert doubtful.line == "not promoted: too few to tell: 3 images"


def test_with_nothing_to_tell_two_lines_do() -> None:
    idle = Summary(outcome="nothing to do", sentence="nothing to do: all is fresh", model="unet", time="")
    assert to_markdown(idle) == "# Retraining: nothing to do\n\nnothing to do: all is fresh\n"


def test_machines_read_the_same(tmp_path: Path) -> None:
    write_summary(PROMOTED, tmp_path / "reports" / "report.html")
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == ["retrain.json", "retrain.md"]
    body = json.loads((tmp_path / "reports" / "retrain.json").read_text())
    assert body["text"] == "unet retrain: promoted: Dice 0.912 vs 0.897, +0.015"
    assert body["outcome"] == "promoted"
    assert body["reasons"][0] == {"kind": "data", "text": "3 new samples in raw"}
    assert body["challenger"] == {"version": "4", "score": 0.9123}
    assert body["seconds"] == {"look": 2.04, "reproduce": 61.0}
