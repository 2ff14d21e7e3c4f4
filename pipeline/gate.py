"""Is the challenger better than the champion? Statistics on paired scores, no input or output."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unet_core.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Recipe section `promote`."""

    min_score: float
    """Least main score of a first champion."""
    confidence: float
    """Share of paired bootstrap draws, 0.5 to 1, in which the challenger must be better."""
    min_images: int
    """With fewer test images the gate can't tell."""
    bootstrap_draws: int
    seed: int
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:
            raise RecipeError(f"promote.confidence: {self.confidence}: choose a number from 0.5 to below 1.")
        if not 0 <= self.min_score <= 1:
            raise RecipeError(f"promote.min_score: {self.min_score}: choose a number from 0 to 1.")
        for name, least in (("min_images", 1), ("bootstrap_draws", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise RecipeError(f"promote.{name}: {getattr(self, name)}: must be at least {least}.")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate decided, and the numbers that it decided by."""

    decision: Literal["promoted", "not promoted", "too few to tell"]
    sentence: str
    images: int
    challenger: float
    champion: float | None = None
    difference: float | None = None
    interval_95: tuple[float, float] | None = None
    confidence: float | None = None
    """Share of draws in which the challenger is better."""


def judge_first(challenger: Mapping[str, float], config: GateConfig, *, score: str) -> Verdict:
    """Without a champion, the recipe's minimum decides."""
    if not challenger:
        return Verdict(
            decision="too few to tell", sentence="too few to tell: no test image has a score", images=0, challenger=0.0
        )
    mean = float(np.mean(list(challenger.values())))
    good = mean >= config.min_score
    reason = f"the first champion, {score} {mean:.3f}" if good else f"{score} {mean:.3f} is below the recipe's minimum"
    return Verdict(
        decision="promoted" if good else "not promoted",
        sentence=f"{'promoted' if good else 'not promoted'}: {reason}; minimum {config.min_score:g}, "
        f"{len(challenger)} test images",
        images=len(challenger),
        challenger=mean,
    )


def _stretch(images: int, confidence: float) -> float:
    """By how much the bootstrap's spread is too small for few images: its variance lacks a factor n / (n - 1), and its
    tails are those of a normal, not of a t distribution (Hesterberg 2015, the expanded percentile interval).
    """
    from scipy import stats

    if confidence <= 0.5:
        return 1.0
    exact = float(stats.t.ppf(confidence, images - 1) / stats.norm.ppf(confidence))
    return exact * float(np.sqrt(images / (images - 1)))


def judge(challenger: Mapping[str, float], champion: Mapping[str, float], config: GateConfig, *, score: str) -> Verdict:
    """Compare the two by a paired bootstrap over images.

    A model has no score for an image where it rightly predicts nothing; beside a model that paints something there,
    it is right, and counts as 1. Images where both are rightly empty say nothing and are left out.
    """
    keys = sorted(set(challenger) | set(champion))
    new, old = (np.array([scores.get(key, 1.0) for key in keys]) for scores in (challenger, champion))
    if len(keys) < max(2, config.min_images):
        return Verdict(
            decision="too few to tell",
            sentence=f"too few to tell: {len(keys)} test images, promote.min_images is {config.min_images}",
            images=len(keys),
            challenger=float(new.mean()) if keys else 0.0,
            champion=float(old.mean()) if keys else None,
        )
    difference = new - old
    draws = np.random.default_rng(config.seed).integers(0, len(keys), size=(config.bootstrap_draws, len(keys)))
    means = difference.mean() + _stretch(len(keys), config.confidence) * (
        difference[draws].mean(axis=1) - difference.mean()
    )
    low, high = (float(bound) for bound in np.quantile(means, [0.025, 0.975]))
    confidence = float((means > 0).mean())
    decision: Literal["promoted", "not promoted"] = "promoted" if confidence >= config.confidence else "not promoted"
    sentence = (
        f"{decision}: {score} {new.mean():.3f} vs {old.mean():.3f}, {difference.mean():+.3f} "
        f"(95 % interval {low:+.3f} to {high:+.3f}) on {len(keys)} images; better in {confidence:.1%} of draws, "
        f"{config.confidence:.0%} needed"
    )
    return Verdict(
        decision=decision,
        sentence=sentence,
        images=len(keys),
        challenger=float(new.mean()),
        champion=float(old.mean()),
        difference=float(difference.mean()),
        interval_95=(low, high),
        confidence=confidence,
    )
