"""Is the challenger better than the champion? Statistics on paired scores, no input or output."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.bootstrap import Floats
from pipeline.comparison import Comparison, Comparisons, PairedScores, compare, fill_right, image_means
from unet_core.errors import RecipeError, RegistryError

Decision = Literal["promoted", "not promoted", "too few to tell"]


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Recipe section `promote`."""

    min_score: float
    """Least main score of a first champion."""
    confidence: float
    """With which confidence, 0.5 to 1, the challenger must be better."""
    min_groups: int
    """With fewer groups of test images the gate can't tell; an image without a group is its own."""
    bootstrap_draws: int
    seed: int
    """Of the bootstrap."""
    margin: float = 0.0
    """By how much of the main score a challenger may be worse; 0: it must be better."""
    max_class_drop: float | None = None
    """By how much each scored class may fall; null: classes are shown and not judged."""
    max_slice_drop: float | None = None
    """By how much the main score may fall in each slice; null: slices are shown and not judged."""
    max_ece: float | None = None
    """Largest expected calibration error, 0 to 1."""
    max_weights_mb: float | None = None
    """Largest size of the weights, in millions of bytes."""
    max_latency_ms: float | None = None
    """Longest time for a test image, in milliseconds: the median on the machine that promotes."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:
            raise RecipeError(f"promote.confidence: {self.confidence}: choose a number from 0.5 to below 1.")
        for name in ("min_score", "margin", "max_class_drop", "max_slice_drop", "max_ece"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise RecipeError(f"promote.{name}: {value}: choose a number from 0 to 1.")
        for name, least in (("min_groups", 1), ("bootstrap_draws", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise RecipeError(f"promote.{name}: {getattr(self, name)}: must be at least {least}.")
        for name in ("max_weights_mb", "max_latency_ms"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise RecipeError(f"promote.{name}: {value}: must be above 0, or null.")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the recipe's limits speak of, measured on the challenger; None where it was not."""

    ece: float | None = None
    weights_mb: float | None = None
    latency_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate decided, and the numbers that it decided by."""

    decision: Decision
    sentence: str
    images: int
    """Test images with a score."""
    groups: int
    challenger: float | None
    champion: float | None = None
    difference: float | None = None
    interval_95: tuple[float, float] | None = None
    confidence: float | None = None
    """With which the challenger is better, or not worse by more than the margin."""
    classes: tuple[Comparison, ...] = ()
    slices: tuple[Comparison, ...] = ()
    measured: Measured = Measured()
    reasons: tuple[str, ...] = ()
    """Why it was not promoted."""


def refuse_seen(test_groups: Collection[str], training_groups: Mapping[str, Collection[str]]) -> None:
    """RegistryError if a model was trained on a group of the test; `training_groups` by the model's name.

    Split settings may have changed since, and what a model has learnt by heart says nothing of it.
    """
    for model, groups in training_groups.items():
        seen = sorted(set(test_groups) & set(groups))
        if seen:
            raise RegistryError(
                f"can't be judged: {model} was trained on {len(seen)} of {len(set(test_groups))} groups of today's "
                f"test split, such as {seen[0]!r}. Restore the old split settings, or train it anew on today's split."
            )


def judge_first(
    challenger: Floats, groups: Sequence[str], config: GateConfig, *, score: str, measured: Measured
) -> Verdict:
    """Without a champion, the recipe's minimum and limits decide; `challenger` (N, K) as in PairedScores."""
    means = image_means(challenger)
    num_images, num_groups = _count(means, groups)
    if not num_images:
        return _too_few("no test image has a score", 0, 0)
    if num_groups < config.min_groups:
        return _too_few_groups(num_images, num_groups, config)
    mean = float(np.nanmean(means))
    low = [] if mean >= config.min_score else [f"{score} {mean:.3f} is below the recipe's minimum {config.min_score:g}"]
    reasons = (*low, *_broken_limits(measured, config))
    what = "; ".join(reasons) if reasons else f"the first champion, {score} {mean:.3f}, minimum {config.min_score:g}"
    decision: Decision = "not promoted" if reasons else "promoted"
    return Verdict(
        decision=decision,
        sentence=f"{decision}: {what}; on {_say_count(num_images, num_groups)}",
        images=num_images,
        groups=num_groups,
        challenger=mean,
        measured=measured,
        reasons=reasons,
    )


