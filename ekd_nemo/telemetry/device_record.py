"""What one sampler recorded of one device, and whether it hangs together."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from ekd_nemo.records.gaps import gap_threshold_s
from ekd_nemo.units import MJ_PER_J, MW_PER_W, NS_PER_S

DISAGREEMENT_MIN_S: Final = 60.0


@dataclass(slots=True)
class DeviceRecord:
    """What one sampler recorded of one device."""

    node: str
    boot_id: str
    uuid: str
    sampler: str
    meter: str = "?"
    source: str = "?"
    times_ns: list[int] = field(default_factory=list[int])
    power_mw: list[int] = field(default_factory=list[int])
    counters: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    has_reset: bool = False

    def knots(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Times and powers in order, repeated times dropped."""
        times, first = np.unique(np.array(self.times_ns, np.int64), return_index=True)
        return times, np.array(self.power_mw, np.int64)[first]

    def covered(self) -> list[tuple[int, int]]:
        """Stretches of time [ns] without a gap between samples."""
        times, _ = self.knots()
        if len(times) < 2:
            return []
        cuts = np.flatnonzero(np.diff(times) / NS_PER_S > gap_threshold_s(times))
        begins = np.concatenate([times[:1], times[cuts + 1]])
        ends = np.concatenate([times[cuts], times[-1:]])
        return [(int(b), int(e)) for b, e in zip(begins, ends, strict=True)]

    def duration_s(self) -> float:
        """From the first sample to the last."""
        return (max(self.times_ns) - min(self.times_ns)) / NS_PER_S if self.times_ns else 0.0

    def gaps_s(self) -> list[float]:
        """Lengths of the gaps between samples."""
        stretches = self.covered()
        following = stretches[1:]
        return [(b[0] - a[1]) / NS_PER_S for a, b in zip(stretches[:-1], following, strict=True)]

    def disagreement_pct(self) -> float | None:
        """Integral of power less counter, in per cent of the counter, between its first and last value.

        None where there is no counter, a reset, a gap or less than a minute to compare.
        """
        if len(self.counters) < 2 or self.has_reset or self.gaps_s():
            return None
        self.counters.sort()
        (begin_ns, _), (end_ns, _) = self.counters[0], self.counters[-1]
        times, power = self.knots()
        begin_ns, end_ns = max(begin_ns, int(times[0])), min(end_ns, int(times[-1]))
        if (end_ns - begin_ns) / NS_PER_S < DISAGREEMENT_MIN_S:
            return None
        counters = np.array(self.counters, np.float64)
        counter_times, counter_mj = counters[:, 0], counters[:, 1]
        edges_mj = np.interp(np.array([begin_ns, end_ns]), counter_times, counter_mj)
        inner = times[(times > begin_ns) & (times < end_ns)]
        knots = np.concatenate([[begin_ns], inner, [end_ns]])
        watts = np.interp(knots, times, power) / MW_PER_W
        integral_j = _trapezoid(watts, (knots - begin_ns) / NS_PER_S)
        counted_j = float(edges_mj[1] - edges_mj[0]) / MJ_PER_J
        return 100 * (integral_j - counted_j) / counted_j if counted_j > 0 else None


def _trapezoid(watts: npt.NDArray[np.float64], times_s: npt.NDArray[np.float64]) -> float:
    return float(np.sum((watts[1:] + watts[:-1]) * np.diff(times_s))) / 2
