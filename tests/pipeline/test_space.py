from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.space import SearchConfig, draw_trials
from unet_core.errors import RecipeError

SPACE = {
    "train.learning_rate": {"min": 1e-4, "max": 1e-1, "log": True},
    "train.weight_decay": {"min": 0.0, "max": 0.5},
    "train.warmup_steps": {"min": 10, "max": 90},
    "model.width": [8, 16, 32],
}


def config(**changes: Any) -> SearchConfig:
    return SearchConfig(**{"space": SPACE, "trials": 12, "grace_epochs": 2, "seed": 0, **changes})


def test_the_first_trial_is_the_recipe_itself() -> None:
    assert draw_trials(config())[0] == {}


@given(st.integers(0, 2**31))
def test_draws_lie_in_the_space(seed: int) -> None:
    trials = draw_trials(config(seed=seed))[1:]
    assert len(trials) == 11
    for trial in trials:
        assert set(trial) == set(SPACE)
        assert 1e-4 <= trial["train.learning_rate"] <= 1e-1
        assert 0 <= trial["train.weight_decay"] <= 0.5
        assert type(trial["train.warmup_steps"]) is int
        assert 10 <= trial["train.warmup_steps"] <= 90
        assert trial["model.width"] in (8, 16, 32)


def test_the_same_space_and_seed_give_the_same_trials_and_more_begin_alike() -> None:
    assert draw_trials(config()) == draw_trials(config())
    assert draw_trials(config(trials=30))[:12] == draw_trials(config())
    assert draw_trials(config(seed=1))[1:] != draw_trials(config())[1:]


def test_a_factor_is_drawn_as_often_from_each_power_of_ten() -> None:
    rates = [trial["train.learning_rate"] for trial in draw_trials(config(trials=301))[1:]]
    counts = [sum(low <= rate < 10 * low for rate in rates) for low in (1e-4, 1e-3, 1e-2)]
    assert all(70 < count < 130 for count in counts)


def test_no_trial_comes_twice_and_a_small_space_has_few() -> None:
    trials = draw_trials(config(space={"model.width": [8, 16], "model.depth": [3, 4]}, trials=20))
    assert len(trials) == 1 + 4
    assert len({tuple(trial.items()) for trial in trials}) == 5


def test_trials_that_make_one_whole_recipe_are_one_trial_and_it_is_the_first() -> None:
    made = config(space={"model.width": [8, 16], "model.depth": [3, 4]}, trials=20)
    # As where the recipe has width 8 and depth 4, and depth changes nothing at width 16.
    complete = {(8, 3): "a", (8, 4): "recipe", (16, 3): "b", (16, 4): "b"}
    trials = draw_trials(made, lambda changes: complete[(changes.get("model.width", 8), changes.get("model.depth", 4))])
    assert trials[0] == {}
    assert {"model.width": 8, "model.depth": 3} in trials
    assert {"model.width": 8, "model.depth": 4} not in trials
    assert len(trials) == 3


def test_epochs_that_every_trial_trains_are_epochs_that_there_are() -> None:
    made = config(grace_epochs=5)
    made.check_epochs(5)
    with pytest.raises(RecipeError) as caught:
        made.check_epochs(4)
    assert str(caught.value) == (
        "search.grace_epochs: 5: more than train.epochs, 4: a trial would be over before. Give 4 at most; with 4, no "
        "trial is ended early."
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"space": {}}, "search.space: nothing to search. Name a parameter, such as train.learning_rate: [...]."),
        ({"trials": 1}, "search.trials: 1: must be at least 2."),
        ({"grace_epochs": 0}, "search.grace_epochs: 0: must be at least 1."),
        ({"reduction": 1}, "search.reduction: 1: must be at least 2."),
        (
            {"space": {"split.seed": [1, 2]}},
            "search.space.split.seed: write SECTION.PARAMETER, where SECTION is one of ['model', 'augment', 'train'].",
        ),
        (
            {"space": {"train.epochs": [1, 2]}},
            "search.space.train.epochs: all trials must have the same, to be compared. Remove it.",
        ),
        (
            {"space": {"model.width": 8}},
            "search.space.model.width: 8: give a list of values, or {min: ..., max: ...}.",
        ),
        (
            {"space": {"model.width": {"min": 8, "max": 8}}},
            "search.space.model.width: {'min': 8, 'max': 8}: min must be below max, and above 0 where log is true.",
        ),
        (
            {"space": {"train.weight_decay": {"min": 0.0, "max": 1.0, "log": True}}},
            "search.space.train.weight_decay: {'min': 0.0, 'max': 1.0, 'log': True}: "
            "min must be below max, and above 0 where log is true.",
        ),
    ],
)  # fmt: skip
def test_impossible_space_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        config(**changes)
    assert str(caught.value) == text


def test_different_losses_are_not_compared_by_loss() -> None:
    made = config(space={"train.loss": [{"dice": 1.0}, {"cross_entropy": 1.0}]})
    made.check_score("dice")
    with pytest.raises(RecipeError) as caught:
        made.check_score("loss")
    assert str(caught.value) == (
        "search.space.train.loss: trials with different losses can't be compared by their loss. "
        "Set train.select_by: dice."
    )