def judge(scores: PairedScores, config: GateConfig, *, score: str, measured: Measured) -> Verdict:
    """The challenger must be better (or not worse by more than the margin), fall nowhere, and keep the limits."""
    num_images, num_groups = _count(image_means(fill_right(scores.challenger, scores.champion)), scores.groups)
    if num_groups < max(2, config.min_groups):
        return _too_few_groups(num_images, num_groups, config)
    found = compare(scores, draws=config.bootstrap_draws, seed=config.seed)
    confidence = found.drawn.confidence_above(0, -config.margin, config.confidence)
    reasons = (
        *_doubts(confidence, config),
        *_falls(found.classes, "class", config.max_class_drop),
        *_falls(found.slices, "slice", config.max_slice_drop),
        *_broken_limits(measured, config),
    )
    decision: Decision = "not promoted" if reasons else "promoted"
    said = [
        _say(found.whole, score),
        *([] if reasons else _say_claim(found.whole, confidence, config)),
        *_say_worst(found),
        *_say_unjudged(found, config),
    ]
    return Verdict(
        decision=decision,
        sentence=f"{decision}: {'; '.join([*said, *reasons])}",
        images=found.whole.images,
        groups=found.whole.groups,
        challenger=found.whole.challenger,
        champion=found.whole.champion,
        difference=found.whole.difference,
        interval_95=found.whole.interval_95,
        confidence=confidence,
        classes=found.classes,
        slices=found.slices,
        measured=measured,
        reasons=reasons,
    )


def _count(means: Floats, groups: Sequence[str]) -> tuple[int, int]:
    """Images with a score, and groups of such images."""
    scored = [group for group, mean in zip(groups, means, strict=True) if not np.isnan(mean)]
    return len(scored), len(set(scored))


def _too_few_groups(images: int, groups: int, config: GateConfig) -> Verdict:
    return _too_few(f"{_say_count(images, groups)}, promote.min_groups is {config.min_groups}", images, groups)


def _too_few(what: str, images: int, groups: int) -> Verdict:
    return Verdict(
        decision="too few to tell",
        sentence=f"too few to tell: {what}",
        images=images,
        groups=groups,
        challenger=None,
        reasons=(what,),
    )


def _doubts(confidence: float, config: GateConfig) -> list[str]:
    if confidence >= config.confidence:
        return []
    return [f"{_claim(config)} with {confidence:.1%} confidence, {config.confidence:.0%} needed"]


def _claim(config: GateConfig) -> str:
    return f"not worse by more than {config.margin:g}" if config.margin else "better"


def _say_claim(whole: Comparison, confidence: float, config: GateConfig) -> list[str]:
    """What was shown, where the interval of both sides does not show it."""
    if config.margin:
        return [_claim(config)]
    assert whole.interval_95 is not None, "two groups at least"
    return [f"{_claim(config)} with {confidence:.1%} confidence"] if whole.interval_95[0] <= 0 else []


def _falls(parts: Sequence[Comparison], kind: str, allowed: float | None) -> list[str]:
    """Parts that fall too far, surely: the whole interval lies beyond what is allowed."""
    if allowed is None:
        return []
    return [
        f"{kind} {_name(part, parts)} falls by {-part.difference:.3f} "
        f"(95 % interval {_say_interval(part.interval_95)}), {allowed:g} allowed"
        for part in parts
        if part.interval_95 is not None and part.interval_95[1] < -allowed
    ]


def _broken_limits(measured: Measured, config: GateConfig) -> list[str]:
    limits = (
        ("calibration error", measured.ece, config.max_ece, ""),
        ("weights", measured.weights_mb, config.max_weights_mb, " MB"),
        ("time for an image", measured.latency_ms, config.max_latency_ms, " ms"),
    )
    return [
        f"{name} {value:.3g}{unit}, at most {limit:g}{unit} allowed"
        for name, value, limit, unit in limits
        if limit is not None and value is not None and value > limit
    ]


def _say(whole: Comparison, score: str) -> str:
    assert whole.interval_95 is not None, "two groups at least"
    return (
        f"{score} {whole.challenger:.3f} vs {whole.champion:.3f}, {whole.difference:+.3f} "
        f"(95 % interval {_say_interval(whole.interval_95)}) on {_say_count(whole.images, whole.groups)}"
    )


def _say_worst(found: Comparisons) -> list[str]:
    """The class (of several) and the slice that fared worst."""
    kinds = (("class", found.classes if len(found.classes) > 1 else ()), ("slice", found.slices))
    worst = [(kind, min(parts, key=lambda part: part.difference)) for kind, parts in kinds if parts]
    parts = (*found.classes, *found.slices)
    return [f"worst {kind} {_name(part, parts)} {part.difference:+.3f}" for kind, part in worst]


def _say_unjudged(found: Comparisons, config: GateConfig) -> list[str]:
    """Parts that a limit speaks of and that have too few groups for an interval."""
    kinds = (("class", found.classes, config.max_class_drop), ("slice", found.slices, config.max_slice_drop))
    return [
        f"{kind} {_name(part, parts)} has too few groups to be judged"
        for kind, parts, allowed in kinds
        if allowed is not None
        for part in parts
        if part.interval_95 is None
    ]


def _name(part: Comparison, parts: Sequence[Comparison]) -> str:
    """A class or a slice's word; its column too where there are several, whose words may be the same."""
    several = len({other.column for other in parts if other.column is not None}) > 1
    return f"{part.column} {part.name}" if several and part.column is not None else part.name


def _say_interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:+.3f} to {interval[1]:+.3f}"


def _say_count(images: int, groups: int) -> str:
    return f"{images} images" if groups == images else f"{images} images in {groups} groups"
