"""Group -> train, val or test, by a stable hash: adding data never moves an old sample."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from unet_core.errors import RecipeError

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

    def __post_init__(self) -> None:
        if min(self.val_fraction, self.test_fraction) < 0 or self.val_fraction + self.test_fraction >= 1:
            raise RecipeError(
                f"split: val_fraction {self.val_fraction} and test_fraction {self.test_fraction} leave nothing to "
                "train on. Choose two numbers from 0 whose sum is below 1."
            )
        wrong = sorted(set(self.declared.values()) - set(SPLITS))
        if wrong:
            raise RecipeError(f"split.declared: {wrong[0]!r} is no split. Choose from {list(SPLITS)}.")


def assign_split(group: str, declared: str | None, config: SplitConfig) -> Split:
    """Decide the split of a group, from what the source declares for it (or None) and its hash.

    Raises RecipeError for a declared word that the recipe does not know.
    """
    position = _position(group, config.seed)
    if declared is None:
        return _by_position(position, config.val_fraction, config.test_fraction)
    if declared not in config.declared:
        raise RecipeError(
            f"unknown split: {group}: the source says {declared!r}, split.declared knows {sorted(config.declared)}. "
            "Add the word to split.declared in params.yaml."
        )
    split = config.declared[declared]
    if split != "train":
        return "val" if split == "val" else "test"
    missing = set(SPLITS) - set(config.declared.values())
    return _by_position(
        position,
        config.val_fraction if "val" in missing else 0.0,
        config.test_fraction if "test" in missing else 0.0,
    )


def _position(group: str, seed: int) -> float:
    """A number in [0, 1) that depends on seed and group only."""
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _by_position(position: float, val_fraction: float, test_fraction: float) -> Split:
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"
