"""Stage 1: ledger, source and table -> the catalog, one row a sample."""

import logging
from pathlib import Path

from pipeline.catalog import CatalogRow, write_catalog
from pipeline.json_file import write_json
from pipeline.ledger import Arrival, batch_pixels, count_batches, hash_pairs, present, read_ledger, same_files
from pipeline.listing import find_pairs
from pipeline.params import load_section
from pipeline.source import IngestConfig, Pair
from pipeline.storage import join
from pipeline.table import About, read_table, tell_about
from unet_core.errors import DataError
from unet_core.samples import ClassMap

log = logging.getLogger(__name__)


def run(*, catalog: Path, metrics: Path) -> None:
    """Write the catalog of all recorded samples; DataError where the source is not as it was recorded."""
    config = load_section("ingest", IngestConfig)
    source = config.source
    pairs = {pair.key: pair for pair in find_pairs(source, config, load_section("masks", ClassMap))}
    arrivals = read_ledger(Path(config.ledger))
    recorded = dict(sorted(present(arrivals).items()))
    gone = [arrival for key, arrival in recorded.items() if key not in pairs]
    if gone:
        raise DataError(
            f"a recorded sample is missing: {gone[0].key}: {gone[0].image} is not in {source}. "
            "Restore it, or record its removal with `unet add --allow-removal`."
        )
    for found in hash_pairs([pairs[key] for key in recorded], source, batch=0):
        if not same_files(found, recorded[found.key]):
            raise DataError(
                f"a recorded sample has changed: {found.key}: {found.image} or its mask is not what the ledger says. "
                "Record the change with `unet add`, or restore the file."
            )
    table = read_table(source, config)
    pixels = batch_pixels(arrivals)
    rows = []
    for key, arrival in recorded.items():
        if config.table is not None and key not in table:
            table_name = join(source, config.table)
            raise DataError(f"no row for a sample: {table_name}: {key}. Add the row, or correct key_column.")
        about = tell_about(pairs[key], table.get(key, {}), config)
        rows.append(_row(pairs[key], arrival, about, pixels[arrival.batch]))
    waiting = sorted(set(pairs) - set(recorded))
    if waiting:
        log.warning("%d new samples are not recorded yet (%s ...): run `unet add`", len(waiting), waiting[0])
    write_catalog(catalog, rows)
    metrics.parent.mkdir(parents=True, exist_ok=True)
    counts = {"samples": len(rows), "batches": count_batches(arrivals)}
    write_json(metrics, counts)
    log.info("ingest: %d samples", len(rows))


def _row(pair: Pair, arrival: Arrival, about: About, batch_pixels: int) -> CatalogRow:
    return CatalogRow(
        key=pair.key,
        image=pair.image,
        masks=pair.masks,
        group=about.group,
        declared_split=about.split,
        stratum=about.stratum,
        position=about.position,
        slices=about.slices,
        batch=arrival.batch,
        batch_pixels=batch_pixels,
        image_sha256=arrival.image_sha256,
        mask_sha256=arrival.mask_sha256,
    )
