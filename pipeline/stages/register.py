"""Stage 6: the trained model -> a version in the registry, found by its hash, alias `challenger`."""

import logging
from dataclasses import dataclass
from pathlib import Path

from pipeline import tracking
from pipeline.lineage import data_state
from pipeline.lineage_record import Inputs, record_lineage
from pipeline.model_page import describe_data
from pipeline.params import load_section
from pipeline.placement import read_placement
from pipeline.receipt import write_receipt
from pipeline.registration import ensure_version, put_section
from pipeline.seen import INDEX_TAG
from pipeline.stages.split import read_splits

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    """Recipe section `register`."""

    model: str
    """Name of the model in the registry."""


def run(*, shards: Path, accepted: Path, splits: Path, model: Path, receipt: Path) -> None:
    """Make sure that the registry has this model; the receipt holds only what does not change with the registry."""
    config = load_section("register", RegisterConfig)
    placement = read_placement()
    client = tracking.connect(placement.tracking_uri, placement.experiment)
    version, made = ensure_version(client, config.model, model)
    split_of = read_splits(splits)
    record_lineage(client, version, Inputs(root=placement.root, shards=shards, accepted=accepted, splits=split_of))
    put_section(client, version, "Data", describe_data(split_of.values()))
    tracking.set_alias(client, version, tracking.CHALLENGER)
    index = version.tags.get(INDEX_TAG) or data_state(shards)[INDEX_TAG]
    write_receipt(receipt, model=config.model, model_dir=model, index_sha256=index)
    log.info("register: %s version %s %s", config.model, version.number, "made" if made else "was there already")
    for twin in tracking.find_twins(client, version):
        log.warning("register: version %s has the same weights under another description", twin.number)
