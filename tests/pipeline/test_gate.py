import dataclasses

import numpy as np
import pytest

from pipeline.comparison import PairedScores
from pipeline.gate import GateConfig, Measured, Verdict, judge, judge_first, refuse_seen
from unet_core.errors import RecipeError, RegistryError

CONFIG = GateConfig(min_score=0.5, confidence=0.95, min_groups=4, bootstrap_draws=500, seed=0)
NAN = float("nan")
NOTHING = Measured()


def pair(new, old, *, slices=None, groups=None, classes=("cell",)) -> PairedScores:
    """Scores of images (N,) or of images and classes (N, K)."""
    challenger, champion = (np.array(scores, dtype=float).reshape(len(scores), -1) for scores in (new, old))
    names = groups or [f"image {number:03d}" for number in range(len(new))]
    return PairedScores(groups=names, classes=classes, challenger=challenger, champion=champion, slices=slices or {})


def first(*values: float, measured: Measured = NOTHING, config: GateConfig = CONFIG) -> Verdict:
    groups = [f"image {number}" for number in range(len(values))]
    return judge_first(np.array(values)[:, None], groups, config, score="Dice", measured=measured)


def ask(scores: PairedScores, config: GateConfig = CONFIG, measured: Measured = NOTHING) -> Verdict:
    return judge(scores, config, score="Dice", measured=measured)


def test_a_first_champion_above_the_minimum_is_promoted() -> None:
    assert first(0.5, 0.7, 0.6, 0.6) == Verdict(
        decision="promoted",
        sentence="promoted: the first champion, Dice 0.600, minimum 0.5; on 4 images",
        images=4,
        groups=4,
        challenger=0.6,
    )


def test_a_first_champion_at_the_minimum_is_promoted() -> None:
    assert first(0.25, 0.75, 0.25, 0.75).decision == "promoted"


def test_a_first_model_below_the_minimum_is_not_promoted() -> None:
    verdict = first(0.1, 0.3, 0.1, 0.3)
    assert verdict.decision == "not promoted"
    assert verdict.sentence == "not promoted: Dice 0.200 is below the recipe's minimum 0.5; on 4 images"


def test_a_first_model_without_scores_is_not_promoted() -> None:
    assert first(NAN).sentence == "too few to tell: no test image has a score"


def test_a_first_model_on_few_groups_is_not_promoted_either() -> None:
    verdict = first(0.9, 0.9, 0.9, NAN)
    assert (verdict.decision, verdict.images, verdict.groups) == ("too few to tell", 3, 3)
    assert verdict.sentence == "too few to tell: 3 images, promote.min_groups is 4"


def test_a_challenger_that_is_better_everywhere_is_promoted() -> None:
    verdict = ask(pair([0.9, 0.8, 0.7, 0.6], [0.8, 0.7, 0.6, 0.5]))
    assert verdict.decision == "promoted"
    assert verdict.confidence == 1
    assert (verdict.challenger, verdict.champion) == (pytest.approx(0.75), pytest.approx(0.65))
    assert verdict.difference == pytest.approx(0.1)
    assert verdict.interval_95 == (pytest.approx(0.1), pytest.approx(0.1))
    assert verdict.sentence == "promoted: Dice 0.750 vs 0.650, +0.100 (95 % interval +0.100 to +0.100) on 4 images"


def test_the_sentence_names_groups_and_the_worst_class_and_slice() -> None:
    new = [[0.9, 0.8], [0.8, 0.7], [0.9, 0.6], [0.8, 0.9], [0.9, 0.8]]
    old = np.array(new) - [0.1, 0.05]
    scores = pair(
        new,
        old,
        classes=("ring", "plus"),
        groups=["a", "a", "b", "c", "d"],
        slices={"stain": ["he_pink", "he_pink", "fluo", "fluo", None]},
    )
    assert ask(scores).sentence == (
        "promoted: Dice 0.810 vs 0.735, +0.075 (95 % interval +0.075 to +0.075) on 5 images in 4 groups; "
        "worst class plus +0.050; worst slice fluo +0.075"
    )


