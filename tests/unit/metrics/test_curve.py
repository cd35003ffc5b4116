"""Curves against closed forms in float64, and the invariances that readers rely on."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ekd_nemo.metrics.curve import EMPTY, counter_curve, filled, power_curve
from ekd_nemo.records.gaps import gap_threshold_s
from tests.unit.metrics.synthetic import S

CONSTANT = (lambda t: 250.0, lambda a, b: 250.0 * (b - a))
RAMP = (lambda t: 100 + 3 * t, lambda a, b: 100 * (b - a) + 1.5 * (b * b - a * a))
SINE = (
    lambda t: 300 + 80 * math.sin(t / 2),
    lambda a, b: 300 * (b - a) - 160 * (math.cos(b / 2) - math.cos(a / 2)),
)


def sampled(
    watts: Callable[[float], float], end_s: float, period_s: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    times = np.round(np.arange(0, end_s + period_s / 2, period_s) * S).astype(np.int64)
    return times, np.array([watts(t / S) * 1000 for t in times])


@pytest.mark.parametrize("window", [(0.0, 60.0), (0.05, 59.97), (12.34, 12.36), (30.0, 30.0)])
@pytest.mark.parametrize("curve", [CONSTANT, RAMP, SINE], ids=["constant", "ramp", "sine"])
def test_window_energy_is_the_closed_form(curve, window) -> None:
    watts, joules = curve
    start, end = window
    got = power_curve(*sampled(watts, 60)).energy_j(round(start * S), round(end * S))[0]
    # A trapezoid of a sine of amplitude A misses A h^2 w^2 / 12 W at most: 80 * 0.01 * 0.25 / 12 = 0.017 W.
    assert got == pytest.approx(joules(start, end), abs=0.017 * (end - start) + 1e-9)


def test_a_step_is_smeared_over_one_period_only() -> None:
    curve = power_curve(*sampled(lambda t: 100.0 if t < 30 else 400.0, 60))
    assert curve.energy_j(0, 60 * S)[0] == pytest.approx(100 * 30 + 400 * 30 + 15, abs=1e-6)
    assert curve.energy_j(0, 29 * S)[0] == pytest.approx(2900, abs=1e-9)


def test_means_since_the_sample_before_are_rectangles() -> None:
    curve = power_curve([0, S, 3 * S], [999_000, 100_000, 50_000], since_before=True)
    assert curve.energy_j([0, S, S // 2], [S, 3 * S, 2 * S]).tolist() == [100.0, 100.0, 100.0]


def test_parts_add_up_to_the_whole() -> None:
    curve = power_curve(*sampled(SINE[0], 60))
    cuts = np.array([0, 1, 7_777_777_777, 31 * S, 60 * S])
    # Differences of one cumulative sum of some 2e4 J: rounding is below 1e-11 relative.
    assert curve.energy_j(cuts[:-1], cuts[1:]).sum() == pytest.approx(
        curve.energy_j(0, 60 * S)[0], rel=1e-11
    )


def test_outside_the_samples_nothing_is_covered() -> None:
    curve = power_curve([10 * S, 11 * S], [100_000, 100_000])
    assert curve.energy_j(0, 100 * S)[0] == pytest.approx(100)
    assert curve.covered_s(0, 100 * S)[0] == pytest.approx(1)
    assert curve.covered_s(0, 9 * S)[0] == 0


@pytest.mark.parametrize(
    ("period_s", "threshold_s"), [(0.1, 2.0), (0.6, 2.0), (1.0, 3.0), (5.0, 15.0)]
)
def test_gap_threshold_is_two_seconds_or_three_periods(period_s: float, threshold_s: float) -> None:
    times = (np.arange(20) * period_s * S).astype(np.int64)
    assert gap_threshold_s(times) == pytest.approx(threshold_s)


def test_a_whole_gap_is_uncovered() -> None:
    times, power = sampled(CONSTANT[0], 60)
    kept = (times <= 20 * S) | (times >= 25 * S)
    curve = power_curve(times[kept], power[kept])
    assert curve.covered_s(0, 60 * S)[0] == pytest.approx(55)
    assert curve.energy_j(0, 60 * S)[0] == pytest.approx(55 * 250)
    assert curve.covered_s(21 * S, 24 * S)[0] == 0
    assert curve.covered_s(19 * S, 22 * S)[0] == pytest.approx(1)


def test_an_interval_of_exactly_the_threshold_is_no_gap() -> None:
    at_threshold = power_curve([0, S, 2 * S, 4 * S, 5 * S], [100_000] * 5)
    assert at_threshold.covered_s(0, 5 * S)[0] == pytest.approx(5)
    above = power_curve([0, S, 2 * S, 5 * S + 1, 6 * S], [100_000] * 5)
    assert above.covered_s(0, 6 * S)[0] < 3


def test_counter_differences_and_their_interpolation() -> None:
    curve, resets = counter_curve([0, S, 2 * S], [5_000, 105_000, 405_000])
    assert resets == 0
    assert curve.energy_j([0, 0, S // 2], [2 * S, S, S + S // 2]).tolist() == [400.0, 100.0, 200.0]


def test_a_counter_reset_opens_its_interval_and_keeps_both_segments() -> None:
    curve, resets = counter_curve([0, S, 2 * S, 3 * S], [900_000, 1_000_000, 40_000, 140_000])
    assert resets == 1
    assert curve.energy_j(0, 3 * S)[0] == pytest.approx(200)
    assert curve.covered_s(0, 3 * S)[0] == pytest.approx(2)


def test_a_long_counter_interval_is_covered() -> None:
    curve, _ = counter_curve([0, S, 2 * S, 100 * S], [0, 100_000, 200_000, 10_000_000])
    assert curve.covered_s(0, 100 * S)[0] == pytest.approx(100)
    assert curve.energy_j(0, 100 * S)[0] == pytest.approx(10_000)


def test_power_fills_a_counter_before_after_and_across_a_reset() -> None:
    counter, _ = counter_curve([10 * S, 11 * S, 12 * S, 13 * S], [0, 100_000, 5_000, 105_000])
    power = power_curve(*sampled(lambda t: 200.0, 20))
    best = filled(counter, power)
    assert best.covered_s(0, 20 * S)[0] == pytest.approx(20)
    assert best.energy_j(0, 20 * S)[0] == pytest.approx(10 * 200 + 100 + 200 + 100 + 7 * 200)
    assert np.all(np.diff(best.knots_ns) > 0)


def test_filling_with_nothing_changes_nothing() -> None:
    power = power_curve(*sampled(RAMP[0], 5))
    for curve in (filled(EMPTY, power), filled(power, EMPTY)):
        assert curve.energy_j(0, 5 * S)[0] == power.energy_j(0, 5 * S)[0]
    assert filled(EMPTY, EMPTY).energy_j(0, S).tolist() == [0.0]


def test_two_disjoint_curves_have_a_gap_between_them() -> None:
    early, late = power_curve([0, S], [100_000] * 2), power_curve([9 * S, 10 * S], [300_000] * 2)
    for curve in (filled(early, late), filled(late, early)):
        assert curve.covered_s(0, 10 * S)[0] == pytest.approx(2)
        assert curve.energy_j(0, 10 * S)[0] == pytest.approx(400)


SAMPLES = st.lists(
    st.tuples(st.integers(0, 10**14), st.integers(0, 2_000_000)), min_size=2, max_size=60
)


@settings(max_examples=120, deadline=None)
@given(SAMPLES, st.randoms(use_true_random=False), st.integers(0, 10**14), st.integers(0, 10**14))
def test_order_repeats_and_splitting_do_not_matter(samples, random, one, other) -> None:
    """What a reader meets when files are split, merged, copied or written out of order."""
    start, end = sorted((one, other))
    cut = random.randrange(len(samples))
    shuffled = samples[cut:] + samples[:cut] + random.choices(samples, k=5)
    random.shuffle(shuffled)
    for make in (
        lambda s: power_curve(*zip(*s, strict=True)),
        lambda s: counter_curve(*zip(*s, strict=True))[0],
    ):
        expected, got = make(samples), make(shuffled)
        assert got.energy_j(start, end).tolist() == expected.energy_j(start, end).tolist()
        assert got.covered_s(start, end).tolist() == expected.covered_s(start, end).tolist()


@settings(max_examples=120, deadline=None)
@given(SAMPLES, SAMPLES, st.integers(0, 10**14))
def test_a_filled_curve_covers_at_least_either_and_stays_additive(power, counter, cut) -> None:
    curves = power_curve(*zip(*power, strict=True)), counter_curve(*zip(*counter, strict=True))[0]
    both = filled(curves[1], curves[0])
    whole = both.covered_s(0, 10**14)[0]
    assert np.all(np.diff(both.knots_ns) > 0)
    # Sums of up to 1e5 s: 1e-6 s is far above rounding and far below any interval that counts.
    assert whole >= max(curve.covered_s(0, 10**14)[0] for curve in curves) - 1e-6
    assert whole <= 10**5 + 1e-6
    parts = both.energy_j([0, cut], [cut, 10**14])
    assert parts.sum() == pytest.approx(both.energy_j(0, 10**14)[0], rel=1e-9)
