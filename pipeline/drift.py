"""`unet drift`: do recent predictions look like the training data? A sentence, a page, a record for machines."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.command import say
from pipeline.drift_look import DriftQuestion, Found, look_for_drift
from pipeline.drift_page import odd_images, render
from pipeline.drift_plots import draw_shares
from pipeline.drift_statistics import Decision, DriftConfig
from pipeline.model_files import open_model_files
from pipeline.params import RECIPE, load_section, read_sections
from pipeline.placement import read_placement
from unet_core.checkpoint import model_hash
from unet_core.errors import RecipeError

#: Picture and record are named after the page, and must not take its place.
ENDINGS = (".html", ".htm")
#: What schedulers get for --exit-code.
EXIT_CODES: dict[Decision, int] = {"alike": 0, "drift": 10, "too few to tell": 11}


def drift(*, model: str, shards: Path, page: Path, since: str | None, last: int | None) -> int:
    """Compare, say what came of it, write page, picture and record; the exit code that tells a scheduler."""
    if page.suffix.lower() not in ENDINGS:
        raise RecipeError(
            f"--out {page}: a page is written, with a picture and a record beside it. Let it end in .html."
        )
    config = read_config()
    if last is not None and last < config.min_images:
        raise RecipeError(
            f"--last {last}: fewer than drift.min_images ({config.min_images}) never suffice. Give more, "
            "or leave it out."
        )
    placement = read_placement()
    with open_model_files(model) as files:
        ask = DriftQuestion(
            model=str(files.directory),
            model_sha256=model_hash(files.directory),
            shards=shards,
            config=config,
            since=None if since is None else read_time(since),
            most=last,
        )
        found = look_for_drift(ask, placement)
    comparison = found.comparison
    shares = draw_shares(comparison.findings, found.recent, found.training) if comparison.findings else None
    page.parent.mkdir(parents=True, exist_ok=True)
    plot = page.with_suffix(".png")
    if shares is not None:
        plot.write_bytes(shares)
    else:
        plot.unlink(missing_ok=True)
    # Names of files may hold bytes that are no UTF-8.
    text = render(found, shares, placement.prediction_log)
    page.write_text(text, encoding="utf-8", errors="backslashreplace")
    record = json.dumps(_record(found, ask, model), indent=1, allow_nan=False)
    page.with_suffix(".json").write_text(record + "\n", encoding="utf-8")
    say(found.sentence)
    say(f"page: {page}")
    return EXIT_CODES[comparison.decision]


def read_config() -> DriftConfig:
    """The recipe's section, or what is taken where there is none, or no recipe."""
    if not RECIPE.exists() or "drift" not in read_sections():
        return DriftConfig()
    return load_section("drift", DriftConfig)


def read_time(text: str) -> datetime:
    """A day or a time, UTC where it names no zone; RecipeError for what is neither."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise RecipeError(f"--since {text}: not a time. Give one as in 2026-11-01 or 2026-11-01T08:00.") from error
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def _record(found: Found, ask: DriftQuestion, model: str) -> dict[str, Any]:
    comparison, reference = found.comparison, found.reference
    return {
        "decision": comparison.decision,
        "sentence": found.sentence,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model,
        "model_sha256": ask.model_sha256,
        "since": found.since.isoformat(timespec="seconds"),
        "limits": asdict(ask.config),
        "images": {
            "recent": comparison.num_recent,
            "training": comparison.num_training,
            "training_split": None if reference is None else reference.num_images,
            "of_other_models": found.log.num_of_others,
            "damaged_lines": found.log.num_damaged,
        },
        "training_sha256": None if reference is None else reference.training_sha256,
        "training_mask_shares": {} if reference is None else dict(reference.mask_shares),
        "quantities": [asdict(finding) for finding in comparison.findings],
        "odd_images": [
            {"image": entry.image, "time": entry.time.isoformat(), "distance": distance}
            for entry, distance in odd_images(found)
        ],
    }
