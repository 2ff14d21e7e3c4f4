import json
from pathlib import Path

import pytest
from PIL import Image

PAGE = Path("reports/report.html")


@pytest.fixture
def evaluated(registered):
    """Everything that the page shows; what training leaves is made by hand."""
    registered.run("evaluate")
    training = {"val_loss": 0.5, "best_epoch": 1, "steps": 2, "samples_resting_per_epoch": 0}
    Path("metrics/train.json").write_text(json.dumps(training), encoding="utf-8")
    Path("plots/curves.csv").write_text("step,train_loss,learning_rate\n1,0.9,0.1\n2,0.5,0.1\n", encoding="utf-8")
    Path("plots/validation.csv").write_text("step,val_loss,val_dice\n2,0.5,0.9\n", encoding="utf-8")
    Image.new("RGB", (4, 4)).save("plots/predictions.png")
    return registered


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_page_shows_what_the_stages_left_and_equal_results_are_equal_pages(evaluated) -> None:
    evaluated.run("report")
    first = PAGE.read_text(encoding="utf-8")
    scores = json.loads(Path("metrics/evaluate.json").read_text(encoding="utf-8"))
    receipt = json.loads(Path("models/receipt.json").read_text(encoding="utf-8"))
    assert scores["dice"] == 1.0
    for shown in (
        "12 images of one size",
        "<b>1.000</b>",
        f"<b>{scores['images']}</b><span class='soft'>test images</span>",
        receipt["weights_sha256"],
        "target_mb: 0.0008",
    ):
        assert shown in first, shown
    # Nothing of where it was made.
    assert str(evaluated.root) not in first
    evaluated.run("report")
    assert PAGE.read_text(encoding="utf-8") == first
