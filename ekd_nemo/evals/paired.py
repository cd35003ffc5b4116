"""Paired comparison of two models on the same items: is a difference more than chance?

Two scores of the same items rise and fall together, so their own standard errors say little about their difference.
Right-or-wrong metrics get the exact McNemar test; every metric gets a paired bootstrap over items.

Source: McNemar 1947, doi:10.1007/BF02295996 (exact form: binomial on the discordant pairs); Efron and Tibshirani 1993,
chapter 13 (percentile interval).
Not covered: items that depend on one another, such as several from one document; the intervals are then too narrow.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

SEED: Final = 0
REPLICATES: Final = 10_000
LEVEL: Final = 0.05
_BLOCK_VALUES: Final = 4_000_000  # indices drawn at once
FEW_ITEMS: Final = 10  # below this an interval says little

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First minus second, over `num_items` common items.

    Attributes:
        low, high: 95 % percentile interval of the difference; None below FEW_ITEMS items.
        only_first, only_second: items that one model alone gets right; None unless the metric is right or wrong.
        p_value: exact McNemar, two-sided; None unless the metric is right or wrong.
    """

    num_items: int
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    only_first: int | None = None
    only_second: int | None = None
    p_value: float | None = None

    @property
    def shown(self) -> bool:
        """Whether the items show a difference, at 5 %: by the exact test where there is one, else by the interval."""
        if self.low is None or self.high is None:
            return False
        if self.p_value is not None:
            return self.p_value < LEVEL
        return not self.low <= 0 <= self.high


def compare_means(first: Floats, second: Floats) -> Difference:
    """Compare the mean of one value per item.

    Args:
        first: [n] of the first model.
        second: [n] of the second model, the same items in the same order.
    """
    ones = np.ones_like(first)
    found = compare_ratios(first, second, ones)
    if not _right_or_wrong(first) or not _right_or_wrong(second):
        return found
    only_first = int(np.sum((first == 1) & (second == 0)))
    only_second = int(np.sum((first == 0) & (second == 1)))
    p_value = mcnemar(only_first, only_second)
    return Difference(
        num_items=found.num_items,
        first=found.first,
        second=found.second,
        difference=found.difference,
        low=found.low,
        high=found.high,
        only_first=only_first,
        only_second=only_second,
        p_value=p_value,
    )


def compare_ratios(first: Floats, second: Floats, weights: Floats) -> Difference:
    """Compare sums over items divided by the sum of the items' weights, such as bits by bytes.

    Args:
        first: [n] of the first model.
        second: [n] of the second model, the same items in the same order.
        weights: [n], above 0; both models have the same.
    """
    assert first.shape == second.shape == weights.shape, "one value per item"
    total = weights.sum()
    low, high = _interval(first - second, weights)
    return Difference(
        num_items=first.size,
        first=float(first.sum() / total),
        second=float(second.sum() / total),
        difference=float((first - second).sum() / total),
        low=low,
        high=high,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value: how often fair coins split the discordant items at least as unevenly."""
    count = only_first + only_second
    tail = sum(math.comb(count, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, float(2 * tail / 2**count)) if count else 1.0


def _right_or_wrong(values: Floats) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _interval(differences: Floats, weights: Floats) -> tuple[float | None, float | None]:
    """The 2.5th and 97.5th percentile over resampled items."""
    count = differences.size
    if count < FEW_ITEMS:
        return None, None
    random = np.random.default_rng(SEED)
    block = max(1, min(REPLICATES, _BLOCK_VALUES // count))
    drawn: list[Floats] = []
    for begin in range(0, REPLICATES, block):
        index = random.integers(0, count, size=(min(block, REPLICATES - begin), count))
        drawn.append(differences[index].sum(axis=1) / weights[index].sum(axis=1))
    low, high = np.percentile(np.concatenate(drawn), (2.5, 97.5))
    return float(low), float(high)
