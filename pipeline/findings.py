"""What the samples tell when they are read: each by itself, then beside each other (duplicates)."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from PIL import Image

from pipeline.catalog import CatalogRow
from pipeline.duplicates_table import DuplicatePair
from pipeline.parallel import map_parallel
from pipeline.placement import Placement
from pipeline.references import read_row
from unet_core.decode import describe
from unet_core.duplicates import Fingerprint, confirm, find_candidates, fingerprint
from unet_core.errors import DataError
from unet_core.packing import count
from unet_core.pairs import read_sample
from unet_core.samples import Array, ClassMap, ImageConfig, Sample, class_indices

#: Masks of near duplicates say the same if their classes overlap by so much Dice in the mean; copies are shifted or
#: resized by a little, and thin structures with them.
MASKS_AGREE_DICE = 0.5
#: The kind of problem of a file that must not be touched again.
KILLED = "reading it ended the process"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How samples are read, and what they must keep to."""

    source: str
    images: ImageConfig
    class_map: ClassMap
    min_px: int
    max_aspect: float


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What reading one sample told."""

    row: CatalogRow
    reason: str | None = None
    """Why it can't be used; what stands before the first colon is the kind of problem."""
    file: str = ""
    """What kind of file the image is."""
    fingerprint: Fingerprint | None = None
    mask_sha256: str = ""
    """Hash of the encoded mask."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What reading and comparing all samples told."""

    good: tuple[Finding, ...]
    """Accepted, in the order of the catalog."""
    bad: tuple[Finding, ...]
    pairs: tuple[DuplicatePair, ...]
    """Accepted duplicates."""
    num_crowded: int
    """Samples that were not compared with all that look like them, since these are too many."""


def read_one(row: CatalogRow, reading: Reading) -> Sample:
    """A sample as the shards will hold it; DataError says why it can't be used."""
    image, masks = read_row(reading.source, row)
    return read_sample(row.key, image, masks, reading.images, reading.class_map)


def check_row(row: CatalogRow, reading: Reading) -> Finding:
    """Read one sample and look at it by itself. DataError if its files are not those of the catalog."""
    # Not a reason to reject: what is accepted must follow from the catalog, not from when the stage ran.
    image, masks = read_row(reading.source, row)
    try:
        sample = read_sample(row.key, image, masks, reading.images, reading.class_map)
        _check_size(sample, reading)
    except DataError as error:
        return Finding(row=row, reason=str(error))
    height, width = sample.image.shape[:2]
    return Finding(
        row=dataclasses.replace(row, height=height, width=width, **asdict(count(sample, reading.class_map))),
        file=describe(image.data),
        fingerprint=fingerprint(sample.image),
        mask_sha256=hashlib.sha256(np.ascontiguousarray(sample.mask).tobytes()).hexdigest(),
    )


def killed(row: CatalogRow) -> Finding:
    """What is found of a sample whose reading ended the process."""
    return Finding(
        row=row,
        reason=f"{KILLED}: {row.key}: {row.image}: a decoder crashed, or there was no memory left. "
        "Export the file again, or remove the sample.",
    )


def _check_size(sample: Sample, reading: Reading) -> None:
    height, width = sample.image.shape[:2]
    if min(height, width) < reading.min_px:
        raise DataError(
            f"image too small: {sample.key}: {width}x{height}. Remove it, or lower validate.min_px ({reading.min_px})."
        )
    if max(height, width) > reading.max_aspect * min(height, width):
        raise DataError(
            f"image too long for its width: {sample.key}: {width}x{height}. Cut it, remove it, or raise "
            f"validate.max_aspect ({reading.max_aspect:g})."
        )


def check_all(rows: Sequence[CatalogRow], reading: Reading, placement: Placement) -> Findings:
    """Read every row once, in parallel, then compare them."""
    check = partial(check_row, reading=reading)
    findings = list(map_parallel(check, rows, placement=placement, label="validate", on_death=killed))
    readable = [finding for finding in findings if finding.reason is None]
    bad = [finding for finding in findings if finding.reason is not None]
    while True:
        pairs, num_crowded = find_duplicates(readable, reading, placement)
        reasons = find_contradictions(readable, pairs)
        if not reasons:
            break
        bad += [
            dataclasses.replace(found, reason=reasons[found.row.key]) for found in readable if found.row.key in reasons
        ]
        # Compared anew without them: what was a duplicate of one that goes must not lose its bond to the others.
        readable = [finding for finding in readable if finding.row.key not in reasons]
    return Findings(
        good=tuple(readable),
        bad=tuple(sorted(bad, key=lambda finding: finding.row.key)),
        pairs=tuple(pairs),
        num_crowded=num_crowded,
    )


