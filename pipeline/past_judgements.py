"""How often the gate has looked at today's test images: each choice by the same images makes their scores flatter.

Each judgement is a line of a log that nobody rewrites, so it counts when its version is gone, too. Test sets grow and
shrink, so a line holds a sketch of its images, the least of their hashes (bottom-k, Cohen and Kaplan 2007), by which
the share of today's images that it looked at can be told.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pipeline import tracking
from pipeline.append_log import open_log
from pipeline.catalog import read_catalog
from unet_core.errors import RegistryError
from unet_core.splits import Split

#: Hashes in a sketch: smaller test sets are known exactly, and a line of the log has room for them.
SKETCH_SIZE = 256
DIGITS = 16
#: An earlier judgement counts if it looked at so much of today's test set.
LEAST_SHARE = 0.5


def hash_samples(accepted: Path, splits: Mapping[str, Split | None], split: Split) -> frozenset[str]:
    """A hash for each sample of a split, over image and mask as they came: their codec in shards does not matter."""
    return frozenset(
        hashlib.sha256(f"{row.image_sha256} {row.mask_sha256}".encode()).hexdigest()[:DIGITS]
        for row in read_catalog(accepted)
        if splits.get(row.key) == split
    )


def note_judgement(
    client: tracking.Client, challenger: tracking.Version, champion: tracking.Version | None, samples: Collection[str]
) -> int:
    """Note that a pair is judged on test samples; how many other pairs were, on half of these samples or more.

    To judge a pair again on the same samples is no new look. `samples` as from `hash_samples`.
    """
    pair = [challenger.model_sha256, champion.model_sha256 if champion else ""]
    key = hashlib.sha256(json.dumps([*pair, *sorted(samples)]).encode()).hexdigest()[:32]
    log = open_log(client, _title(challenger.name))
    lines = log.read()
    others = (_read_sketch(name, line) for name, line in lines.items() if name != key)
    count = sum(shared_share(samples, sketch) >= LEAST_SHARE for sketch in others)
    if key not in lines:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "challenger": challenger.number,
            "champion": champion.number if champion else None,
            "images": len(samples),
            "sketch": "".join(sorted(samples)[:SKETCH_SIZE]),
        }
        log.claim(key, json.dumps(line))
    return count


def shared_share(samples: Collection[str], sketch: Collection[str]) -> float:
    """Which share of samples is among those that a sketch stands for; estimated where they are more than a sketch has.

    Of the hashes up to the sketch's largest it is known whether they were there. Where no sample lies so low, nothing
    is known, and all may have been seen: 1.
    """
    if len(sketch) < SKETCH_SIZE:
        known = list(samples)
    else:
        highest = max(sketch)
        known = [sample for sample in samples if sample <= highest]
    return sum(sample in sketch for sample in known) / len(known) if known else 1.0


def _read_sketch(key: str, line: str) -> frozenset[str]:
    try:
        text = json.loads(line)["sketch"]
        return frozenset(text[at : at + DIGITS] for at in range(0, len(text), DIGITS))
    except (ValueError, TypeError, KeyError) as error:
        raise RegistryError(
            f"the log of judgements is damaged: entry {key}: {error}. It was not written by this command; look with "
            "`make ui`."
        ) from error


def _title(name: str) -> str:
    return f"{name} judgements"
