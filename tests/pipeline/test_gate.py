import dataclasses

import numpy as np
import pytest

from pipeline.gate import GateConfig, Verdict, judge, judge_first
from unet_core.errors import RecipeError

CONFIG = GateConfig(min_score=0.5, confidence=0.95, min_images=4, bootstrap_draws=500, seed=0)


def scores(*values: float) -> dict[str, float]:
    return {f"image {number:03d}": value for number, value in enumerate(values)}


def test_a_first_champion_above_the_minimum_is_promoted() -> None:
    assert judge_first(scores(0.5, 0.7), CONFIG, score="Dice") == Verdict(
        decision="promoted",
        sentence="promoted: the first champion, Dice 0.600; minimum 0.5, 2 test images",
        images=2,
        challenger=0.6,
    )


def test_a_first_champion_at_the_minimum_is_promoted() -> None:
    assert judge_first(scores(0.25, 0.75), CONFIG, score="Dice").decision == "promoted"


def test_a_first_model_below_the_minimum_is_not_promoted() -> None:
    verdict = judge_first(scores(0.1, 0.3), CONFIG, score="Iou")
    assert verdict.decision == "not promoted"
    assert verdict.sentence == "not promoted: Iou 0.200 is below the recipe's minimum; minimum 0.5, 2 test images"


def test_a_first_model_without_scores_is_not_promoted() -> None:
    assert judge_first({}, CONFIG, score="Dice").decision != "promoted"


def test_a_challenger_that_is_better_everywhere_is_promoted() -> None:
    verdict = judge(scores(0.9, 0.8, 0.7, 0.6), scores(0.8, 0.7, 0.6, 0.5), CONFIG, score="Dice")
    assert verdict.decision == "promoted"
    assert verdict.confidence == 1
    assert (verdict.challenger, verdict.champion) == (pytest.approx(0.75), pytest.approx(0.65))
    assert verdict.difference == pytest.approx(0.1)
    assert verdict.interval_95 == (pytest.approx(0.1), pytest.approx(0.1))
    assert verdict.sentence == (
        "promoted: Dice 0.750 vs 0.650, +0.100 (95 % interval +0.100 to +0.100) on 4 images; "
        "better in 100.0% of draws, 95% needed"
    )


def test_a_challenger_that_is_worse_everywhere_is_not_promoted() -> None:
    verdict = judge(scores(0.8, 0.7, 0.6, 0.5), scores(0.9, 0.8, 0.7, 0.6), CONFIG, score="Dice")
    assert verdict.decision == "not promoted"
    assert verdict.confidence == 0
    assert verdict.sentence.startswith("not promoted: Dice 0.650 vs 0.750, -0.100 (95 % interval -0.100 to -0.100)")


def test_equal_scores_are_not_promoted() -> None:
    same = scores(0.9, 0.8, 0.7, 0.6, 0.5)
    verdict = judge(same, same, CONFIG, score="Dice")
    assert verdict.decision == "not promoted"
    assert verdict.confidence == 0
    assert verdict.difference == 0


def test_a_better_mean_within_the_noise_is_not_promoted() -> None:
    old = scores(*[0.5] * 10)
    new = scores(*[0.9, 0.1] * 4, 0.9, 0.2)
    verdict = judge(new, old, CONFIG, score="Dice")
    assert verdict.difference == pytest.approx(0.01)
    assert verdict.decision == "not promoted"
    assert verdict.interval_95 is not None
    assert verdict.interval_95[0] < 0 < verdict.interval_95[1]


def test_the_confidence_of_the_recipe_decides() -> None:
    old = scores(*[0.5] * 10)
    new = scores(*[0.6, 0.6, 0.45] * 3, 0.5)
    confidence = judge(new, old, CONFIG, score="Dice").confidence
    assert confidence is not None
    assert 0.9 < confidence < 1
    lax, strict = (dataclasses.replace(CONFIG, confidence=limit) for limit in (confidence - 0.001, confidence + 0.0005))
    assert judge(new, old, lax, score="Dice").decision == "promoted"
    assert judge(new, old, strict, score="Dice").decision == "not promoted"


def test_too_few_images_are_too_few_to_tell() -> None:
    verdict = judge(scores(0.9, 0.9, 0.9), scores(0.1, 0.1, 0.1), CONFIG, score="Dice")
    assert verdict.decision == "too few to tell"
    assert verdict.sentence == "too few to tell: 3 test images, promote.min_images is 4"
    assert (verdict.images, verdict.confidence) == (3, None)


def test_a_model_that_rightly_predicts_nothing_beats_one_that_paints_something() -> None:
    # Both rightly find nothing in most images; the challenger paints something on three empty ones.
    new = {**scores(0.92, 0.92, 0.92, 0.92), "empty 1": 0.0, "empty 2": 0.0, "empty 3": 0.0}
    old = scores(0.9, 0.9, 0.9, 0.9)
    verdict = judge(new, old, CONFIG, score="Dice")
    assert verdict.decision == "not promoted"
    assert verdict.images == 7
    assert verdict.difference == pytest.approx((4 * 0.02 - 3) / 7)


def test_equal_seeds_give_equal_verdicts_whatever_the_order_of_the_images() -> None:
    rng = np.random.default_rng(0)
    new, old = (scores(*rng.uniform(size=12)) for _ in range(2))
    turned = dict(reversed(new.items()))
    assert judge(new, old, CONFIG, score="Dice") == judge(turned, old, CONFIG, score="Dice")
    other = dataclasses.replace(CONFIG, seed=1)
    assert judge(new, old, CONFIG, score="Dice").interval_95 != judge(new, old, other, score="Dice").interval_95


@pytest.mark.parametrize("confidence", [0.49, 1.0, 95])
def test_an_impossible_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(RecipeError, match=r"^promote.confidence: .*: choose a number from 0.5 to below 1.$"):
        dataclasses.replace(CONFIG, confidence=confidence)


@pytest.mark.parametrize("wrong", [{"bootstrap_draws": 0}, {"min_images": 0}, {"min_score": 70.0}])
def test_a_gate_that_cannot_work_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=f"promote.{next(iter(wrong))}"):
        dataclasses.replace(CONFIG, **wrong)  # type: ignore[arg-type]


def test_of_two_models_of_equal_quality_at_most_the_recipes_share_is_promoted() -> None:
    """On 20 images, which is what recipes allow the gate to judge by."""
    config = dataclasses.replace(CONFIG, min_images=20, bootstrap_draws=1000)
    rng = np.random.default_rng(2)
    trials, promoted = 3000, 0
    for _ in range(trials):
        difficulty = rng.beta(8, 2, size=20)
        new, old = (scores(*np.clip(difficulty + rng.normal(0, 0.03, 20), 0, 1)) for _ in range(2))
        promoted += judge(new, old, config, score="Dice").decision == "promoted"
    # Three standard deviations of a binomial count.
    assert promoted / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5
    # A gate that never opens would pass the line above.
    assert promoted / trials > 0.02
