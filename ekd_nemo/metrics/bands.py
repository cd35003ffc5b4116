"""Several runs at once: mean and deviation of what they did over time, and the best trades of energy for quality."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ekd_nemo.metrics.curve import Floats


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """Mean and standard deviation over runs on a grid; NaN where no run has a value.

    Attributes:
        runs: [B] how many runs have a value.
    """

    mean: Floats
    deviation: Floats
    runs: Floats


def band_of(curves: Sequence[Floats]) -> Band:
    """The band of curves on one grid; where some have ended the others go on alone.

    The deviation is that of the sample (n - 1), and 0 where one run alone has a value.
    """
    longest = max(len(curve) for curve in curves)
    table = np.full((len(curves), longest), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = curve
    mean = mean_known(table)
    count = (~np.isnan(table)).sum(axis=0).astype(np.float64)
    squares = np.nansum((table - mean) ** 2, axis=0)
    deviation = np.sqrt(squares / np.maximum(count - 1, 1))
    return Band(mean, np.where(count == 0, np.nan, deviation), count)


def mean_known(curves: Sequence[Floats] | Floats) -> Floats:
    """Mean of curves of one length, over those that have a value; NaN where none has one."""
    table = np.asarray(curves, np.float64)
    count = (~np.isnan(table)).sum(axis=0)
    return np.where(count > 0, np.nansum(table, axis=0) / np.maximum(count, 1), np.nan)


def frontier_of(
    points: Iterable[tuple[float, float]], *, higher_is_better: bool
) -> list[tuple[float, float]]:
    """Of (cost, quality) points those that no other point beats at the same or a lower cost, by cost."""
    sign = -1.0 if higher_is_better else 1.0
    front: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not front or sign * quality < sign * front[-1][1]:
            front.append((cost, quality))
    return front