def test_a_challenger_that_is_worse_everywhere_is_not_promoted() -> None:
    verdict = ask(pair([0.8, 0.7, 0.6, 0.5], [0.9, 0.8, 0.7, 0.6]))
    assert (verdict.decision, verdict.confidence) == ("not promoted", 0)
    assert verdict.sentence == (
        "not promoted: Dice 0.650 vs 0.750, -0.100 (95 % interval -0.100 to -0.100) on 4 images; "
        "better with 0.0% confidence, 95% needed"
    )


def test_an_interval_that_includes_zero_is_not_left_to_speak_alone() -> None:
    drawn = np.random.default_rng(0).normal(size=63)
    # 1.8 standard errors above 0: between the 95 % of one side and those of both.
    gains = 0.04 * ((drawn - drawn.mean()) / drawn.std(ddof=1) + 1.8 / np.sqrt(63))
    verdict = ask(pair(gains + 0.5, np.full(63, 0.5)))
    assert verdict.decision == "promoted"
    assert verdict.interval_95 is not None
    assert verdict.interval_95[0] <= 0
    assert verdict.sentence.endswith(f" on 63 images; better with {verdict.confidence:.1%} confidence")


def test_a_slice_that_is_too_small_for_its_limit_is_named() -> None:
    scores = pair(np.full(10, 0.9), np.full(10, 0.8), slices={"stain": ["rare", *["pink"] * 9]})
    assert "has too few groups" not in ask(scores).sentence
    sentence = ask(scores, dataclasses.replace(CONFIG, max_slice_drop=0.01)).sentence
    assert sentence.endswith("; slice rare has too few groups to be judged")


def test_equal_scores_are_not_promoted() -> None:
    same = [0.9, 0.8, 0.7, 0.6, 0.5]
    verdict = ask(pair(same, same))
    assert (verdict.decision, verdict.confidence, verdict.difference) == ("not promoted", 0, 0)


def test_equal_scores_pass_where_the_recipe_allows_a_margin() -> None:
    same = [0.9, 0.8, 0.7, 0.6, 0.5]
    lax = dataclasses.replace(CONFIG, margin=0.005)
    assert ask(pair(same, same), lax).sentence == (
        "promoted: Dice 0.700 vs 0.700, +0.000 (95 % interval +0.000 to +0.000) on 5 images; "
        "not worse by more than 0.005"
    )
    worse = ask(pair(np.array(same) - 0.01, same), lax)
    assert worse.decision == "not promoted"
    assert worse.reasons == ("not worse by more than 0.005 with 0.0% confidence, 95% needed",)


def test_a_better_mean_within_the_noise_is_not_promoted() -> None:
    verdict = ask(pair([*[0.9, 0.1] * 4, 0.9, 0.2], [0.5] * 10))
    assert verdict.difference == pytest.approx(0.01)
    assert verdict.decision == "not promoted"
    assert verdict.interval_95 is not None
    assert verdict.interval_95[0] < 0 < verdict.interval_95[1]


def test_the_confidence_of_the_recipe_decides() -> None:
    scores = pair([*[0.6, 0.6, 0.47] * 3, 0.5], [0.5] * 10)
    confidence = ask(scores).confidence
    assert confidence is not None
    assert 0.9 < confidence < 1
    lax, strict = (dataclasses.replace(CONFIG, confidence=limit) for limit in (0.8, 0.9995))
    assert ask(scores, lax).decision == "promoted"
    assert ask(scores, strict).decision == "not promoted"


