"""A look at the log of predictions: what recent images are, what the training images are, and whether these differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipeline.command import first_names
from pipeline.drift_reference import Reference, find_reference
from pipeline.drift_statistics import (
    Comparison,
    DriftConfig,
    Finding,
    Values,
    compare,
    recent_quantities,
    training_quantities,
)
from pipeline.placement import Placement
from pipeline.prediction_log import LogRead, read_log

#: Quantities that a sentence names.
MAX_NAMES = 3


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a look found."""

    log: LogRead
    since: datetime
    reference: Reference | None
    """None where there are too few recent images for any comparison."""
    comparison: Comparison
    recent: Mapping[str, Values]
    training: Mapping[str, Values]
    sentence: str


@dataclass(frozen=True, kw_only=True)
class DriftQuestion:
    """Which model's predictions are compared with what."""

    model: str
    """Registry address, or a directory."""
    model_sha256: str
    shards: Path
    config: DriftConfig
    since: datetime | None = None
    """None: as many days ago as the recipe says."""
    most: int | None = None
    """So many of the newest images; None: as many as the recipe says."""
    may_store: bool = True
    """Whether what was computed of the training images may be kept."""


def look_for_drift(ask: DriftQuestion, placement: Placement) -> Found:
    """Compare the predictions in the log with the training data; they are read and never changed."""
    config = ask.config
    since = ask.since or datetime.now(UTC) - timedelta(days=config.window_days)
    log = read_log(
        placement.prediction_log, model_sha256=ask.model_sha256, since=since, most=ask.most or config.window_images
    )
    recent = [entry.traits for entry in log.entries]
    if len(recent) < config.min_images:
        nothing = Comparison(decision="too few to tell", num_recent=len(recent), num_training=None, findings=())
        sentence = f"too few to tell: {_images(len(recent))} {_where(since, placement)}, {config.min_images} needed"
        return Found(
            log=log, since=since, reference=None, comparison=nothing, recent={}, training={}, sentence=sentence
        )
    reference = find_reference(
        ask.model,
        model_sha256=ask.model_sha256,
        shards=ask.shards,
        most=config.training_images,
        placement=placement,
        may_store=ask.may_store,
    )
    new = recent_quantities(recent, reference.images)
    old = training_quantities(reference.images)
    comparison = compare(new, old, config)
    return Found(
        log=log,
        since=since,
        reference=reference,
        comparison=comparison,
        recent=new,
        training=old,
        sentence=say_drift(comparison, config, since),
    )


def say_drift(comparison: Comparison, config: DriftConfig, since: datetime) -> str:
    """What was decided and by what, as a sentence."""
    num_training = comparison.num_training or 0
    counts = f"{_images(comparison.num_recent)} since {since:%Y-%m-%d}, compared with {num_training} of the training"
    if comparison.decision == "too few to tell":
        few = min(num_training, comparison.num_recent) < config.min_images
        why = f"{config.min_images} needed" if few else "nothing is defined for enough of them"
        return f"too few to tell: {counts}, {why}"
    if comparison.decision == "drift":
        names = [_say(finding) for finding in comparison.drifted]
        return f"recent inputs differ from the training data: {first_names(names, MAX_NAMES)}; {counts}"
    largest = comparison.findings[0]
    assert largest.distance is not None, "alike is what was compared"
    limit = f"{config.max_distance:g} allowed"
    if largest.distance > config.max_distance:
        limit = f"which chance may give among so few; {limit}"
    return (
        f"recent inputs look like the training data: {counts}; the largest distance is {largest.distance:.2f} "
        f"({largest.name}), {limit}"
    )


def _say(finding: Finding) -> str:
    assert finding.recent is not None, "a drift is of defined values"
    assert finding.training is not None, "a drift is of defined values"
    new, old = (say_number(spread.median) for spread in (finding.recent, finding.training))
    # Values may gather elsewhere around one median.
    return (
        f"{finding.name} {new} (training {old})" if new != old else f"{finding.name} (distance {finding.distance:.2f})"
    )


def say_number(value: float) -> str:
    """Three digits, or all before the point: sizes of images are read as they are, not as 1.02e+03."""
    return f"{value:.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:.3g}"


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"


def _where(since: datetime, placement: Placement) -> str:
    return f"since {since:%Y-%m-%d} in {placement.prediction_log}"
