"""One device on one clock: its power, counter and best curves from every sampler that saw it."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

import numpy as np

from ekd_nemo.metrics.curve import (
    EMPTY,
    EnergyCurve,
    Floats,
    Ints,
    counter_curve,
    filled,
    power_curve,
)
from ekd_nemo.metrics.quantity import Source, weakest
from ekd_nemo.metrics.series import Series, SeriesKey
from ekd_nemo.records.lines import DeviceLine
from ekd_nemo.units import MW_PER_W, NS_PER_S

Role = Literal["accelerator", "host"]

RECONCILE_S: Final = 60.0  # below this the counter's own period is too coarse for a 1 % claim
RECONCILE_TOLERANCE: Final = 0.01


@dataclass(frozen=True, slots=True)
class Clock:
    """Monotonic times compare only within one boot of one node."""

    node: str
    boot_id: str


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """What is known of one device on one clock.

    Attributes:
        power: from average power samples alone; its covered time is the coverage that figures state.
        counter: from energy counters alone.
        best: counters, filled with power samples where they are missing or were reset.
        idle_w, limit_w: bounds of power inside gaps; None where the meter does not know them.
        role: None where the device's own line was lost.
    """

    uuid: str
    clock: Clock
    name: str
    role: Role | None
    source: Source
    power: EnergyCurve
    counter: EnergyCurve
    best: EnergyCurve
    idle_w: float | None
    limit_w: float | None
    flags: tuple[str, ...]

    @property
    def last_ns(self) -> int | None:
        """The time of the last sample; None without any."""
        return int(self.best.knots_ns[-1]) if len(self.best.knots_ns) else None

    def sampled_s(self, start_ns: Ints, end_ns: Ints) -> Floats:
        """Time of each window between samples that have no gap between them, in s."""
        curve = self.power if not self.power.is_empty else self.best
        return curve.covered_s(start_ns, end_ns)


def device_keys(series: Mapping[SeriesKey, Series]) -> dict[tuple[str, str], list[SeriesKey]]:
    """The series of each device, by boot id and UUID: a device seen by two samplers is one device."""
    groups: dict[tuple[str, str], list[SeriesKey]] = defaultdict(list)
    for key in sorted(series):
        groups[key.boot_id, key.uuid].append(key)
    return groups


def device_of(keys: Sequence[SeriesKey], series: Mapping[SeriesKey, Series]) -> Device:
    """One device from all its series.

    Counters compare only within one sampler, so each sampler gives a curve of its own; where several cover the same
    time the first one (by sampler id) counts.
    """
    parts = [series[key] for key in keys]
    lines = [part.device for part in parts if part.device is not None]
    flags: set[str] = set()
    power, counter = EMPTY, EMPTY
    for part in parts:
        power = filled(power, _power_of(part, flags))
        curve, resets = counter_curve(*part.samples("e_mj"))
        if resets:
            flags.add("counter_reset")
        counter = filled(counter, curve)
    if _is_stuck(counter, power):
        flags.add("counter_stuck")
        counter = EMPTY
    return Device(
        keys[0].uuid,
        Clock(keys[0].node, keys[0].boot_id),
        lines[-1].name if lines else keys[0].uuid,
        role_of(keys, series),
        weakest(part.source for part in parts) or "measured",
        power,
        counter,
        filled(counter, power),
        _watts([line.idle_power_mw for line in lines]),
        _watts([line.power_limit_mw for line in lines]),
        tuple(sorted(flags | _mig_flags(lines) | _stated_flags(lines))),
    )


def role_of(keys: Sequence[SeriesKey], series: Mapping[SeriesKey, Series]) -> Role | None:
    """The part that a device has in a run: one. What any of its samplers took for an accelerator is one.

    Processors may be the accelerators of the training and, in a job that was told that it holds no GPU, host devices
    while shards were built.
    """
    roles = {device.role for key in keys if (device := series[key].device) is not None}
    if not roles:
        return None
    return "accelerator" if "accelerator" in roles else "host"


def _power_of(part: Series, flags: set[str]) -> EnergyCurve:
    """The power curve of one sampler: the average power, or the instant one, flagged, where there is no other."""
    since_before = part.device is not None and part.device.p_avg_window_ms is None
    average = part.samples("p_avg_mw")
    if len(average.at_ns):
        return power_curve(average.at_ns, average.value, since_before)
    instant = part.samples("p_inst_mw")
    if len(instant.at_ns):
        flags.add("instant_power")
    return power_curve(instant.at_ns, instant.value)


def _is_stuck(counter: EnergyCurve, power: EnergyCurve) -> bool:
    """Whether a counter stood still for a minute of samples that say otherwise: then it does not count at all."""
    if counter.is_empty or power.is_empty:
        return False
    start, end = counter.knots_ns[0], counter.knots_ns[-1]
    still = (
        float(counter.energy_j(start, end)[0]) == 0.0
        and float(counter.covered_s(start, end)[0]) > RECONCILE_S
    )
    return still and float(power.energy_j(start, end)[0]) > 0.0


def _mig_flags(lines: Sequence[DeviceLine]) -> set[str]:
    return {"mig"} if any(line.mig for line in lines) else set()


def _stated_flags(lines: Sequence[DeviceLine]) -> set[str]:
    """Flags that whoever wrote the device's line put among its parameters."""
    stated = [(line.parameters or {}).get("flags") for line in lines]
    return {
        flag
        for flags in stated
        if isinstance(flags, list)
        for flag in cast("list[object]", flags)
        if isinstance(flag, str)
    }