def test_a_class_that_surely_falls_too_far_holds_a_better_model_back() -> None:
    rng = np.random.default_rng(0)
    old = rng.uniform(0.6, 0.7, size=(20, 2))
    new = old + np.array([0.2, -0.06]) + rng.normal(0, 0.005, size=(20, 2))
    scores = pair(new, old, classes=("ring", "plus"))
    assert ask(scores).decision == "promoted"
    verdict = ask(scores, dataclasses.replace(CONFIG, max_class_drop=0.02))
    assert verdict.decision == "not promoted"
    (reason,) = verdict.reasons
    assert reason.startswith("class plus falls by 0.059 (95 % interval -0.06")
    assert reason.endswith(", 0.02 allowed")
    # Within what is allowed, or not surely beyond it.
    assert ask(scores, dataclasses.replace(CONFIG, max_class_drop=0.06)).decision == "promoted"


def test_a_slice_that_surely_falls_too_far_holds_a_better_model_back() -> None:
    old = np.full(24, 0.6)
    new = old + np.where(np.arange(24) < 6, -0.1, 0.2)
    scores = pair(new, old, slices={"stain": ["pink"] * 6 + ["blue"] * 18})
    verdict = ask(scores, dataclasses.replace(CONFIG, max_slice_drop=0.05))
    assert verdict.reasons == ("slice pink falls by 0.100 (95 % interval -0.100 to -0.100), 0.05 allowed",)
    assert ask(scores).decision == "promoted"


def test_of_several_columns_a_slice_is_named_with_its_own() -> None:
    old = np.full(24, 0.6)
    new = old + np.where(np.arange(24) < 6, -0.1, 0.2)
    slices = {"stain": ["1"] * 6 + ["2"] * 18, "scanner": ["1"] * 12 + ["2"] * 12}
    verdict = ask(pair(new, old, slices=slices), dataclasses.replace(CONFIG, max_slice_drop=0.05))
    assert verdict.reasons == ("slice stain 1 falls by 0.100 (95 % interval -0.100 to -0.100), 0.05 allowed",)
    assert "; worst slice stain 1 -0.100; " in verdict.sentence


def test_a_slice_of_few_groups_cannot_be_said_to_fall() -> None:
    old = np.full(24, 0.6)
    new = old + np.where(np.arange(24) < 3, -0.1, 0.2)
    scores = pair(new, old, slices={"stain": ["pink"] * 3 + ["blue"] * 21})
    verdict = ask(scores, dataclasses.replace(CONFIG, max_slice_drop=0.05))
    assert verdict.decision == "promoted"
    assert "worst slice pink -0.100" in verdict.sentence


def test_limits_hold_for_the_first_champion_and_for_later_ones() -> None:
    config = dataclasses.replace(CONFIG, max_ece=0.05, max_weights_mb=10.0, max_latency_ms=200.0)
    bad = Measured(ece=0.081, weights_mb=31.2, latency_ms=412.4)
    reasons = (
        "calibration error 0.081, at most 0.05 allowed",
        "weights 31.2 MB, at most 10 MB allowed",
        "time for an image 412 ms, at most 200 ms allowed",
    )
    better = pair([0.9, 0.8, 0.7, 0.6], [0.8, 0.7, 0.6, 0.5])
    assert ask(better, config, bad).reasons == reasons
    assert first(0.9, 0.9, 0.9, 0.9, measured=bad, config=config).reasons == reasons
    assert ask(better, config, Measured(ece=0.05, weights_mb=10.0, latency_ms=200.0)).decision == "promoted"
    assert ask(better, CONFIG, bad).decision == "promoted"


def test_too_few_groups_are_too_few_to_tell_however_many_images() -> None:
    scores = pair([0.9] * 6, [0.1] * 6, groups=["a", "a", "b", "b", "c", "c"])
    verdict = ask(scores)
    assert verdict.decision == "too few to tell"
    assert verdict.sentence == "too few to tell: 6 images in 3 groups, promote.min_groups is 4"
    assert (verdict.images, verdict.groups, verdict.confidence) == (6, 3, None)


def test_images_without_a_score_make_no_group() -> None:
    scores = pair([0.9, 0.9, 0.9, NAN], [0.1, 0.1, 0.1, NAN])
    assert ask(scores).sentence == "too few to tell: 3 images, promote.min_groups is 4"