def find_duplicates(
    findings: Sequence[Finding], reading: Reading, placement: Placement
) -> tuple[list[DuplicatePair], int]:
    """Pairs of accepted samples that show one picture: equal pixels, or alike and confirmed on the pixels.

    And how many samples met too many alike to be compared with all of them.
    """
    ordered = sorted(findings, key=lambda finding: (finding.row.batch, finding.row.key))
    candidates = find_candidates([finding.fingerprint for finding in ordered if finding.fingerprint is not None])
    pairs = [(ordered[pair.first], ordered[pair.second], pair.kind) for pair in candidates.pairs]
    exact = [
        DuplicatePair(a=a.row.key, b=b.row.key, kind="exact", masks_agree=a.mask_sha256 == b.mask_sha256)
        for a, b, kind in pairs
        if kind == "exact"
    ]
    near = [(a.row, b.row) for a, b, kind in pairs if kind == "near"]
    compare = partial(_compare, reading=reading)
    found = map_parallel(compare, near, placement=placement, label="compare", on_death=_refuse_to_guess)
    confirmed = [
        DuplicatePair(a=a.key, b=b.key, kind="near", masks_agree=agree)
        for (a, b), agree in zip(near, found, strict=True)
        if agree is not None
    ]
    return exact + confirmed, candidates.num_crowded


def _refuse_to_guess(rows: tuple[CatalogRow, CatalogRow]) -> bool | None:
    # Each could be read alone, so neither is to blame; taken for no duplicates, they might leak into two splits.
    raise DataError(
        f"comparing two samples ended the process: {rows[0].key} and {rows[1].key}: no memory for both at once? "
        "Lower UNET_PROCESSES, or use a machine with more memory."
    )


def _compare(rows: tuple[CatalogRow, CatalogRow], reading: Reading) -> bool | None:
    """Whether the masks of two near duplicates agree; None if on the pixels they are no duplicates."""
    one, other = (read_one(row, reading) for row in rows)
    if not confirm(one.image, other.image):
        return None
    return masks_agree(one.mask, other.mask, reading.class_map)


def masks_agree(mask: Array, other: Array, class_map: ClassMap) -> bool:
    """Whether two encoded masks of one picture say about the same; the second is brought to the first's size."""
    planes, others = (_planes(found, class_map) for found in (mask, other))
    size = (mask.shape[1], mask.shape[0])
    dice = []
    for plane, unfit in zip(planes, others, strict=True):
        fitted = np.asarray(Image.fromarray(unfit.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
        total = int(plane.sum()) + int(fitted.sum())
        if total:
            dice.append(2 * int((plane & fitted).sum()) / total)
    return not dice or float(np.mean(dice)) >= MASKS_AGREE_DICE


def _planes(mask: Array, class_map: ClassMap) -> list[Array]:
    """One boolean plane for each scored class."""
    if class_map.kind == "multilabel":
        return [mask[..., number] > 0 for number in class_map.scored]
    indices = class_indices(mask, class_map)
    return [indices == number for number in class_map.scored]


def find_contradictions(findings: Sequence[Finding], pairs: Sequence[DuplicatePair]) -> dict[str, str]:
    """Key -> reason: equal pixels with different masks. What came later goes; of those that came first together all."""
    by_key = {finding.row.key: finding for finding in findings}
    copies: dict[str, list[Finding]] = {}
    for pair in pairs:
        if pair.kind == "exact":
            copies.setdefault(pair.a, [by_key[pair.a]]).append(by_key[pair.b])
    reasons = {}
    for group in copies.values():
        batch = min(finding.row.batch for finding in group)
        firsts = [finding for finding in group if finding.row.batch == batch]
        agree = len({finding.mask_sha256 for finding in firsts}) == 1
        for finding in group if agree else firsts:
            other = next((first for first in firsts if first.mask_sha256 != finding.mask_sha256), None)
            if other is not None:
                reasons[finding.row.key] = (
                    f"masks contradict each other: {finding.row.key}: {other.row.key} has the same pixels and another "
                    "mask. Remove one of them, or correct its mask."
                )
    return reasons
