"""Recipe section `search`, and the trials that follow from it: the same space and seed always give the same ones."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unet_core.errors import RecipeError

#: Sections whose parameters a trial may change: with another one, the data would be others.
SEARCHED = ("model", "augment", "train")
#: What all trials must have in common, or their scores could not be compared.
FIXED = ("train.epochs", "train.select_by", "train.validate_every_epochs")
#: Parameters that change what the loss measures.
OF_LOSS = ("train.loss", "train.class_weights")
#: Draws for each trial before the space is taken for exhausted.
MAX_DRAWS = 100

Changes = Mapping[str, Any]
"""Parameter, such as train.learning_rate -> its value in a trial."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Recipe section `search`: the trainings that `unet search` tries."""

    space: Mapping[str, Any]
    """Parameter -> a list of values, or {min: ..., max: ...}, with log: true where factors matter, not differences."""
    trials: int
    """How many; the first one is the recipe as it stands."""
    grace_epochs: int
    """Epochs that every trial trains before it may be ended."""
    seed: int
    reduction: int = 3
    """One in so many trials goes on, at grace_epochs and at each `reduction` times as many epochs."""

    def __post_init__(self) -> None:
        if not self.space:
            raise RecipeError("search.space: nothing to search. Name a parameter, such as train.learning_rate: [...].")
        for name, least in (("trials", 2), ("grace_epochs", 1), ("reduction", 2)):
            if getattr(self, name) < least:
                raise RecipeError(f"search.{name}: {getattr(self, name)}: must be at least {least}.")
        for name, values in self.space.items():
            _check(name, values)

    def check_score(self, select_by: str) -> None:
        """RecipeError where trials would be compared by losses that measure different things."""
        for name in self.space:
            if select_by == "loss" and name.startswith(OF_LOSS):
                raise RecipeError(
                    f"search.space.{name}: trials with different losses can't be compared by their loss. "
                    "Set train.select_by: dice."
                )

    def check_epochs(self, epochs: int) -> None:
        """RecipeError where trials would be over before any may be ended."""
        if self.grace_epochs > epochs:
            raise RecipeError(
                f"search.grace_epochs: {self.grace_epochs}: more than train.epochs, {epochs}: a trial would be over "
                f"before. Give {epochs} at most; with {epochs}, no trial is ended early."
            )


def draw_trials(config: SearchConfig, complete: Callable[[Changes], Any] = dict) -> list[Changes]:
    """What each trial changes in the recipe: nothing in the first, then one draw after the other, none of them twice.

    `complete` gives the whole recipe of such changes: where two are equal, the trials would be one training. More
    trials of the same recipe, space and seed begin with the same ones. There are fewer where the space has no more.
    """
    trials: list[Changes] = [{}]
    recipes, seen = [complete({})], list[Changes]()
    for number in range(MAX_DRAWS * config.trials):
        drawn = {name: _draw(values, config.seed, number, name) for name, values in config.space.items()}
        if drawn in seen:
            # A small space gives the same ones again and again, and to complete a recipe takes a while.
            continue
        seen.append(drawn)
        recipe = complete(drawn)
        if recipe not in recipes:
            trials.append(drawn)
            recipes.append(recipe)
        if len(trials) == config.trials:
            break
    return trials


def _check(name: str, values: Any) -> None:
    section, _, key = name.partition(".")
    if section not in SEARCHED or not key:
        raise RecipeError(f"search.space.{name}: write SECTION.PARAMETER, where SECTION is one of {list(SEARCHED)}.")
    if name in FIXED:
        raise RecipeError(f"search.space.{name}: all trials must have the same, to be compared. Remove it.")
    if isinstance(values, list) and values:
        return
    if not isinstance(values, Mapping) or not {"min", "max"} <= set(values) <= {"min", "max", "log"}:
        raise RecipeError(f"search.space.{name}: {values!r}: give a list of values, or {{min: ..., max: ...}}.")
    low, high = values["min"], values["max"]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (low, high))
    if not numbers or not low < high or (values.get("log") and low <= 0):
        raise RecipeError(f"search.space.{name}: {values!r}: min must be below max, and above 0 where log is true.")


def _draw(values: Any, seed: int, number: int, name: str) -> Any:
    digest = hashlib.sha256(f"{seed}:{number}:{name}".encode()).digest()
    uniform = int.from_bytes(digest[:8], "big") / 2**64
    if isinstance(values, list):
        return values[int(uniform * len(values))]
    low, high = values["min"], values["max"]
    if values.get("log"):
        found = math.exp(math.log(low) + uniform * (math.log(high) - math.log(low)))
    else:
        found = low + uniform * (high - low)
    # Digits that nobody would write are no better.
    return round(found) if isinstance(low, int) and isinstance(high, int) else float(f"{found:.3g}")
