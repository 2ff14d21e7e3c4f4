"""Group -> train, val or test, by a stable hash: adding data never moves an old sample.

Samples that belong together (one group, or duplicates) go to one split. Batches are divided in the order in which
they came, each knowing only those before it, so that the division of the first ten is the same whatever the eleventh
brings.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, get_args

from unet_core.errors import DataError, RecipeError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Recipe section `split`."""

    seed: int
    """Another seed gives another, equally stable, division."""
    val_fraction: float
    """Share of groups for validation, 0 to 1, where the source declares no split."""
    test_fraction: float
    """Share of groups for the test, 0 to 1, where the source declares no split."""
    declared: Mapping[str, str] = field(default_factory=dict)
    """Word in the source's split column -> train, val or test. A split that no word leads to is taken from
    the declared training groups by the hash."""
    block: int | None = None
    """Length of contiguous blocks into which a group (a volume, a video) is cut, in steps of its order column; each
    block is divided like a group of its own. null: a group stays whole."""
    leaks: Literal["error", "report"] = "error"
    """What duplicates, or samples of one group, in two splits mean where the source declares splits."""
    max_quarantined_fraction: float = 0.0
    """Share of samples, 0 to 1, that may be left out because they belong to two splits, before the stage fails."""

    def __post_init__(self) -> None:
        if min(self.val_fraction, self.test_fraction) < 0 or self.val_fraction + self.test_fraction >= 1:
            raise RecipeError(
                f"split: val_fraction {self.val_fraction} and test_fraction {self.test_fraction} leave nothing to "
                "train on. Choose two numbers from 0 whose sum is below 1."
            )
        wrong = sorted(set(self.declared.values()) - set(SPLITS))
        if wrong:
            raise RecipeError(f"split.declared: {wrong[0]!r} is no split. Choose from {list(SPLITS)}.")
        if self.block is not None and self.block < 1:
            raise RecipeError(f"split.block: {self.block}: must be at least 1, or null.")
        if not 0 <= self.max_quarantined_fraction <= 1:
            raise RecipeError(
                f"split.max_quarantined_fraction: {self.max_quarantined_fraction}: choose a number from 0 to 1."
            )


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is known of a sample when splits are made."""

    key: str
    group: str
    declared: str | None = None
    """The source's word for its split."""
    batch: int = 0
    stratum: str | None = None
    """A property, such as the modality, of which every split should have its share."""
    position: int | None = None
    """Place in its volume or video."""


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Two samples that belong together and are in two splits."""

    keys: tuple[str, str]
    splits: tuple[Split, Split]
    bond: str
    """Why they belong together."""


#: What samples have in common, by kind and name: a group, or a duplicate that is left out.
Tie = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Division:
    """Every sample is in a split or quarantined."""

    splits: Mapping[str, Split]
    quarantined: Mapping[str, str]
    """Key -> reason."""
    leaks: tuple[Leak, ...]
    num_pairs_in_blocks: int
    """Near pairs inside one group that `block` allows to be divided."""


def divide(subjects: Sequence[Subject], pairs: Iterable[tuple[str, str]], config: SplitConfig) -> Division:
    """Divide all samples; `pairs` are keys of duplicates, exact or near.

    What belongs together within a batch takes the split of the older samples that it belongs to as well. If these are
    in two splits, it is quarantined. A declared split is taken as declared, and a contradiction becomes a leak.

    Raises RecipeError for a declared word that the recipe does not know, and for a sample without position where
    `block` is set; DataError for a pair of unknown keys.
    """
    units = {subject.key: unit_of(subject, config) for subject in subjects}
    bonds, num_pairs_in_blocks = _bonds({subject.key: subject for subject in subjects}, pairs, config)
    splits: dict[str, Split] = {}
    quarantined: dict[str, str] = {}
    anchors_of_tie: dict[Tie, dict[Split, str]] = defaultdict(dict)
    in_order = sorted(subjects, key=lambda subject: (subject.batch, subject.key))
    for _, batch in groupby(in_order, key=lambda subject: subject.batch):
        newcomers = list(batch)
        ties = {subject.key: _ties(subject.key, units, bonds, quarantined) for subject in newcomers}
        decided: dict[str, Split] = {}
        for component in _components(newcomers, ties, bonds):
            anchors = _anchors(component, ties, bonds, anchors_of_tie, splits)
            found, reason = _decide(component, units, anchors, config)
            decided |= found
            quarantined |= {subject.key: reason for subject in component if subject.key not in found}
        splits |= decided
        for subject in newcomers:
            for tie in ties[subject.key] if subject.key in decided else ():
                anchors_of_tie[tie].setdefault(decided[subject.key], subject.key)
    return Division(
        splits=splits,
        quarantined=quarantined,
        leaks=tuple(_leaks(splits, bonds, anchors_of_tie)),
        num_pairs_in_blocks=num_pairs_in_blocks,
    )


def assign_split(group: str, declared: str | None, config: SplitConfig, *, stratum: str | None = None) -> Split:
    """Decide the split of a group, from what the source declares for it (or None) and its hash.

    Raises RecipeError for a declared word that the recipe does not know.
    """
    allowed = _allowed(group, declared, config)
    if len(allowed) == 1:
        return allowed[0]
    position = _position(group if stratum is None else f"{stratum}:{group}", config.seed)
    test_fraction = config.test_fraction if "test" in allowed else 0.0
    val_fraction = config.val_fraction if "val" in allowed else 0.0
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"


def _allowed(name: str, declared: str | None, config: SplitConfig) -> tuple[Split, ...]:
    """Splits that the source's word leaves open: a declared training sample may go to a split that no word leads to."""
    if declared is None:
        return SPLITS
    if declared not in config.declared:
        raise RecipeError(
            f"unknown split: {name}: the source says {declared!r}, split.declared knows {sorted(config.declared)}. "
            "Add the word to split.declared in params.yaml."
        )
    meant, named = config.declared[declared], set(config.declared.values())
    return tuple(split for split in SPLITS if split == meant or (meant == "train" and split not in named))


