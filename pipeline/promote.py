"""`unet promote`: the gate compares challenger and champion on today's test images, and moves the alias or not."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pipeline import tracking
from pipeline.announce import announce
from pipeline.command import say
from pipeline.gate import GateConfig, Verdict, judge, judge_first
from pipeline.history import MAX_REASON, Entry, Move, champions, check_reason, move_champion, settle
from pipeline.json_file import write_json
from pipeline.params import load_section
from pipeline.placement import read_placement
from pipeline.receipt import Receipt, read_receipt, registered_version
from pipeline.report_page import add_promotion
from pipeline.scores import image_scores
from pipeline.scoring import fetch_registered, score_split
from pipeline.stages.evaluate import EvaluateConfig
from unet_core.errors import RegistryError
from unet_core.index import read_index
from unet_core.reader import ShardReader


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


def promote(*, shards: Path, model: Path, receipt: Path, report: Path, ask: Request) -> None:
    """Score, judge, move the alias if the gate opens, and write verdict and page beside the report."""
    placement = read_placement()
    client = tracking.connect(placement.tracking_uri, placement.experiment)
    known = read_receipt(receipt)
    settle(client, known.model)
    challenger = _challenger(client, known, model, ask)
    champion = tracking.version_by_alias(client, challenger.name, tracking.CHAMPION)
    if champion is not None and champion.model_sha256 == challenger.model_sha256:
        say(f"nothing to do: {champion.name} version {champion.number} is champion already, with the same model")
        return
    if ask.force:
        move = Move(action="forced", version=challenger.number, reason=ask.reason)
        entry = move_champion(client, challenger.name, lambda _: move)
        announce(placement.on_promotion, challenger.name, entry)
        say(f"{challenger.name} version {challenger.number} is champion, without the gate: {entry.reason}")
        return
    verdict = _judge(challenger, champion, shards)
    if verdict.decision == "promoted":
        move = Move(action="promoted", version=challenger.number, reason=verdict.sentence[:MAX_REASON])
        entry = move_champion(client, challenger.name, partial(_unless_changed, champion, move))
        announce(placement.on_promotion, challenger.name, entry)
    tracking.set_version_tags(
        client, challenger, {"gate.decision": verdict.decision, "gate.sentence": verdict.sentence}
    )
    body = {
        **asdict(verdict),
        "version": challenger.number,
        "model_sha256": challenger.model_sha256,
        "weights_sha256": challenger.weights_sha256,
        "against": champion.number if champion else None,
    }
    verdict_path = report.with_name("verdict.json")
    write_json(verdict_path, body)
    say(f"{challenger.name} version {challenger.number} {verdict.sentence}")
    if report.exists():
        say(f"report with the verdict: {add_promotion(report, verdict, challenger, champion)}")


def _challenger(client: tracking.Client, known: Receipt, model: Path, ask: Request) -> tracking.Version:
    if ask.version is None:
        return registered_version(client, known, model)
    version = tracking.version_by_number(client, known.model, ask.version)
    if version is None:
        raise RegistryError(
            f"no such version: {known.model} version {ask.version}: it was deleted or never made. Look with `make ui`."
        )
    return version


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


def _judge(challenger: tracking.Version, champion: tracking.Version | None, shards: Path) -> Verdict:
    gate = load_section("promote", GateConfig)
    score = load_section("evaluate", EvaluateConfig).score
    index = read_index(shards)
    reader = ShardReader(shards, index.of_split("test"))
    network, spec = fetch_registered(challenger)
    if champion is None:
        return judge_first(
            image_scores(score_split(network, spec, reader, index.class_map, name="challenger"), score),
            gate,
            score=score.capitalize(),
        )
    old_network, old_spec = fetch_registered(champion)
    if (old_spec.class_map.names, old_spec.class_map.kind, old_spec.channels) != (
        spec.class_map.names,
        spec.class_map.kind,
        spec.channels,
    ):
        raise RegistryError(
            f"champion and challenger can't be compared: {champion.name} version {champion.number} knows "
            f"{list(old_spec.class_map.names)} on {old_spec.channels} channels, version {challenger.number} "
            f"{list(spec.class_map.names)} on {spec.channels}. Give the new task its own register.model."
        )
    new = image_scores(score_split(network, spec, reader, index.class_map, name="challenger"), score)
    old = image_scores(score_split(old_network, old_spec, reader, index.class_map, name="champion"), score)
    return judge(new, old, gate, score=score.capitalize())
