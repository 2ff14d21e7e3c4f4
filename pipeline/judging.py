"""The gate's question put to two versions of the registry: both are scored anew on today's test images.

Old numbers are never compared with new ones.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline import tracking
from pipeline.comparison import PairedScores
from pipeline.gate import GateConfig, Measured, Verdict, judge, judge_first, refuse_seen
from pipeline.membership import Membership, groups_in, read_memberships
from pipeline.params import load_section
from pipeline.past_judgements import Judged, count_others, hash_samples, note_judgement
from pipeline.placement import Placement
from pipeline.question import hash_test_set
from pipeline.score_summary import ece
from pipeline.scores import SCORE_NAMES, ScoreRow, image_rows, score_matrix, scored_classes
from pipeline.scoring import ScoringJob, median_latency_ms, registered_model, score_split
from pipeline.seen import seen_groups
from pipeline.stages.evaluate import EvaluateConfig
from pipeline.stages.split import read_splits
from unet_core.checkpoint import read_model, read_spec
from unet_core.errors import RegistryError
from unet_core.index import read_index
from unet_core.reader import ShardReader
from unet_core.samples import ClassMap, ImageConfig
from unet_core.splits import SplitConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DataPaths:
    """What the stages left of the data."""

    accepted: Path
    splits: Path
    shards: Path


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict, and on what it was found."""

    verdict: Verdict
    test_set_sha256: str
    """Of the test shards' content."""
    judgements_before: int
    """Of other pairs, on half of these images or more."""
    training_unknown: tuple[str, ...]
    """The champion, where nobody recorded what it was trained on."""


def judge_versions(
    client: tracking.Client,
    challenger: tracking.Version,
    champion: tracking.Version | None,
    data: DataPaths,
    placement: Placement,
) -> Judgement:
    """Score both and compare, and note that it was done.

    RegistryError where they can't be compared, or one was trained on a test group.
    """
    evaluate = load_section("evaluate", EvaluateConfig)
    memberships = read_memberships(data.accepted, load_section("split", SplitConfig), evaluate.slice_by)
    splits = read_splits(data.splits)
    versions = [challenger, *([champion] if champion else [])]
    seen = {_name(version): seen_groups(client, version, data.shards, splits, memberships) for version in versions}
    test_groups = groups_in(splits, memberships, "test").values()
    refuse_seen(test_groups, {name: groups for name, groups in seen.items() if groups is not None})
    if seen[_name(challenger)] is None:
        raise RegistryError(
            f"can't be judged: nobody recorded what {_name(challenger)} was trained on: it may have seen test images. "
            "Run `dvc repro -f -s register evaluate` where it was trained, or say --force --reason."
        )
    unknown = tuple(name for name, groups in seen.items() if groups is None)
    for name in unknown:
        # It can only have become too good by that, and keep its place.
        log.warning("promote: nobody recorded what %s was trained on: it may have seen test images", name)
    # Before the scoring, which takes minutes: a log that can't be read ends it at once.
    look = Judged.of(challenger, champion, hash_samples(data.accepted, splits, "test"))
    before = count_others(client, challenger.name, look)
    verdict = _judge(challenger, champion, data.shards, memberships, placement)
    note_judgement(client, challenger.name, look)
    return Judgement(
        verdict=verdict,
        test_set_sha256=hash_test_set(data.shards),
        judgements_before=before,
        training_unknown=unknown,
    )


def _judge(
    challenger: tracking.Version,
    champion: tracking.Version | None,
    shards: Path,
    memberships: Mapping[str, Membership],
    placement: Placement,
) -> Verdict:
    gate, evaluate = load_section("promote", GateConfig), load_section("evaluate", EvaluateConfig)
    score = evaluate.score

    def rows_of(directory: Path, name: str) -> list[ScoreRow]:
        job = ScoringJob(model=directory, shards=shards, split="test", tolerance_px=evaluate.tolerance_px)
        return score_split(job, memberships, name=name, placement=placement)

    with registered_model(challenger) as directory:
        _check_fits(challenger, directory, shards)
        if champion is None:
            rows = rows_of(directory, "challenger")
            measured = _measure(directory, rows, shards, gate)
            groups = [row.group for row in image_rows(rows)]
            return judge_first(score_matrix(rows, score), groups, gate, score=SCORE_NAMES[score], measured=measured)
        with registered_model(champion) as old_directory:
            _check_fits(champion, old_directory, shards)
            rows, old_rows = rows_of(directory, "challenger"), rows_of(old_directory, "champion")
        measured = _measure(directory, rows, shards, gate)
    return judge(pair_scores(rows, old_rows, score), gate, score=SCORE_NAMES[score], measured=measured)


def pair_scores(challenger: Sequence[ScoreRow], champion: Sequence[ScoreRow], score: str) -> PairedScores:
    """The rows of both models, which stand in the same order."""
    assert [(row.key, row.class_name) for row in challenger] == [(row.key, row.class_name) for row in champion]
    images = image_rows(challenger)
    columns = sorted({column for row in images for column in row.slices})
    return PairedScores(
        groups=[row.group for row in images],
        classes=scored_classes(challenger),
        challenger=score_matrix(challenger, score),
        champion=score_matrix(champion, score),
        slices={column: [row.slices.get(column) for row in images] for column in columns},
    )


def _measure(directory: Path, rows: Sequence[ScoreRow], shards: Path, gate: GateConfig) -> Measured:
    latency = None
    if gate.max_latency_ms is not None:
        latency = median_latency_ms(*read_model(directory), ShardReader(shards, read_index(shards).of_split("test")))
    weights = (directory / "model.safetensors").stat().st_size
    return Measured(ece=ece(rows), weights_mb=weights / 1e6, latency_ms=latency)


def _check_fits(version: tracking.Version, directory: Path, shards: Path) -> None:
    """RegistryError for a model of other classes than the shards have, or that was trained on images read otherwise."""
    spec, class_map, images = read_spec(directory), read_index(shards).class_map, load_section("images", ImageConfig)
    if (spec.class_map.kind, spec.class_map.names, spec.images) != (class_map.kind, class_map.names, images):
        raise RegistryError(
            f"can't be judged on today's shards: {_name(version)} knows {_say_classes(spec.class_map)} and reads "
            f"{_say_images(spec.images)}; the shards have {_say_classes(class_map)} and {_say_images(images)}. "
            "Train on today's recipe, or give the new task its own register.model."
        )


def _say_classes(class_map: ClassMap) -> str:
    return f"{class_map.kind} {list(class_map.names)}"


def _say_images(images: ImageConfig) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(images).items() if value is not None)


def _name(version: tracking.Version) -> str:
    return f"{version.name} version {version.number}"
