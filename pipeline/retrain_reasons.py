"""Why a retraining should act: decisions on what was seen, no input or output.

Each finder adds to one list of reasons; whatever else should make a retraining act is one more finder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.command import first_names
from pipeline.public_text import public

Kind = Literal["first", "data", "recipe", "code", "results", "record", "gate", "champion", "age", "drift", "force"]

#: Names that a sentence shows of many.
MAX_NAMES = 3


@dataclass(frozen=True, kw_only=True)
class Reason:
    """A reason to act."""

    kind: Kind
    text: str
    """Part of a sentence."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a look at source, pipeline, git and registry found."""

    source: str
    ledger: str
    new: int = 0
    """Samples of the source that the ledger does not know."""
    changed: int = 0
    missing: int = 0
    is_first: bool = False
    """Whether no stage ever ended here."""
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Stage -> what it depends on and has changed since it ran."""
    unfinished: Sequence[str] = ()
    """Stages whose results are not as they were left."""
    is_recorded: bool = True
    """Whether git has the results, or the patch file."""
    unpushed: str | None = None
    """A branch of results that `origin` lacks."""
    champion: str | None = None
    """Number of the champion's version."""
    champion_age_days: float | None = None
    is_judged: bool | None = None
    """Whether the gate has answered for this model on today's test images; None where no model is registered yet."""
    interrupted: Sequence[str] = ()
    """Reasons of an earlier call that ended before anybody was told."""
    drift: str | None = None
    """How the champion's recent inputs differ from the training data, as a sentence; None: not, or nobody knows."""
    is_half_moved: bool = False
    """Whether somebody began to move the champion and did not end."""


def find_reasons(seen: Seen, *, max_age_days: float | None, force: str | None) -> list[Reason]:
    """All reasons to act, in the order of the road; none: there is nothing to do."""
    return [
        *_of_data(seen),
        *([Reason(kind="first", text="nothing was trained here yet")] if seen.is_first else _of_inputs(seen)),
        *_of_interrupted_calls(seen),
        *_of_champion(seen, max_age_days),
        *([Reason(kind="drift", text=seen.drift)] if seen.drift is not None else []),
        *([Reason(kind="force", text=f"asked for: {force}")] if force is not None else []),
    ]


def join_reasons(reasons: Sequence[Reason]) -> str:
    """All of them, for people."""
    return "; ".join(reason.text for reason in reasons)


def is_stale(seen: Seen) -> bool:
    """Whether `dvc repro` would do something."""
    return bool(seen.is_first or seen.inputs or seen.unfinished)


def say_idle(seen: Seen, model: str) -> str:
    """Why there is nothing to do, as a sentence."""
    age = "" if seen.champion_age_days is None else f", made {seen.champion_age_days:.0f} days ago"
    champion = f"version {seen.champion} is champion{age}" if seen.champion else "the gate has let no version pass"
    return f"nothing to do: no new samples in {public(seen.source)}, no changed recipe or code; of {model}, {champion}"


def _of_data(seen: Seen) -> list[Reason]:
    counts = {"new": seen.new, "changed": seen.changed, "missing": seen.missing}
    told = [f"{count} {word}" for word, count in counts.items() if count]
    if told:
        plural = "sample" if sum(counts.values()) == 1 else "samples"
        return [Reason(kind="data", text=f"{', '.join(told)} {plural} in {public(seen.source)}")]
    return []


def _of_inputs(seen: Seen) -> list[Reason]:
    """What stages depend on and has changed; what they made of each other follows from that."""
    names = {name for inputs in seen.inputs.values() for name in inputs}
    recipe = sorted(name.removeprefix("params.yaml: ") for name in names if name.startswith("params.yaml: "))
    if not recipe and "params.yaml" in names:
        recipe = ["a section that only commands read"]
    code = sorted(name for name in names if name.endswith((".py", "constraints.txt", "dvc.yaml")))
    reasons = []
    if seen.ledger in names and not (seen.new or seen.changed or seen.missing):
        reasons.append(Reason(kind="data", text=f"recorded samples that no stage has seen, in {seen.ledger}"))
    elif seen.source in names and not (seen.new or seen.changed or seen.missing):
        reasons.append(Reason(kind="data", text=f"other files in {public(seen.source)}, the same samples"))
    if recipe:
        reasons.append(Reason(kind="recipe", text=f"changed recipe: {first_names(recipe, MAX_NAMES)}"))
    if code:
        reasons.append(Reason(kind="code", text=f"changed code: {first_names(code, MAX_NAMES)}"))
    known = {*code, seen.ledger, seen.source, *(name for name in names if name.startswith("params.yaml"))}
    unfinished = sorted({*seen.unfinished, *(stage for stage, inputs in seen.inputs.items() if set(inputs) - known)})
    if unfinished:
        reasons.append(
            Reason(kind="results", text=f"missing or unfinished results of {first_names(unfinished, MAX_NAMES)}")
        )
    return reasons


def _of_interrupted_calls(seen: Seen) -> list[Reason]:
    """What an earlier call, or somebody by hand, did not bring to its end."""
    reasons = []
    if not seen.is_recorded and not is_stale(seen):
        reasons.append(Reason(kind="record", text="results that git does not have yet"))
    if seen.unpushed is not None:
        reasons.append(Reason(kind="record", text=f"branch {seen.unpushed} is not at origin yet"))
    if seen.interrupted:
        reasons.append(Reason(kind="gate", text=f"an earlier call was stopped ({'; '.join(seen.interrupted)})"))
    elif seen.is_half_moved:
        reasons.append(Reason(kind="gate", text="a move of the champion was stopped halfway"))
    elif seen.is_judged is False and not is_stale(seen):
        reasons.append(Reason(kind="gate", text="the gate has not judged this model on today's test images"))
    return reasons


def _of_champion(seen: Seen, max_age_days: float | None) -> list[Reason]:
    # A model that the gate refused is refused again until something changes.
    if seen.champion is None and seen.is_judged is not True:
        return [Reason(kind="champion", text="there is no champion")]
    age = seen.champion_age_days
    if max_age_days is not None and age is not None and age > max_age_days:
        return [Reason(kind="age", text=f"the champion is {age:.0f} days old, {max_age_days:g} allowed")]
    return []