def _position(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on seed and name only."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def unit_of(subject: Subject, config: SplitConfig) -> str:
    """Name of what is never divided: the group, or a block of it; RecipeError for a block without position."""
    if config.block is None:
        return subject.group
    if subject.position is None:
        raise RecipeError(
            f"no position for a sample: {subject.key}: split.block is {config.block}, which needs the place of every "
            "sample in its group. Name the order column in section ingest, or set split.block to null."
        )
    return f"{subject.group}#{subject.position // config.block}"


def _bonds(
    subjects: Mapping[str, Subject], pairs: Iterable[tuple[str, str]], config: SplitConfig
) -> tuple[dict[str, set[str]], int]:
    """Key -> keys of its duplicates; and the number of pairs that blocks may divide.

    Neighbouring slices resemble each other: whoever asks for blocks accepts that at their borders.
    """
    bonds: dict[str, set[str]] = defaultdict(set)
    num_pairs_in_blocks = 0
    for one, other in pairs:
        unknown = [key for key in (one, other) if key not in subjects]
        if unknown:
            raise DataError(
                f"a pair of duplicates with an unknown sample: {one} and {other}: {unknown[0]} is not in the catalog. "
                "Run the stage validate again."
            )
        if config.block is not None and subjects[one].group == subjects[other].group:
            num_pairs_in_blocks += 1
        else:
            bonds[one].add(other)
            bonds[other].add(one)
    return bonds, num_pairs_in_blocks


def _ties(
    key: str, units: Mapping[str, str], bonds: Mapping[str, set[str]], quarantined: Mapping[str, str]
) -> tuple[Tie, ...]:
    """What joins a sample to others that may have no bond with it: its group, and duplicates that are left out."""
    left_out = sorted(other for other in bonds.get(key, ()) if other in quarantined)
    return ("of group", units[key]), *(("duplicates of", other) for other in left_out)


def _components(
    newcomers: Sequence[Subject], ties: Mapping[str, Sequence[Tie]], bonds: Mapping[str, set[str]]
) -> list[list[Subject]]:
    """Newcomers that belong together, directly or through other newcomers."""
    parents = {subject.key: subject.key for subject in newcomers}

    def root(key: str) -> str:
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    first_of_tie: dict[Tie, str] = {}
    for subject in newcomers:
        key = subject.key
        for tie in ties[key]:
            parents[root(key)] = root(first_of_tie.setdefault(tie, key))
        for other in bonds.get(key, ()):
            if other in parents:
                parents[root(key)] = root(other)
    components: dict[str, list[Subject]] = defaultdict(list)
    for subject in newcomers:
        components[root(subject.key)].append(subject)
    return list(components.values())


def _anchors(
    component: Sequence[Subject],
    ties: Mapping[str, Sequence[Tie]],
    bonds: Mapping[str, set[str]],
    anchors_of_tie: Mapping[Tie, Mapping[Split, str]],
    splits: Mapping[str, Split],
) -> dict[Split, str]:
    """Splits of the older samples that a component belongs to, each with one of these. Quarantined ones are nowhere."""
    anchors: dict[Split, str] = {}
    for subject in component:
        for key in sorted(bonds.get(subject.key, ())):
            if key in splits:
                anchors.setdefault(splits[key], key)
        for tie in ties[subject.key]:
            for split, key in anchors_of_tie.get(tie, {}).items():
                anchors.setdefault(split, key)
    return anchors


def _decide(
    component: Sequence[Subject], units: Mapping[str, str], anchors: Mapping[Split, str], config: SplitConfig
) -> tuple[dict[str, Split], str]:
    """Splits of a component's samples; those without one are quarantined for the reason."""
    allowed = {subject.key: _allowed(subject.key, subject.declared, config) for subject in component}
    decided = {key: splits[0] for key, splits in allowed.items() if len(splits) == 1}
    # A declared sample is an anchor for what comes with it.
    anchors = {**{split: key for key, split in decided.items()}, **anchors}
    free = [subject for subject in component if subject.key not in decided]
    # One draw for all: where some were declared for training, it leaves out the splits closed to these.
    lead = min(free, key=lambda subject: (units[subject.key], subject.stratum or ""), default=None)
    declared = min((subject.declared for subject in free if subject.declared is not None), default=None)
    reason = ""
    for subject in free:
        reached = [split for split in allowed[subject.key] if split in anchors]
        if len(reached) == 1:
            decided[subject.key] = reached[0]
        elif not reached and lead is not None:
            decided[subject.key] = assign_split(units[lead.key], declared, config, stratum=lead.stratum)
        else:
            places = " and ".join(f"{anchors[split]} ({split})" for split in reached)
            reason = (
                f"bridges splits: by duplicates or groups it belongs to {places}, itself or through others of "
                f"batch {subject.batch}. Leave it out, or remove one side."
            )
    return decided, reason


def _leaks(
    splits: Mapping[str, Split], bonds: Mapping[str, set[str]], anchors_of_tie: Mapping[Tie, Mapping[Split, str]]
) -> Iterable[Leak]:
    """Duplicates in two splits, and for each group in two splits one pair; declared splits alone make them."""
    for one, others in sorted(bonds.items()):
        for other in sorted(others):
            if one < other and one in splits and other in splits and splits[one] != splits[other]:
                yield Leak(keys=(one, other), splits=(splits[one], splits[other]), bond="duplicates")
    for (kind, name), anchors in sorted(anchors_of_tie.items()):
        places = sorted(anchors.items(), key=lambda place: SPLITS.index(place[0]))
        for split, key in places[1:]:
            yield Leak(keys=(places[0][1], key), splits=(places[0][0], split), bond=f"both {kind} {name}")
