"""A quantity as the text of a table cell."""

import math
from collections.abc import Callable
from typing import Final

from ekd_nemo.metrics.quantity import Quantity
from ekd_nemo.units import format_energy

MISSING: Final = "n/a"

Formatter = Callable[[float], str]


def count(value: float) -> str:
    """A whole number, or a mean of some, with thousands apart: `1,234`."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def decimals(places: int) -> Formatter:
    """A formatter with so many digits after the point."""
    return lambda value: f"{value:.{places}f}"


def signed(places: int) -> Formatter:
    """The same with the sign always shown."""
    return lambda value: f"{value:+.{places}f}"


def rounded(value: float) -> str:
    """Four significant digits: `1,234,000`, `12.34`, `0.001234`."""
    if value and abs(value) >= 1000:
        digits = 3 - math.floor(math.log10(abs(value)))
        return f"{round(value, digits):,.0f}" if abs(value) < 1e9 else f"{value:.3e}"
    return f"{value:.4g}"


def power(value: float) -> str:
    """Power with four significant digits and a fitting unit: `1.234 kW`."""
    return f"{value / 1000:.4g} kW" if value >= 1000 else f"{value:.4g} W"


def duration(value: float) -> str:
    """Seconds, minutes and seconds, or hours and minutes: `42.1 s`, `3m07s`, `2h05m`."""
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def percent(value: float) -> str:
    """A fraction in per cent, rounded down to a tenth: `99.8 %`."""
    tenths = math.floor(value * 1000 + 1e-6)  # a sum of float64 may miss 1 by some 1e-15
    return f"{tenths / 10:g} %"


def energy(value: float) -> str:
    """Energy with four significant digits: `12.34 kJ`."""
    return format_energy(value)


def cell(quantity: Quantity | None, show: Formatter) -> str:
    """The value, or `n/a`; no interval."""
    if quantity is None or quantity.value is None:
        return MISSING
    return show(quantity.value)


def cell_with_bounds(quantity: Quantity | None, show: Formatter) -> str:
    """The value and, on a second line, its bounds where it has any.

    `±0.04` for an interval around the value, `12 J..15 J` for bounds of another kind, `>=12 J` where
    nothing bounds it from above.
    """
    text = cell(quantity, show)
    if quantity is None or quantity.value is None or quantity.low is None:
        return text
    if quantity.high is None:
        return f"{text}\n>={show(quantity.low)}"
    half = (quantity.high - quantity.low) / 2
    if half <= 0:
        return text
    if abs(quantity.low + half - quantity.value) < half * 1e-6:  # symmetric but for rounding
        return f"{text}\n±{show(half).lstrip('+')}"
    return f"{text}\n{show(quantity.low)}..{show(quantity.high)}"
