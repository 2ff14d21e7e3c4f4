"""Where the working tree's model stands in the registry, which also remembers what a stopped retraining was about."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import history, tracking
from pipeline.params import read_sections
from pipeline.question import DECISION_TAG, SENTENCE_TAG, question_tags
from pipeline.retrain_reasons import Reason
from pipeline.retrain_summary import Outcome
from pipeline.whole_file import write_whole
from unet_core.errors import DataError, RecipeError

#: Tag of versions: what a retraining is about (JSON), until people were told what came of it.
UNDER_WAY_TAG = "retrain.under_way"
TOLD = "told"
#: In the folder of the working tree's state.
NOTED_NAME = "retrain-reasons.json"
#: Kinds of reasons that can't be seen any more once the stages have run.
VANISHING = ("first", "data", "recipe", "code")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the gate said."""

    decision: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a retraining is about, in case that it is stopped."""

    reasons: tuple[str, ...]
    samples: dict[str, int]
    """New, changed and removed ones since the commit before."""
    was_champion: bool
    """Whether this model was champion before."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The registry's view of the model that the receipt speaks of."""

    model: str
    version: tracking.Version | None
    """None: nothing is registered here yet, or this registry lacks it."""
    champion: tracking.Version | None
    champion_age_days: float | None
    answer: Answer | None
    """To today's question; None: not asked yet."""
    memory: Memory | None
    is_half_moved: bool

    @property
    def is_champion(self) -> bool:
        """Whether the model is champion."""
        mine, best = self.version, self.champion
        return mine is not None and best is not None and mine.model_sha256 == best.model_sha256

    @property
    def is_open(self) -> bool:
        """Whether the gate has something to decide, or to bring to an end."""
        return self.is_half_moved or (self.answer is None and not self.is_champion)


def read_standing(client: tracking.Client, *, receipt: Path, shards: Path) -> Standing:
    """Ask the registry; it is not changed."""
    name = model_name()
    sha256 = _receipt_model(receipt)
    version = tracking.find_version(client, name, sha256) if sha256 else None
    champion = tracking.version_by_alias(client, name, tracking.CHAMPION)
    entries = history.history(client, name)
    return Standing(
        model=name,
        version=version,
        champion=champion,
        champion_age_days=tracking.age_days(client, champion) if champion else None,
        answer=_find_answer(version, champion, entries, shards) if version else None,
        memory=_read_memory(version.tags.get(UNDER_WAY_TAG, TOLD)) if version else None,
        is_half_moved=bool(entries) and not entries[-1].is_done,
    )


def nowhere() -> Standing:
    """How things stand before there is a registry."""
    return Standing(
        model=model_name(),
        version=None,
        champion=None,
        champion_age_days=None,
        answer=None,
        memory=None,
        is_half_moved=False,
    )


def conclude(standing: Standing, memory: Memory) -> tuple[Outcome, str]:
    """What came of it: promoted is what became champion by this call, or by a stopped one that this one ends."""
    answer = standing.answer
    if standing.is_champion and not memory.was_champion:
        return "promoted", answer.sentence if answer else "champion by other means"
    if standing.is_champion:
        return "not promoted", "the model is the same as before, and champion already"
    if answer is not None and answer.decision == "promoted":
        # Its sentence speaks of then.
        return "not promoted", "it was champion before, and people made another version champion since"
    return "not promoted", answer.sentence if answer else "the gate gave no answer"


def read_verdict(report: Path, standing: Standing) -> dict[str, Any]:
    """The gate's numbers, which lie beside the report, if they are of this model."""
    try:
        found: dict[str, Any] = json.loads(report.with_name("verdict.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_mine = standing.version is not None and found.get("model_sha256") == standing.version.model_sha256
    return found if is_mine else {}


def remember(client: tracking.Client, version: tracking.Version, memory: Memory) -> None:
    """Note what the retraining is about; `forget` when people were told."""
    tracking.set_version_tags(client, version, {UNDER_WAY_TAG: json.dumps(asdict(memory))})


def forget(client: tracking.Client, version: tracking.Version) -> None:
    """Note that people were told."""
    tracking.set_version_tags(client, version, {UNDER_WAY_TAG: TOLD})


def note_reasons(folder: Path, reasons: Sequence[Reason]) -> tuple[Reason, ...]:
    """Note those that a training makes vanish; all, behind the noted ones since a call last came to its end.

    Until the model is registered, only this file knows. Where it is lost, people hear of the last call's reasons alone,
    and nothing else changes.
    """
    path = folder / NOTED_NAME
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        noted = [Reason(kind=entry["kind"], text=str(entry["text"])) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError):
        noted = []
    causes = tuple(dict.fromkeys([*noted, *reasons]))
    write_whole(path, json.dumps([asdict(reason) for reason in causes if reason.kind in VANISHING]).encode())
    return causes


def forget_reasons(folder: Path) -> None:
    """Note that nothing is under way."""
    (folder / NOTED_NAME).unlink(missing_ok=True)


def model_name() -> str:
    """The recipe's name of the model; the stage `register` would import half a second of what is not needed here."""
    section: Any = read_sections().get("register")
    if not isinstance(section, dict) or not isinstance(section.get("model"), str):
        raise RecipeError("missing key: params.yaml: register.model. Add it; recipes/ shows examples.")
    return str(section["model"])


def _receipt_model(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["model_sha256"])
    except (OSError, ValueError, TypeError, KeyError):
        # None yet, or half of one: then its stage is stale.
        return None


def _find_answer(
    version: tracking.Version,
    champion: tracking.Version | None,
    entries: tuple[history.Entry, ...],
    shards: Path,
) -> Answer | None:
    """What is known without asking. A version that was champion once is not asked about again: people went back."""
    tags = version.tags
    try:
        asked = question_tags(shards)
    except DataError:
        # No shards, or damaged ones: then their stage is stale.
        return None
    moves = [entry for entry in entries if entry.version == version.number and entry.is_done and not entry.void]
    # The answer is written before the alias moves: "promoted" without a move is one that was stopped in between.
    if DECISION_TAG in tags and asked.items() <= tags.items() and (moves or tags[DECISION_TAG] != "promoted"):
        return Answer(decision=tags[DECISION_TAG], sentence=tags.get(SENTENCE_TAG, ""))
    if moves:
        return Answer(decision="promoted", sentence=moves[-1].reason)
    if champion is not None and champion.number == version.number:
        return Answer(decision="promoted", sentence="champion by other means")
    return None


def _read_memory(text: str) -> Memory | None:
    if text == TOLD:
        return None
    try:
        body = json.loads(text)
        return Memory(**{**body, "reasons": tuple(body["reasons"])})
    except (ValueError, TypeError, KeyError):
        return Memory(reasons=("a call of another version of the project",), samples={}, was_champion=False)
