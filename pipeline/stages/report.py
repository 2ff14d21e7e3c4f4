"""Stage 8: metrics, curves, scores and pictures -> one self-contained page for people."""

import json
import logging
from pathlib import Path
from typing import Any

from pipeline.params import RECIPE
from pipeline.report_page import Page, render
from pipeline.scores import read_rows

SCORE_PLOTS = ("score_histogram", "calibration", "confusion", "slices")

log = logging.getLogger(__name__)


def run(*, metrics: Path, plots: Path, evaluation: Path, rejected: Path, receipt: Path, page: Path) -> None:
    """Write the page. It holds nothing of when or where, so that equal results are equal pages."""

    def read(path: Path) -> Any:
        return json.loads(path.read_text(encoding="utf-8"))

    shown = read(evaluation / "cases" / "cases.json")
    html = render(
        Page(
            arrivals=read(metrics / "ingest.json")["batches"],
            data=read(metrics / "validate.json"),
            splits=read(metrics / "split.json")["samples"],
            training=read(metrics / "train.json"),
            scores=read(metrics / "evaluate.json"),
            rejected=read(rejected),
            cases=shown["cases"],
            colours=shown["colours"],
            rows=read_rows(evaluation / "scores.parquet"),
            receipt=read(receipt),
            recipe=RECIPE.read_text(encoding="utf-8"),
            curves=plots / "curves.csv",
            validation=plots / "validation.csv",
            data_examples=plots / "data.png",
            validation_examples=plots / "predictions.png",
            score_plots={name: plots / f"{name}.png" for name in SCORE_PLOTS},
            cases_dir=evaluation / "cases",
        )
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html, encoding="utf-8")
    log.info("report: %s", page)
