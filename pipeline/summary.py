"""`unet summary`: where things stand after a run, what took how long, what to type next."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import tracking
from pipeline.command import say
from pipeline.history import Entry, history, is_another_model
from pipeline.placement import read_placement
from pipeline.receipt import read_receipt
from pipeline.scores import SCORE_NAMES
from unet_core.errors import RegistryError

STAGES = ("ingest", "validate", "split", "shard", "train", "register", "evaluate", "report", "promote")


def summary(*, metrics: Path, receipt: Path, report: Path) -> None:
    """Print scores, version, verdict, report, seconds per stage, and the next commands."""
    placement = read_placement()
    known = read_receipt(receipt)
    client = tracking.connect(placement.tracking_uri, placement.experiment)
    version = tracking.find_version(client, known.model, known.model_sha256)
    champion = tracking.version_by_alias(client, known.model, tracking.CHAMPION)
    train, scores = (_read(metrics / name) for name in ("train.json", "evaluate.json"))
    if not train or not scores:
        raise RegistryError(f"nothing to sum up yet: {metrics} has no scores. Run `dvc repro` first.")
    score = "dice" if "dice" in scores else "iou"
    interval = "{:.3f} to {:.3f}".format(*scores["interval_95"]) if scores["interval_95"] else "unknown: one group"
    verdict = _read(report.with_name("verdict.json"))
    is_current = verdict.get("model_sha256") == known.model_sha256
    promoted = report.with_name("promotion.html")
    say()
    say(f"  scores    test {SCORE_NAMES[score]} {scores[score]:.3f} (95 % interval {interval}) "
        f"on {scores['images']} images; validation loss {train['val_loss']:.4f}")  # fmt: skip
    say(f"  version   {known.model} {version.number if version else 'not in this registry'}, "
        f"weights {known.weights_sha256[:12]}")  # fmt: skip
    say(f"  champion  {_say_champion(champion, history(client, known.model))}")
    say(f"  gate      {verdict['sentence'] if is_current else 'not asked yet: unet promote'}")
    say(f"  report    {promoted if is_current and promoted.exists() else report}")
    _say_seconds(read_timings(placement.timings))
    say()
    say("  next      unet predict PATH... --out DIR     masks for your images")
    say("            make ui                            runs and models in MLflow")
    say("            unet init --source FOLDER          your own images and masks")


def read_timings(path: Path) -> dict[str, float]:
    """The last seconds of each stage; `training` is the part of `train` between first and last step."""
    seconds: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # a killed stage's half-written line
        seconds[entry["stage"]] = entry["seconds"]
    return seconds


def _say_champion(champion: tracking.Version | None, entries: Sequence[Entry]) -> str:
    """Which version, and how it came to be: a verdict may be older than a move by hand."""
    if champion is None:
        return "none"
    moves = [entry for entry in entries if entry.is_done and not entry.void]
    if not moves or moves[-1].version != champion.number or is_another_model(entries, champion):
        return f"version {champion.number}, not by this command"
    last = moves[-1]
    return f"version {last.version}, {last.action} {last.time}{'' if last.action == 'promoted' else f': {last.reason}'}"


def _say_seconds(seconds: dict[str, float]) -> None:
    shown = [f"{name} {seconds[name]:.0f}" for name in STAGES if name in seconds]
    total = sum(seconds[name] for name in STAGES if name in seconds)
    training = seconds.get("training", 0.0)
    say(f"  seconds   {', '.join(shown)}; of these training {training:.0f}, all else {total - training:.0f}")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
