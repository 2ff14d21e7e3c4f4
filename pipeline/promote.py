"""`unet promote`: the gate compares challenger and champion on today's test images, and moves the alias or not."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import tracking
from pipeline.announce import announce
from pipeline.command import say
from pipeline.history import (
    MAX_REASON,
    Entry,
    Move,
    champions,
    check_reason,
    earlier_champions,
    is_another_model,
    move_champion,
    settle,
)
from pipeline.json_file import write_json
from pipeline.judging import DataPaths, Judgement, judge_versions
from pipeline.lineage_record import Inputs
from pipeline.placement import read_placement
from pipeline.question import DECISION_TAG, SENTENCE_TAG, question_tags
from pipeline.receipt import Receipt, read_receipt, registered_version
from pipeline.report_page import add_promotion
from pipeline.scoring import registered_model
from pipeline.stages.split import read_splits
from unet_core.errors import RegistryError


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks for."""

    version: str | None = None
    """None: the receipt's."""
    force: bool = False
    """Without the gate; it wants a reason."""
    reason: str = ""

    def __post_init__(self) -> None:
        if self.force != bool(self.reason.strip()):
            raise RegistryError("--force and --reason go together: say in a sentence why the gate is passed by.")
        check_reason(self.reason)


def promote(*, data: DataPaths, model: Path, receipt: Path, report: Path, ask: Request) -> None:
    """Score, judge, move the alias if the gate opens, and write verdict and page beside the report."""
    placement = read_placement()
    client = tracking.connect(placement.tracking_uri, placement.experiment)
    known = read_receipt(receipt)
    entries = settle(client, known.model)
    challenger = _challenger(client, known, model, data, ask)
    champion = tracking.version_by_alias(client, challenger.name, tracking.CHAMPION)
    if champion is not None and _is_same(champion, challenger):
        say(f"nothing to do: {champion.name} version {champion.number} is champion already, with the same model")
        return
    if ask.force:
        # Nothing may make the champion a model that nobody can load.
        with registered_model(challenger):
            pass
        sha256 = challenger.model_sha256
        move = Move(action="forced", version=challenger.number, reason=ask.reason, model_sha256=sha256)
        entry = move_champion(client, challenger.name, lambda _: move)
        announce(placement.on_promotion, challenger.name, entry)
        say(f"{challenger.name} version {challenger.number} is champion, without the gate: {entry.reason}")
        return
    if champion is None:
        _refuse_lost_champion(client, known.model, entries)
    # Before judging, which takes a while: what is edited meanwhile is another question.
    asked = question_tags(data.shards)
    judgement = judge_versions(client, challenger, champion, data, placement)
    verdict, verdict_path = judgement.verdict, report.with_name("verdict.json")
    # Before the move, which can fail: that these images were looked at is true all the same.
    write_json(verdict_path, _record(judgement, challenger, champion))
    tracking.set_version_tags(client, challenger, {**asked, **_tags(judgement, champion)})
    if verdict.decision == "promoted":
        reason, sha256 = verdict.sentence[:MAX_REASON], challenger.model_sha256
        move = Move(action="promoted", version=challenger.number, reason=reason, model_sha256=sha256)
        entry = move_champion(client, challenger.name, partial(_unless_changed, champion, move))
        announce(placement.on_promotion, challenger.name, entry)
    say(f"{challenger.name} version {challenger.number} {verdict.sentence}")
    say(f"earlier judgements on these test images, or half of them: {judgement.judgements_before}")
    if report.exists() and challenger.model_sha256 == known.model_sha256:
        say(f"report with the verdict: {add_promotion(report, verdict, challenger, champion)}")
    else:
        say(f"verdict: {verdict_path}")


def _is_same(champion: tracking.Version, challenger: tracking.Version) -> bool:
    """The same version, or another with the same model; who registered it by other means left no hash."""
    return champion.number == challenger.number or champion.model_sha256 == challenger.model_sha256 != ""


def _record(judgement: Judgement, challenger: tracking.Version, champion: tracking.Version | None) -> dict[str, Any]:
    """What verdict.json holds."""
    return {
        **asdict(judgement.verdict),
        "version": challenger.number,
        "model_sha256": challenger.model_sha256,
        "weights_sha256": challenger.weights_sha256,
        "against": champion.number if champion else None,
        "test_set_sha256": judgement.test_set_sha256,
        "judgements_before": judgement.judgements_before,
        "training_unknown": judgement.training_unknown,
    }


def _tags(judgement: Judgement, champion: tracking.Version | None) -> dict[str, str]:
    """How the gate judged, and against whom; whether the alias moved then is for the history to say."""
    return {
        DECISION_TAG: judgement.verdict.decision,
        SENTENCE_TAG: judgement.verdict.sentence,
        "gate.against": champion.number if champion else "",
    }


def _inputs(root: Path, data: DataPaths) -> Inputs | None:
    """What the lineage of a version tells of the data; None where they are not here, as force does not need them."""
    if not all(path.exists() for path in (data.accepted, data.splits, data.shards / "index.json")):
        return None
    return Inputs(root=root, shards=data.shards, accepted=data.accepted, splits=read_splits(data.splits))


def _challenger(
    client: tracking.Client, known: Receipt, model: Path, data: DataPaths, ask: Request
) -> tracking.Version:
    if ask.version is None:
        found = tracking.find_version(client, known.model, known.model_sha256)
        return found or registered_version(client, known, model, _inputs(read_placement().root, data))
    version = tracking.version_by_number(client, known.model, ask.version)
    if version is None:
        raise RegistryError(
            f"no such version: {known.model} version {ask.version}: it was deleted or never made. Look with `make ui`."
        )
    return version


def _refuse_lost_champion(client: tracking.Client, model: str, entries: Sequence[Entry]) -> None:
    """RegistryError where there was a champion: a first one needs little, and would be chosen without a comparison."""
    for number in earlier_champions(entries):
        version = tracking.version_by_number(client, model, number)
        if version is not None and not is_another_model(entries, version):
            raise RegistryError(
                f"{model} has no champion now, but had one: version {number} is still there. Bring it back by "
                "`unet rollback`, or say --force --reason."
            )


def _unless_changed(judged: tracking.Version | None, move: Move, entries: Sequence[Entry]) -> Move:
    """The move; RegistryError if the champion is no longer the one that the gate has seen."""
    before = judged.number if judged else None
    now = (champions(entries) or [None])[-1]
    if now != before:
        raise RegistryError(
            f"the champion changed while the gate was judging: version {before} then, version {now} now. "
            "Run `unet promote` again."
        )
    return move
