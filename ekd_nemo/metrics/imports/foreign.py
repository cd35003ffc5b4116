"""Power samples of another tool, in memory, with what was odd about them."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import numpy as np

from ekd_nemo.metrics.curve import counter_curve, power_curve
from ekd_nemo.units import MW_PER_W

FACTOR: Final = 1000
# How far counter / integral may lie from 1000 for the counter to be taken as 1000 times too large.
_FACTOR_TOLERANCE: Final = 0.1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Sample:
    """One device at one time; what the tool did not give is None.

    Attributes:
        t_wall_ns: time since the epoch.
        energy_mj: the counter as the tool wrote it, right or wrong.
        state: other figures by the name that they have in a state line.
    """

    t_wall_ns: int
    power_w: float | None = None
    energy_mj: float | None = None
    state: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(slots=True)
class ForeignPower:
    """All samples of one file.

    Attributes:
        devices: samples by device, in the file's order.
        names: what the tool called each device.
        dropped: how many lines or values were left out, by reason.
    """

    devices: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    names: dict[str, str] = field(default_factory=dict[str, str])
    dropped: Counter[str] = field(default_factory=Counter[str])

    def drop(self, reason: str, count: int = 1) -> None:
        """Count something that was left out."""
        self.dropped[reason] += count


def epoch_ns(text: str) -> int:
    """Nanoseconds since the epoch of an ISO 8601 time with its zone.

    Raises:
        ValueError: if it is none, or has no zone.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    since = moment - _EPOCH
    return ((since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds) * 1000


def counter_factor(devices: Iterable[list[Sample]]) -> int:
    """What the counters have to be divided by: 1000 if they outrun the power integral by that factor, else 1.

    The earlier framework took NVML's millijoules for joules. Energy is summed over all devices, over the time
    that both cover.
    """
    counted_j = integral_j = 0.0
    for samples in devices:
        power = [s for s in samples if s.power_w is not None]
        energy = [s for s in samples if s.energy_mj is not None]
        if len(power) < 2 or len(energy) < 2:  # no interval
            continue
        curve = power_curve(
            [s.t_wall_ns for s in power], [(s.power_w or 0.0) * MW_PER_W for s in power]
        )
        counter, _ = counter_curve(
            [s.t_wall_ns for s in energy], [round(s.energy_mj or 0.0) for s in energy]
        )
        edges = curve.knots_ns
        inside = curve.covered & (
            counter.covered_s(edges[:-1], edges[1:]) >= np.diff(edges) / 1e9 * (1 - 1e-9)
        )
        counted_j += float(counter.energy_j(edges[:-1], edges[1:])[inside].sum())
        integral_j += float(curve.energy_j(edges[:-1], edges[1:])[inside].sum())
    return FACTOR if is_factor(counted_j, integral_j) else 1


def is_factor(energy_j: float, truth_j: float) -> bool:
    """Whether an energy is 1000 times the true one, give or take a tenth."""
    return truth_j > 0 and abs(energy_j / truth_j / FACTOR - 1) < _FACTOR_TOLERANCE


def power_energy_j(found: ForeignPower) -> float:
    """The power integral of all devices, gaps left out."""
    whole_j = 0.0
    for samples in found.devices.values():
        power = [s for s in samples if s.power_w is not None]
        if len(power) > 1:
            curve = power_curve(
                [s.t_wall_ns for s in power], [(s.power_w or 0.0) * MW_PER_W for s in power]
            )
            edges = curve.knots_ns
            whole_j += float(curve.energy_j(edges[:-1], edges[1:])[curve.covered].sum())
    return whole_j


def whole_mj(energy_mj: float, factor: int) -> int:
    """A counter reading in whole millijoules, corrected."""
    return round(energy_mj / factor)


def whole_mw(power_w: float) -> int:
    """Power in whole milliwatts."""
    return round(power_w * MW_PER_W)
