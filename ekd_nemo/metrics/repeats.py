"""Repeats of one method: mean and 95 % interval of the mean."""

import math
from collections.abc import Iterable
from typing import Final

from ekd_nemo.metrics.quantity import Quantity, weakest

FEW_REPEATS: Final = 3

# Two-sided 95 % quantiles of Student's t for 1..30 degrees of freedom (NIST/SEMATECH e-Handbook, table 1.3.6.7.2).
_T_975: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_Z_975: Final = 1.959964


def t_975(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, from a table up to 30 and by Cornish-Fisher beyond (error below 1e-4).

    Raises:
        ValueError: for fewer than one degree of freedom.
    """
    if degrees < 1:
        raise ValueError(f"Student's t needs at least 1 degree of freedom, not {degrees}")
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z = _Z_975
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2


def mean_of_repeats(values: Iterable[Quantity], unit: str) -> Quantity:
    """Mean over repeats, with the 95 % t-interval as bounds.

    A missing repeat is left out and flagged `missing_repeats`; fewer than three are flagged `few_repeats`, a single
    one has no interval. The source is the weakest of the parts, the coverage the worst.
    """
    repeats = list(values)
    present = [repeat for repeat in repeats if repeat.value is not None]
    if not present:
        return Quantity.missing(unit, repeats[0].reason or "" if repeats else "no runs")
    numbers = [repeat.value for repeat in present if repeat.value is not None]
    count = len(numbers)
    mean = math.fsum(numbers) / count
    flags = [flag for repeat in repeats for flag in repeat.flags]
    if count < len(repeats):
        flags.append("missing_repeats")
    if count < FEW_REPEATS:
        flags.append("few_repeats")
    low = high = None
    if count > 1:
        variance = math.fsum((number - mean) ** 2 for number in numbers) / (count - 1)
        half = t_975(count - 1) * math.sqrt(variance / count)
        low, high = mean - half, mean + half
    coverages = [repeat.coverage for repeat in present if repeat.coverage is not None]
    source = weakest(repeat.source for repeat in present)
    return Quantity(
        mean, unit, source, min(coverages) if coverages else None, low, high, tuple(flags)
    )
