"""The receipt of `register`: which model the tree speaks of. Whoever needs the version makes sure that it exists."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline import tracking
from pipeline.json_file import write_json
from pipeline.lineage import is_as_locked
from pipeline.lineage_record import Inputs, record_lineage, restore_lineage
from pipeline.registration import ensure_version
from pipeline.seen import INDEX_TAG, is_trained_here
from unet_core.checkpoint import model_hash, weights_hash
from unet_core.errors import RegistryError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What `register` wrote."""

    model: str
    model_sha256: str
    weights_sha256: str
    index_sha256: str = ""
    """Of the index of shards that it was trained on; receipts of earlier versions do not say."""


def read_receipt(path: Path) -> Receipt:
    """Read it; RegistryError where nothing was registered yet."""
    try:
        return Receipt(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RegistryError(f"nothing is registered: {path} can't be read. Run `dvc repro` first.") from error


def write_receipt(path: Path, *, model: str, model_dir: Path, index_sha256: str = "") -> None:
    """Write what does not change with the registry: the model's name and hashes."""
    known = Receipt(
        model=model,
        model_sha256=model_hash(model_dir),
        weights_sha256=weights_hash(model_dir),
        index_sha256=index_sha256,
    )
    write_json(path, asdict(known))


def registered_version(
    client: tracking.Client, receipt: Receipt, model_dir: Path, inputs: Inputs | None = None
) -> tracking.Version:
    """The receipt's version; where this registry lacks it, the model directory is registered anew.

    DVC's run cache, a colleague's `dvc pull` or another tracking server bring a receipt without a version. `inputs` are
    the working tree's data, for the lineage of a model that was trained on them; None where they are not here.
    """
    version = tracking.find_version(client, receipt.model, receipt.model_sha256)
    if version is not None:
        return version
    if not model_dir.is_dir() or model_hash(model_dir) != receipt.model_sha256:
        raise RegistryError(
            f"the registry lacks the model of the receipt ({receipt.model_sha256[:12]}) and {model_dir} holds "
            "another. Run `dvc checkout` or `dvc repro`."
        )
    log.warning("the registry lacks model %s: registering it anew", receipt.model_sha256[:12])
    version, _ = ensure_version(client, receipt.model, model_dir)
    tracking.set_alias(client, version, tracking.CHALLENGER)
    if receipt.index_sha256 and INDEX_TAG not in version.tags:
        # Of what it has seen, this is all that is known until `register` runs again.
        tracking.set_version_tags(client, version, {INDEX_TAG: receipt.index_sha256})
    restore_lineage(client, version)
    version = tracking.version_by_number(client, version.name, version.number) or version
    if inputs is not None and is_trained_here(version, inputs.shards) and is_as_locked(inputs.root, "train"):
        record_lineage(client, version, inputs)
    return version
