"""Energy as a function of time: power samples and energy counters become one kind of curve.

A curve is a row of knots; between two of them power runs linearly from `start_w` to `end_w`, or
nothing is known (`covered` is False). Cumulative sums make the energy of any window a difference,
so the parts of a window always add up to the whole.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from ekd_nemo.records.gaps import gap_threshold_s
from ekd_nemo.units import MJ_PER_J, MW_PER_W, NS_PER_S

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_ENDS: Final = 2  # knots that an interval needs


@dataclass(frozen=True, eq=False)
class EnergyCurve:
    """Piecewise linear power over one clock.

    Attributes:
        knots_ns: [N] strictly increasing monotonic times.
        start_w: [N-1] power at the left end of each interval.
        end_w: [N-1] power at the right end.
        covered: [N-1] False where the interval is a gap; its power is not looked at.
    """

    knots_ns: Ints
    start_w: Floats
    end_w: Floats
    covered: Bools
    _energy_j: Floats = field(init=False, repr=False)
    _covered_s: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Prepare the cumulative sums."""
        intervals_s = np.diff(self.knots_ns) / NS_PER_S
        energy_j = np.where(self.covered, 0.5 * (self.start_w + self.end_w) * intervals_s, 0.0)
        covered_s = np.where(self.covered, intervals_s, 0.0)
        object.__setattr__(self, "_energy_j", _cumulative(energy_j, len(self.knots_ns)))
        object.__setattr__(self, "_covered_s", _cumulative(covered_s, len(self.knots_ns)))

    @property
    def is_empty(self) -> bool:
        """Whether there are too few knots for an interval."""
        return len(self.knots_ns) < _ENDS

    def energy_until_j(self, at_ns: npt.ArrayLike) -> Floats:
        """Covered energy from the first knot to each time in J.

        Constant inside gaps and outside the knots.
        """
        interval, inside_s, known = self._locate(at_ns)
        if not len(self.start_w):
            return np.zeros(interval.shape)
        span_s = (self.knots_ns[interval + 1] - self.knots_ns[interval]) / NS_PER_S
        slope = (self.end_w[interval] - self.start_w[interval]) / span_s
        partial_j = inside_s * (self.start_w[interval] + 0.5 * slope * inside_s)
        return self._energy_j[interval] + np.where(known, partial_j, 0.0)

    def covered_until_s(self, at_ns: npt.ArrayLike) -> Floats:
        """Covered time from the first knot to each time in s."""
        interval, inside_s, known = self._locate(at_ns)
        if not len(self.start_w):
            return np.zeros(interval.shape)
        return self._covered_s[interval] + np.where(known, inside_s, 0.0)

    def energy_j(self, start_ns: npt.ArrayLike, end_ns: npt.ArrayLike) -> Floats:
        """Covered energy of each window [start, end] in J."""
        return self.energy_until_j(end_ns) - self.energy_until_j(start_ns)

    def covered_s(self, start_ns: npt.ArrayLike, end_ns: npt.ArrayLike) -> Floats:
        """Covered time of each window [start, end] in s."""
        return self.covered_until_s(end_ns) - self.covered_until_s(start_ns)

    def clipped(self, start_ns: int, end_ns: int) -> "EnergyCurve":
        """The part of the curve inside [start, end]; powers at the new ends are interpolated."""
        if self.is_empty:
            return EMPTY
        start_ns = max(start_ns, int(self.knots_ns[0]))
        end_ns = min(end_ns, int(self.knots_ns[-1]))
        if end_ns <= start_ns:
            return EMPTY
        first = int(np.searchsorted(self.knots_ns, start_ns, side="right")) - 1
        last = int(np.searchsorted(self.knots_ns, end_ns, side="left")) - 1
        knots = np.concatenate(([start_ns], self.knots_ns[first + 1 : last + 1], [end_ns]))
        start_w = self.start_w[first : last + 1].copy()
        end_w = self.end_w[first : last + 1].copy()
        start_w[0] = self._power_w(first, start_ns)
        end_w[-1] = self._power_w(last, end_ns)
        return EnergyCurve(knots, start_w, end_w, self.covered[first : last + 1])

    def _power_w(self, interval: int, at_ns: int) -> float:
        """Power at a time inside an interval."""
        left, right = int(self.knots_ns[interval]), int(self.knots_ns[interval + 1])
        rise = float(self.end_w[interval] - self.start_w[interval])
        return float(self.start_w[interval]) + rise * ((at_ns - left) / (right - left))

    def _locate(self, at_ns: npt.ArrayLike) -> tuple[Ints, Floats, Bools]:
        """For each time.

        Its interval, the seconds since that interval's left knot, and whether it is covered.
        """
        at = np.atleast_1d(np.asarray(at_ns, dtype=np.int64))
        if self.is_empty:
            return np.zeros(at.shape, np.int64), np.zeros(at.shape), np.zeros(at.shape, np.bool_)
        at = np.clip(at, self.knots_ns[0], self.knots_ns[-1])
        interval = np.clip(
            np.searchsorted(self.knots_ns, at, side="right") - 1, 0, len(self.knots_ns) - 2
        )
        return interval, (at - self.knots_ns[interval]) / NS_PER_S, self.covered[interval]