def _watts(values_mw: Sequence[int | None]) -> float | None:
    """The last known value in W."""
    known = [value for value in values_mw if value is not None]
    return known[-1] / MW_PER_W if known else None


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Counter and integral over the time that both cover, summed over devices."""

    counter_j: float
    integral_j: float
    common_s: float

    @property
    def discrepancy(self) -> float | None:
        """`integral / counter - 1`; None where there is nothing to compare."""
        return self.integral_j / self.counter_j - 1 if self.counter_j > 0 else None

    @property
    def flags(self) -> tuple[str, ...]:
        """`counter_integral_differ` above 1 % once a minute is compared; `counter_factor_1000` at that factor."""
        discrepancy = self.discrepancy
        if (
            discrepancy is None
            or self.common_s < RECONCILE_S
            or abs(discrepancy) <= RECONCILE_TOLERANCE
        ):
            return ()
        ratio = discrepancy + 1
        factor = ("counter_factor_1000",) if _is_factor_1000(ratio) else ()
        return ("counter_integral_differ", *factor)


def _is_factor_1000(ratio: float) -> bool:
    """Whether two energies differ by a factor of 1000, give or take a tenth."""
    return ratio > 0 and abs(abs(math.log10(ratio)) - 3) < math.log10(1.1)


def reconcile(device: Device, start_ns: int, end_ns: int) -> Reconciliation:
    """Compare counter and integral of one device over the stretches of a window that both cover without a break."""
    starts, ends = _unbroken(device.power)
    if not len(starts) or device.counter.is_empty:
        return Reconciliation(0.0, 0.0, 0.0)
    first = max(start_ns, int(device.counter.knots_ns[0]))
    last = max(first, min(end_ns, int(device.counter.knots_ns[-1])))
    starts, ends = np.clip(starts, first, last), np.clip(ends, first, last)
    lengths_s = (ends - starts) / NS_PER_S
    # a nanosecond per second: covered time is a difference of float sums
    whole = (lengths_s > 0) & (device.counter.covered_s(starts, ends) >= lengths_s * (1 - 1e-9))
    starts, ends = starts[whole], ends[whole]
    return Reconciliation(
        float(device.counter.energy_j(starts, ends).sum()),
        float(device.power.energy_j(starts, ends).sum()),
        float(lengths_s[whole].sum()),
    )


def _unbroken(curve: EnergyCurve) -> tuple[Ints, Ints]:
    """Starts and ends of the stretches of a curve without a gap."""
    edges = np.diff(np.concatenate(([0], curve.covered.astype(np.int8), [0])))
    return curve.knots_ns[np.flatnonzero(edges == 1)], curve.knots_ns[np.flatnonzero(edges == -1)]
