"""What a version has seen in training, so that no test asks it about that.

Two things tell: what `evaluate` recorded beside the run, and today's splits where today's shards are those of the
training, whose index is a tag of the version. Where both do, both count. A training that began with the weights of
another version has seen what that has seen.
"""

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pipeline import tracking
from pipeline.lineage import data_state
from pipeline.lineage_record import began_with
from pipeline.membership import Membership, groups_in, todays_groups
from unet_core.errors import RegistryError
from unet_core.splits import Split

log = logging.getLogger(__name__)

#: Beside the run of the training.
TRAINING_GROUPS = "training_groups.json"
INDEX_TAG = "data.index_sha256"


def training_groups(splits: Mapping[str, Split | None], memberships: Mapping[str, Membership]) -> dict[str, str]:
    """Key -> group of all samples that a model of these splits has seen: it learnt from train, and val chose."""
    return groups_in(splits, memberships, "train", "val")


def is_trained_here(version: tracking.Version, shards: Path) -> bool:
    """Whether a version was trained on just these shards."""
    return version.tags.get(INDEX_TAG) == data_state(shards)[INDEX_TAG]


def seen_groups(
    client: tracking.Client,
    version: tracking.Version,
    shards: Path,
    splits: Mapping[str, Split | None],
    memberships: Mapping[str, Membership],
) -> set[str] | None:
    """Groups, by today's names, of the samples that a version has seen; None where nobody recorded them.

    RegistryError where the record can't be read.
    """
    recorded = _recorded_groups(client, version)
    if is_trained_here(version, shards):
        recorded = {**(recorded or {}), **training_groups(splits, memberships)}
    if recorded is None:
        return None
    parents = _parents(client, version)
    found = [seen_groups(client, parent, shards, splits, memberships) for parent in parents]
    # Several have equal weights where their descriptions differ: one record is enough.
    known = [groups for groups in found if groups is not None]
    return {*todays_groups(recorded, memberships)}.union(*known) if known or not parents else None


def _parents(client: tracking.Client, version: tracking.Version) -> list[tracking.Version]:
    """Versions with whose weights a training began, all of equal ones; none where it began with other weights.

    Of weights from elsewhere (ImageNet's) nobody can know what they have seen: that is told, and no reason to refuse.
    """
    name = f"{version.name} version {version.number}"
    try:
        weights = began_with(client, version)
    except RegistryError as error:
        log.warning("what %s began with is unknown: %s", name, error)
        return []
    if not weights or weights == version.weights_sha256:
        return []
    parents = tracking.find_weights(client, weights)
    if not parents:
        log.warning(
            "%s began with weights of a file that is no version of this registry (%s): what those have seen is unknown",
            name, weights[:12],
        )  # fmt: skip
    return parents


def _recorded_groups(client: tracking.Client, version: tracking.Version) -> dict[str, str] | None:
    """Key -> group; None where the run lacks the file. One that can't be read is an error: it may name test groups."""
    name = f"evaluation/{TRAINING_GROUPS}"
    if version.run_id is None or name not in tracking.list_run_files(client, version.run_id, "evaluation"):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        path = tracking.fetch_run_file(client, version.run_id, name, Path(scratch))
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or not all(isinstance(group, str) for group in found.values()):
                raise ValueError("not a group for each key")
        except (ValueError, RecursionError) as error:
            raise RegistryError(
                f"can't be judged: what {version.name} version {version.number} was trained on can't be read: {name} "
                f"of run {version.run_id}: {error}. Run `dvc repro -f -s evaluate` on the splits of its training."
            ) from error
        return found