def test_a_model_that_rightly_predicts_nothing_beats_one_that_paints_something() -> None:
    # Both rightly find nothing in most images; the challenger paints something on three empty ones.
    verdict = ask(pair([0.92] * 4 + [0.0] * 3 + [NAN], [0.9] * 4 + [NAN] * 4))
    assert verdict.decision == "not promoted"
    assert verdict.images == 7
    assert verdict.difference == pytest.approx((4 * 0.02 - 3) / 7)


def test_a_test_group_that_a_model_was_trained_on_is_refused() -> None:
    trained = {"unet version 3": {"p1", "p2"}, "unet version 1": {"p1", "p8", "p9"}}
    refuse_seen(["p4", "p5"], trained)
    with pytest.raises(RegistryError) as caught:
        refuse_seen(["p7", "p8", "p9", "p8"], trained)
    assert str(caught.value) == (
        "can't be judged: unet version 1 was trained on 2 of 3 groups of today's test split, such as 'p8'. "
        "Restore the old split settings, or train it anew on today's split."
    )


@pytest.mark.parametrize("confidence", [0.49, 1.0, 95])
def test_an_impossible_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(RecipeError, match=r"^promote.confidence: .*: choose a number from 0.5 to below 1.$"):
        dataclasses.replace(CONFIG, confidence=confidence)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bootstrap_draws": 0},
        {"min_groups": 0},
        {"min_score": 70.0},
        {"margin": -0.1},
        {"max_class_drop": 2.0},
        {"max_weights_mb": 0.0},
    ],
)
def test_a_gate_that_cannot_work_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=f"promote.{next(iter(wrong))}"):
        dataclasses.replace(CONFIG, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("margin", [0.0, 0.005])
def test_of_two_models_of_equal_quality_at_most_the_recipes_share_is_promoted(margin: float) -> None:
    """On 20 images, which is what recipes allow the gate to judge by; benchmarks/gate.py has more cases."""
    config = dataclasses.replace(CONFIG, min_groups=20, bootstrap_draws=400, margin=margin)
    rng = np.random.default_rng(2)
    trials, promoted = 600, 0
    for _ in range(trials):
        difficulty = rng.beta(8, 2, size=20)
        new, old = (difficulty + rng.normal(0, 0.03, 20) for _ in range(2))
        promoted += ask(pair(new - margin, old), config).decision == "promoted"
    # Three standard deviations of a binomial count.
    assert promoted / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5
    # A gate that never opens would pass the line above.
    assert promoted / trials > 0.01


def test_losses_with_a_long_tail_are_not_promoted_for_what_few_images_do_not_show() -> None:
    """Lognormal losses of skewness 6 on 20 images: one image in a hundred loses more than three deviations."""
    config = dataclasses.replace(CONFIG, min_groups=20, bootstrap_draws=400)
    rng = np.random.default_rng(4)
    trials, promoted = 600, 0
    for _ in range(trials):
        new = 0.7 + 0.017 * (np.exp(0.5) - rng.lognormal(size=20))
        promoted += ask(pair(new, [0.7] * 20), config).decision == "promoted"
    assert 0.01 < promoted / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_groups_whose_images_err_together_are_not_taken_for_independent_images() -> None:
    """Twenty volumes of ten slices that share their volume's luck: over images, a third would be promoted by chance."""
    config = dataclasses.replace(CONFIG, min_groups=20, bootstrap_draws=300)
    rng = np.random.default_rng(0)
    trials, promoted = 300, 0
    groups = [f"volume {number // 10}" for number in range(200)]
    for _ in range(trials):
        luck = rng.normal(0, 0.03, 20).repeat(10) + rng.normal(0, 0.01, 200)
        promoted += ask(pair(0.7 + luck, [0.7] * 200, groups=groups), config).decision == "promoted"
    assert promoted / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5
