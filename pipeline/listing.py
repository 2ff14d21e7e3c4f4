"""The source -> its pairs, by whichever of its three ways the recipe names: patterns, a manifest, a COCO file."""

import logging
from collections.abc import Sequence

from pipeline.coco import REFERENCE, find_in_coco
from pipeline.patterns import find_by_pattern
from pipeline.source import IngestConfig, Pair
from pipeline.storage import list_files
from pipeline.table import list_samples
from unet_core.errors import DataError
from unet_core.samples import ClassMap

log = logging.getLogger(__name__)


def find_pairs(source: str, config: IngestConfig, class_map: ClassMap) -> list[Pair]:
    """All pairs of the source, in order of their keys; what lies there beside them is counted and said."""
    names = list_files(source, follow_links=config.follow_links)
    if config.coco is not None:
        if config.coco not in names:
            raise DataError(f"no such COCO file: {config.coco} is not in {source}. Correct ingest.coco.")
        pairs = find_in_coco(source, names, config)
    elif config.image_column is not None:
        pairs = list_samples(source, names, config, class_map)
    else:
        pairs = find_by_pattern(source, names, config, class_map)
    _tell_unused(names, pairs, config)
    _tell_alike(pairs)
    return pairs


def _tell_unused(names: Sequence[str], pairs: Sequence[Pair], config: IngestConfig) -> None:
    used = {reference for pair in pairs for reference in (pair.image, *pair.masks)}
    used |= {found.group(1) for found in map(REFERENCE.fullmatch, list(used)) if found is not None}
    unused = [name for name in names if name not in used and name not in (config.table, config.coco)]
    if unused:
        are = "file is no image or mask" if len(unused) == 1 else "files are no images or masks"
        log.warning("%d %s of this recipe, such as %s", len(unused), are, unused[0])


def _tell_alike(pairs: Sequence[Pair]) -> None:
    """Allowed here, but trouble for whoever unpacks shards on a file system that takes a and A for one name."""
    seen: dict[str, str] = {}
    alike = [(seen.setdefault(pair.key.casefold(), pair.key), pair.key) for pair in pairs]
    differing = [(one, other) for one, other in alike if one != other]
    if differing:
        log.warning("%d keys differ from another only in case, such as %s and %s", len(differing), *differing[0])