def _cumulative(values: Floats, length: int) -> Floats:
    return np.concatenate(([0.0], np.cumsum(values))) if length else np.zeros(1)


EMPTY: Final = EnergyCurve(np.zeros(0, np.int64), np.zeros(0), np.zeros(0), np.zeros(0, np.bool_))


def power_curve(
    times_ns: npt.ArrayLike, power_mw: npt.ArrayLike, since_before: bool = False
) -> EnergyCurve:
    """The curve through average power samples of one device, gaps left open.

    Samples may come in any order and more than once: equal pairs count once, different powers at
        one time are averaged.

    Args:
        times_ns: [N] monotonic times of one clock.
        power_mw: [N] power in mW; no NaN.
        since_before: each value is the mean since the sample before, so that a rectangle is exact;
            otherwise each is the power about its time, and a trapezoid joins it with its neighbour.
    """
    knots, power = _distinct(np.asarray(times_ns, np.int64), np.asarray(power_mw, np.float64))
    watts = power / MW_PER_W
    covered = np.diff(knots) / NS_PER_S <= gap_threshold_s(knots)
    return EnergyCurve(knots, watts[1:] if since_before else watts[:-1], watts[1:], covered)


def counter_curve(times_ns: npt.ArrayLike, energy_mj: npt.ArrayLike) -> tuple[EnergyCurve, int]:
    """The curve through readings of one energy counter, and how many resets were seen.

    Between two readings the counter's difference is spread evenly. A falling counter is a reset:
    that interval is left open, so the readings on either side are segments of their own. A long
    interval is covered: the counter has gone on counting. (A reboot is another clock, hence another
    curve.)

    Args:
        times_ns: [N] monotonic times of one clock, any order, repeats allowed.
        energy_mj: [N] cumulative energy in mJ; at one time the largest reading counts.
    """
    times = np.asarray(times_ns, np.int64)
    readings = np.asarray(energy_mj, np.int64)
    order = np.lexsort((readings, times))
    times, readings = times[order], readings[order]
    last = np.ones(len(times), np.bool_)
    last[:-1] = np.diff(times) > 0
    knots, energy = times[last], readings[last]
    rise_mj = np.diff(energy)
    watts = rise_mj / MJ_PER_J / (np.diff(knots) / NS_PER_S)
    return EnergyCurve(knots, watts, watts, rise_mj >= 0), int(np.count_nonzero(rise_mj < 0))


def filled(primary: EnergyCurve, secondary: EnergyCurve) -> EnergyCurve:
    """The primary curve where it is known.

    The secondary one before, after and inside its open intervals.
    """
    if primary.is_empty:
        return secondary
    if secondary.is_empty:
        return primary
    knots = primary.knots_ns
    pieces = [secondary.clipped(int(secondary.knots_ns[0]), int(knots[0]))]
    start = 0
    for interval in map(int, np.flatnonzero(~primary.covered)):
        pieces.append(_slice(primary, start, interval))
        pieces.append(secondary.clipped(int(knots[interval]), int(knots[interval + 1])))
        start = interval + 1
    pieces.append(_slice(primary, start, len(primary.covered)))
    pieces.append(secondary.clipped(int(knots[-1]), int(secondary.knots_ns[-1])))
    return _concatenated([piece for piece in pieces if not piece.is_empty])


def _slice(curve: EnergyCurve, start: int, stop: int) -> EnergyCurve:
    """Intervals [start, stop) of a curve."""
    if stop <= start:
        return EMPTY
    return EnergyCurve(
        curve.knots_ns[start : stop + 1],
        curve.start_w[start:stop],
        curve.end_w[start:stop],
        curve.covered[start:stop],
    )


def _concatenated(pieces: list[EnergyCurve]) -> EnergyCurve:
    """Curves one after the other; where they do not touch, the time between is a gap."""
    knots, start_w, end_w, covered = (
        [pieces[0].knots_ns],
        [pieces[0].start_w],
        [pieces[0].end_w],
        [pieces[0].covered],
    )
    for before, piece in pairwise(pieces):
        if piece.knots_ns[0] > before.knots_ns[-1]:
            knots.append(piece.knots_ns)
            start_w.append(np.zeros(1))
            end_w.append(np.zeros(1))
            covered.append(np.zeros(1, np.bool_))
        else:
            knots.append(piece.knots_ns[1:])
        start_w.append(piece.start_w)
        end_w.append(piece.end_w)
        covered.append(piece.covered)
    return EnergyCurve(
        np.concatenate(knots),
        np.concatenate(start_w),
        np.concatenate(end_w),
        np.concatenate(covered),
    )


def _distinct(times: Ints, values: Floats) -> tuple[Ints, Floats]:
    """Samples in order of time, equal pairs once, different values at one time averaged."""
    if len(times) > 1 and np.all(np.diff(times) > 0):
        return times, values
    order = np.lexsort((values, times))
    times, values = times[order], values[order]
    fresh = np.ones(len(times), np.bool_)
    fresh[1:] = (np.diff(times) > 0) | (np.diff(values) != 0)
    times, values = times[fresh], values[fresh]
    knots, first = np.unique(times, return_index=True)
    if len(knots) == len(times):
        return times, values
    counts = np.diff(np.append(first, len(times)))
    return knots, np.add.reduceat(values, first) / counts
