"""Stage 1: ledger, source and table -> the catalog, one row a sample."""

import logging
from pathlib import Path

from pipeline.catalog import CatalogRow, write_catalog
from pipeline.ledger import hash_pair, present, read_ledger, same_files
from pipeline.params import load_section
from pipeline.source import IngestConfig, find_pairs, read_table
from unet_core.errors import DataError
from unet_core.samples import ClassMap

log = logging.getLogger(__name__)


def run(*, catalog: Path) -> None:
    """Write the catalog of all recorded samples; DataError where the source is not as it was recorded."""
    config = load_section("ingest", IngestConfig)
    source = Path(config.source)
    pairs = {pair.key: pair for pair in find_pairs(source, config, load_section("masks", ClassMap))}
    recorded = present(read_ledger(Path(config.ledger)))
    table = read_table(source, config)
    rows = []
    for key, arrival in sorted(recorded.items()):
        pair = pairs.get(key)
        if pair is None:
            raise DataError(
                f"a recorded sample is missing: {key}: {arrival.image} is not in {source}. "
                "Restore it, or record its removal with `unet add --allow-removal`."
            )
        if not same_files(hash_pair(pair, source, arrival.batch), arrival):
            raise DataError(
                f"a recorded sample has changed: {key}: {pair.image} or its mask is not what the ledger says. "
                "Record the change with `unet add`, or restore the file."
            )
        if config.table is not None and key not in table:
            raise DataError(f"no row for a sample: {source / config.table}: {key}. Add the row, or correct key_column.")
        about = table.get(key, {})
        rows.append(
            CatalogRow(
                key=key,
                image=pair.image,
                masks=pair.masks,
                group=about.get(config.group_column or "", key),
                declared_split=about.get(config.split_column or ""),
                batch=arrival.batch,
                image_sha256=arrival.image_sha256,
                mask_sha256=arrival.mask_sha256,
            )
        )
    waiting = sorted(set(pairs) - set(recorded))
    if waiting:
        log.warning("%d new samples are not recorded yet (%s ...): run `unet add`", len(waiting), waiting[0])
    write_catalog(catalog, rows)
    log.info("ingest: %d samples", len(rows))
