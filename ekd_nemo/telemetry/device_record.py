"""What one sampler recorded of one device, and whether it hangs together."""

from array import array
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from ekd_nemo.records.gaps import gap_threshold_s
from ekd_nemo.units import MJ_PER_J, MW_PER_W, NS_PER_S

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
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
    times_ns: "array[int]" = field(default_factory=lambda: array("q"))
    power_mw: "array[int]" = field(default_factory=lambda: array("q"))
    counters: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    has_reset: bool = False

    def add_sample(self, t_ns: int, p_avg_mw: int | None, p_inst_mw: int | None) -> None:
        """One sample: the average power, else the instant one."""
        power_mw = p_avg_mw if p_avg_mw is not None else p_inst_mw
        if power_mw is not None:
            self.times_ns.append(t_ns)
            self.power_mw.append(power_mw)

    def add_power(self, times_ns: Floats, average_mw: Floats, instant_mw: Floats) -> None:
        """Samples as columns; what is missing is NaN."""
        power_mw = np.where(np.isnan(average_mw), instant_mw, average_mw)
        known = ~np.isnan(power_mw)
        self.times_ns.frombytes(times_ns[known].astype(np.int64).tobytes())
        self.power_mw.frombytes(power_mw[known].astype(np.int64).tobytes())

    def add_counters(self, times_ns: Floats, energy_mj: Floats) -> None:
        """Counter readings as columns."""
        self.counters += zip(times_ns.tolist(), energy_mj.tolist(), strict=True)

    def knots(self) -> tuple[Ints, Ints]:
        """Times and powers in order, repeated times dropped."""
        times, first = np.unique(np.frombuffer(self.times_ns, np.int64), return_index=True)
        return times, np.frombuffer(self.power_mw, np.int64)[first]

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
