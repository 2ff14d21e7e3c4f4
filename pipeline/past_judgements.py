"""How often the gate has looked at today's test images: each choice by the same images makes their scores flatter.

Each judgement is a line of a log that nobody rewrites, so it counts when its version is gone, too. Test sets grow and
shrink, so a line holds a sketch of its images, the least of their hashes (bottom-k, Cohen and Kaplan 2007), by which
the share of today's images that it looked at can be told.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline import tracking
from pipeline.append_log import find_log, open_log
from pipeline.catalog import read_catalog
from unet_core.errors import RegistryError
from unet_core.splits import Split

#: Hashes in a sketch: smaller test sets are known exactly, and a line of the log has room for them.
SKETCH_SIZE = 256
DIGITS = 16
#: An earlier judgement counts if it looked at so much of today's test set.
LEAST_SHARE = 0.5
#: Fewer samples than this, of which it is known, give no estimate.
LEAST_KNOWN = 30


def hash_samples(accepted: Path, splits: Mapping[str, Split | None], split: Split) -> frozenset[str]:
    """A hash for each sample of a split, over image and mask as they came: their codec in shards does not matter."""
    return frozenset(
        hashlib.sha256(f"{row.image_sha256} {row.mask_sha256}".encode()).hexdigest()[:DIGITS]
        for row in read_catalog(accepted)
        if splits.get(row.key) == split
    )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Two models, and the test samples on which they are compared."""

    challenger: str
    """Number of the version."""
    champion: str | None
    pair: str
    """Hash of both models."""
    samples: Collection[str]
    """As from `hash_samples`."""

    @classmethod
    def of(cls, challenger: tracking.Version, champion: tracking.Version | None, samples: Collection[str]) -> "Judged":
        """Of two versions."""
        return cls(
            challenger=challenger.number,
            champion=champion.number if champion else None,
            pair=_hash([challenger.model_sha256, champion.model_sha256 if champion else ""]),
            samples=samples,
        )


def count_others(client: tracking.Client, name: str, now: Judged) -> int:
    """How many other pairs were judged on half of these samples or more; to judge a pair again is no new look."""
    log = find_log(client, _title(name))
    lines = map(_read_line, (log.read() if log else {}).items())
    return len({pair for pair, sketch in lines if shared_share(now.samples, sketch) >= LEAST_SHARE} - {now.pair})


def note_judgement(client: tracking.Client, name: str, now: Judged) -> None:
    """Note that a pair was judged, once for each set of samples."""
    key, log = _hash([now.pair, *sorted(now.samples)]), open_log(client, _title(name))
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "challenger": now.challenger,
        "champion": now.champion,
        "pair": now.pair,
        "images": len(now.samples),
        "sketch": "".join(sorted(now.samples)[:SKETCH_SIZE]),
    }
    log.claim(key, json.dumps(line))


def shared_share(samples: Collection[str], sketch: Collection[str]) -> float:
    """Which share of samples is among those that a sketch stands for; estimated where they are more than a sketch has.

    Of the hashes up to the sketch's largest it is known whether they were there. Where few samples lie so low, little
    is known, and all may have been seen: 1.
    """
    if len(sketch) < SKETCH_SIZE:
        known = list(samples)
    else:
        highest = max(sketch)
        known = [sample for sample in samples if sample <= highest]
        if len(known) < LEAST_KNOWN:
            return 1.0
    return sum(sample in sketch for sample in known) / len(known) if known else 1.0


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read_line(item: tuple[str, str]) -> tuple[str, frozenset[str]]:
    """Which pair was judged, and the sketch."""
    key, line = item
    try:
        body = json.loads(line)
        text = body["sketch"]
        return body["pair"], frozenset(text[at : at + DIGITS] for at in range(0, len(text), DIGITS))
    except (ValueError, TypeError, KeyError) as error:
        raise RegistryError(
            f"the log of judgements is damaged: entry {key}: {error}. It was not written by this command; look with "
            "`make ui`."
        ) from error


def _title(name: str) -> str:
    return f"{name} judgements"
