"""Paired comparisons against slow, obvious counts."""

import math
from itertools import product

import numpy as np
import pytest

from ekd_nemo.evals.paired import FEW_ITEMS, compare_means, compare_ratios, mcnemar


def coins(only_first: int, only_second: int) -> float:
    """Every outcome of fair coins, those at least as uneven as seen counted."""
    count = only_first + only_second
    uneven = abs(only_first - only_second)
    outcomes = list(product((-1, 1), repeat=count))
    return sum(abs(sum(outcome)) >= uneven for outcome in outcomes) / len(outcomes)


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (3, 3), (5, 1), (0, 8), (7, 4)])
def test_mcnemar_counts_coins(counts: tuple[int, int]) -> None:
    assert mcnemar(*counts) == pytest.approx(coins(*counts), rel=1e-12)


def test_mcnemar_of_many_items_does_not_overflow() -> None:
    assert mcnemar(4000, 4000) == 1.0
    assert 0 < mcnemar(700, 1100) < 1e-15


def test_right_or_wrong_is_counted() -> None:
    first = np.array([1, 1, 0, 1, 0, 0] * 4, dtype=float)
    second = np.array([1, 0, 0, 0, 1, 0] * 4, dtype=float)
    found = compare_means(first, second)
    assert (found.only_first, found.only_second, found.num_items) == (8, 4, 24)
    assert found.difference == pytest.approx(4 / 24)
    assert found.p_value == pytest.approx(coins(8, 4))


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    random = np.random.default_rng(1)
    shared = random.normal(size=400)  # what makes items hard for both models
    first = shared + random.normal(0.2, 0.5, size=400)
    second = shared + random.normal(0.0, 0.5, size=400)
    found = compare_means(first, second)
    spread = (first - second).std(ddof=1) / math.sqrt(400)
    assert found.low is not None
    assert found.high is not None
    # 10,000 replicates: percentiles are good to a few percent of the interval's width
    assert found.low == pytest.approx(found.difference - 1.96 * spread, abs=0.1 * spread)
    assert found.high == pytest.approx(found.difference + 1.96 * spread, abs=0.1 * spread)
    assert found.shown
    assert found.p_value is None


def test_a_ratio_is_of_sums() -> None:
    bits_first, bits_second = np.arange(1.0, 21.0), np.arange(2.0, 22.0)
    num_bytes = np.arange(10.0, 30.0)
    found = compare_ratios(bits_first, bits_second, num_bytes)
    assert found.first == pytest.approx(bits_first.sum() / num_bytes.sum())
    assert found.difference == pytest.approx(-20 / num_bytes.sum())
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.difference < found.high < 0


def test_a_model_is_not_different_from_itself() -> None:
    values = np.array([0.0, 1.0] * 10)
    found = compare_means(values, values)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1.0)
    assert not found.shown


def test_few_items_get_no_interval() -> None:
    values = np.ones(FEW_ITEMS - 1)
    found = compare_means(values, 1 - values)
    assert (found.low, found.high, found.shown) == (None, None, False)


def test_the_same_items_give_the_same_interval() -> None:
    random = np.random.default_rng(2)
    first, second = random.normal(size=(2, 50))
    assert compare_means(first, second) == compare_means(first, second)
