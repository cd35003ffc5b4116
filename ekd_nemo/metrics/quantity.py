"""A number as a claim: value, unit, source, coverage, bounds, flags, or the reason why there is none."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, Self

Source = Literal["measured", "estimated", "replayed"]

# From the strongest claim to the weakest: a sum is as good as its worst part.
_SOURCES: tuple[Source, ...] = ("measured", "replayed", "estimated")


@dataclass(frozen=True, slots=True)
class Quantity:
    """One figure.

    Attributes:
        value: None when it was not measured; then `reason` says why.
        unit: the unit of `value`, `low` and `high`; "" for a plain ratio.
        source: None for what is counted or computed from text (steps, losses, scores).
        coverage: fraction of the window in which samples lie, 0 to 1; None where it has no meaning.
        low: lower bound of the true value where gaps or repeats leave room.
        high: upper bound; None with `low` given means that nothing bounds it from above.
        flags: short names of what a reader has to know, sorted and distinct.
        reason: why `value` is None.
    """

    value: float | None
    unit: str = ""
    source: Source | None = None
    coverage: float | None = None
    low: float | None = None
    high: float | None = None
    flags: tuple[str, ...] = ()
    reason: str | None = None

    def __post_init__(self) -> None:
        """Hold the rule that a missing value has its reason and a present one is finite."""
        if self.value is None and not self.reason:
            raise ValueError("a quantity without a value needs its reason")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"a quantity must be finite, not {self.value}")
        object.__setattr__(self, "flags", tuple(sorted(set(self.flags))))

    @classmethod
    def missing(cls, unit: str, reason: str, flags: Iterable[str] = ()) -> Self:
        """A figure that nobody measured, with the reason."""
        return cls(None, unit, reason=reason, flags=tuple(flags))

    def flagged(self, *flags: str) -> Self:
        """The same figure with more flags."""
        return replace(self, flags=(*self.flags, *flags))

    def divided_by(self, divisor: "Quantity", unit: str) -> "Quantity":
        """This figure over another; `n/a` with the first reason, or when the divisor is not above 0."""
        for part in (self, divisor):
            if part.value is None:
                return Quantity.missing(unit, part.reason or "", (*self.flags, *divisor.flags))
        numerator, denominator = self.value, divisor.value
        assert numerator is not None and denominator is not None
        if denominator <= 0:
            return Quantity.missing(unit, f"denominator is {denominator:g}", self.flags)
        return Quantity(
            numerator / denominator,
            unit,
            weakest([self.source, divisor.source]),
            self.coverage,
            None if self.low is None else self.low / denominator,
            None if self.high is None else self.high / denominator,
            (*self.flags, *divisor.flags),
        )


def difference(one: Quantity, other: Quantity) -> Quantity:
    """One figure less another of its unit, without bounds; `n/a` with the first reason."""
    flags = (*one.flags, *other.flags)
    for part in (one, other):
        if part.value is None:
            return Quantity.missing(one.unit, part.reason or "", flags)
    assert one.value is not None
    assert other.value is not None
    return Quantity(
        one.value - other.value, one.unit, weakest([one.source, other.source]), flags=flags
    )


def weakest(sources: Iterable[Source | None]) -> Source | None:
    """The weakest source of several; None when none of them has one."""
    present = set(sources)
    return next((source for source in reversed(_SOURCES) if source in present), None)


def total(parts: Iterable[Quantity], unit: str, empty: str) -> Quantity:
    """The sum of figures in one unit; a missing part makes the whole missing, with that part's reason.

    Args:
        parts: figures to add; their bounds add up too, and flags are united. The coverage is the worst one.
        unit: unit of every part.
        empty: the reason given when there is no part at all.
    """
    quantities = list(parts)
    if not quantities:
        return Quantity.missing(unit, empty)
    flags = tuple(flag for quantity in quantities for flag in quantity.flags)
    absent = next((quantity for quantity in quantities if quantity.value is None), None)
    if absent is not None:
        return Quantity.missing(unit, absent.reason or "", flags)
    coverages = [quantity.coverage for quantity in quantities if quantity.coverage is not None]
    low, high = _bounds(quantities)
    return Quantity(
        math.fsum(quantity.value for quantity in quantities if quantity.value is not None),
        unit,
        weakest(quantity.source for quantity in quantities),
        min(coverages) if coverages else None,
        low,
        high,
        flags,
    )


def _bounds(quantities: list[Quantity]) -> tuple[float | None, float | None]:
    """Sums of lower and upper bounds, where at least one part has bounds of its own."""
    if all(quantity.low is None for quantity in quantities):
        return None, None
    low = math.fsum((q.value if q.low is None else q.low) or 0.0 for q in quantities)
    highs = [q.value if q.low is None else q.high for q in quantities]
    high = (
        None
        if any(value is None for value in highs)
        else math.fsum(value for value in highs if value is not None)
    )
    return low, high
