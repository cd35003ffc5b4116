"""Several runs at once, against numbers that are computed by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ekd_nemo.metrics.bands import band_of, frontier_of, mean_known


def test_the_band_is_mean_and_deviation_of_the_runs_that_go_on() -> None:
    band = band_of([np.array([1.0, 2.0, 3.0]), np.array([3.0, np.nan]), np.array([np.nan] * 4)])
    assert band.mean[:3].tolist() == [2.0, 2.0, 3.0]
    assert band.deviation[:3].tolist() == [pytest.approx(np.std([1, 3], ddof=1)), 0.0, 0.0]
    assert band.runs.tolist() == [2, 1, 1, 0]
    assert np.isnan([band.mean[3], band.deviation[3]]).all()


def test_a_mean_leaves_out_what_is_not_known() -> None:
    mean = mean_known([np.array([1.0, np.nan, np.nan]), np.array([3.0, 5.0, np.nan])])
    assert mean[:2].tolist() == [2.0, 5.0]
    assert np.isnan(mean[2])


POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(points=POINTS, higher=st.booleans())
def test_the_frontier_holds_what_nothing_beats(
    points: list[tuple[float, float]], higher: bool
) -> None:
    sign = 1 if higher else -1
    front = frontier_of(points, higher_is_better=higher)
    unbeaten = {
        (cost, quality)
        for cost, quality in points
        if not any(
            c <= cost and sign * q >= sign * quality and (c, q) != (cost, quality)
            for c, q in points
        )
    }
    assert set(front) == unbeaten
    assert front == sorted(unbeaten)
