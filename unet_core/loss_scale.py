"""By what the loss is multiplied in float16, so that small gradients do not vanish (Micikevicius et al. 2018)."""

from dataclasses import dataclass, replace

#: Steps without an overflow after which the scale is tried twice as large.
GROWTH_STEPS = 2000
#: The largest scale: above it, a float32 gradient could itself overflow.
LARGEST = 2.0**24


@dataclass(frozen=True, kw_only=True)
class LossScale:
    """A scale, always a power of two, so that multiplying and dividing by it rounds nothing; and its recent luck."""

    scale: float = 2.0**16
    good_steps: int = 0
    """Steps in a row without an overflow since the scale was last changed."""

    @property
    def is_smallest(self) -> bool:
        """Whether a gradient that overflows does so by itself, and not because the loss was scaled."""
        return self.scale <= 1

    def after_step(self, *, is_finite: bool) -> "LossScale":
        """The scale of the next step: half after an overflow, twice after many steps without."""
        if not is_finite:
            return LossScale(scale=self.scale / 2)
        if self.good_steps + 1 < GROWTH_STEPS or self.scale >= LARGEST:
            return replace(self, good_steps=self.good_steps + 1)
        return LossScale(scale=self.scale * 2)
