"""`unet lineage` and `unet diff`: where a model comes from, and what two models have not in common."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline import tracking
from pipeline.command import first_names, say
from pipeline.fetched_model import find_model
from pipeline.history import history
from pipeline.lineage_record import Lineage, read_lineage, recipe_sections
from pipeline.params import flatten
from pipeline.placement import read_placement

#: Names of samples that stand in a line.
NUM_NAMED = 5


def show_lineage(address: str) -> None:
    """Print the lineage of a model as a tree."""
    client = _connect()
    version = find_model(client, address)
    lineage = read_lineage(client, version)
    moves = [entry for entry in history(client, version.name) if entry.version == version.number and not entry.void]
    say(f"{version.name} version {version.number}")
    branches = [*_branches(lineage), ("history", [f"{move.action} {move.time}: {move.reason}" for move in moves])]
    for line in tree(branches):
        say(line)


def show_difference(old: str, new: str) -> None:
    """Print what changed from one model to another in code, recipe, data, environment and scores."""
    client = _connect()
    versions = [find_model(client, address) for address in (old, new)]
    before, after = (read_lineage(client, version) for version in versions)
    scores = [tracking.run_metrics(client, lineage.run_id) for lineage in (before, after)]
    say(" -> ".join(f"{version.name} version {version.number}" for version in versions))
    branches = [
        ("code", changes(_code(before), _code(after))),
        ("recipe", changes(flatten(recipe_sections(before.recipe)), flatten(recipe_sections(after.recipe)))),
        ("data", sample_changes(before.samples, after.samples)),
        ("environment", changes(_environment(before), _environment(after))),
        ("scores", [*_doubts(before, after), *changes(*map(_shown_scores, scores))]),
    ]
    for line in tree([(name, lines or ["the same"]) for name, lines in branches]):
        say(line)


def tree(branches: Sequence[tuple[str, Sequence[str]]]) -> Iterator[str]:
    """Lines of a tree of two levels."""
    for number, (name, leaves) in enumerate(branches, 1):
        is_last = number == len(branches)
        yield f"{'└' if is_last else '├'}─ {name}"
        for place, leaf in enumerate(leaves, 1):
            yield f"{' ' if is_last else '│'}  {'└' if place == len(leaves) else '├'}─ {leaf}"


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """A line for each name whose value differs; a name that one lacks has no value there."""
    names = sorted({*before, *after})
    shown = {name: tuple(str(side.get(name, "none")) for side in (before, after)) for name in names}
    return [f"{name}: {old} -> {new}" for name, (old, new) in shown.items() if old != new]


def sample_changes(
    before: Mapping[str, Mapping[str, Sequence[str]]], after: Mapping[str, Mapping[str, Sequence[str]]]
) -> list[str]:
    """Samples added, removed, relabelled, with another image, or in another split."""
    old, new = (
        {key: (split, *hashes) for split, keys in side.items() for key, hashes in keys.items()}
        for side in (before, after)
    )
    both = sorted(set(old) & set(new))
    found = {
        "added": sorted(set(new) - set(old)),
        "removed": sorted(set(old) - set(new)),
        "relabelled": [key for key in both if old[key][2] != new[key][2]],
        "with another image": [key for key in both if old[key][1] != new[key][1]],
        "in another split": [key for key in both if old[key][0] != new[key][0]],
    }
    return [f"{len(keys)} {what}: {first_names(keys, NUM_NAMED)}" for what, keys in found.items() if keys]


def _branches(lineage: Lineage) -> list[tuple[str, list[str]]]:
    sizes = ", ".join(f"{split} {len(keys)}" for split, keys in lineage.samples.items())
    code = [f"{name} {value}" for name, value in _code(lineage).items()]
    environment = [f"{name} {value}" for name, value in _environment(lineage).items()]
    return [
        ("model", [f"sha256 {lineage.model_sha256}", f"weights {lineage.weights_sha256}"]),
        ("code", code),
        ("recipe", [f"{name}: {value}" for name, value in flatten(recipe_sections(lineage.recipe)).items()]),
        ("data", [f"samples: {sizes}", f"index {lineage.index_sha256}", f"test set {lineage.test_set_sha256}"]),
        (
            "training",
            [
                f"run {lineage.run_id}",
                lineage.workers or "workers unknown",
                *(f"{name} {value}" for name, value in flatten(lineage.scores).items()),
            ],
        ),
        (f"environment, at {lineage.recorded_at}", environment),
    ]


def _code(lineage: Lineage) -> dict[str, str]:
    source = lineage.source
    found = {"commit": source.commit or "none"}
    if source.prefix:
        found["folder"] = source.prefix
    if source.patch:
        found["patch"] = f"{source.patch.count(chr(10))} lines, sha256 {lineage.tags()['git.patch_sha256']}"
    if lineage.lock is not None:
        found["dvc.lock"] = f"sha256 {lineage.tags()['lock.sha256']}"
    return found


def _environment(lineage: Lineage) -> dict[str, str]:
    return {"processor": lineage.processor or "unknown", **lineage.versions}


def _shown_scores(metrics: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{value:.4f}" for name, value in metrics.items() if name.startswith(("test_", "val_"))}


def _doubts(before: Lineage, after: Lineage) -> list[str]:
    if before.test_set_sha256 == after.test_set_sha256:
        return []
    return ["test scores: of different test sets, not to be compared; ask `unet promote`"]


def _connect() -> tracking.Client:
    placement = read_placement()
    return tracking.connect(placement.tracking_uri, placement.experiment)
