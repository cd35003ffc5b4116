"""Energy of windows of time on chosen devices: what a benchmark asks that times its own work."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ekd_nemo.metrics.curve import Ints
from ekd_nemo.metrics.devices import Device, device_keys, device_of
from ekd_nemo.metrics.quantity import Quantity, weakest
from ekd_nemo.metrics.series import read_telemetry
from ekd_nemo.records.lines import DeviceLine
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.units import NS_PER_S

MIN_COVERAGE: Final = 0.99
_OPEN_S: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Meters:
    """The devices of a run on one clock, by UUID.

    Attributes:
        lines: what each device's meter promised; devices whose line was lost are absent.
    """

    devices: Mapping[str, Device]
    lines: Mapping[str, DeviceLine]

    @property
    def uncertainty_pct(self) -> float | None:
        """The largest that any meter promises; None where one promises nothing."""
        promised = [line.uncertainty_pct for line in self.lines.values()]
        known = [value for value in promised if value is not None]
        return max(known) if known and len(known) == len(promised) else None


def meters_of(run: RunDir, boot_id: str, uuids: Sequence[str]) -> Meters:
    """Read a run's telemetry of some devices on one clock.

    Raises:
        OSError, DataError: if a file cannot be read.
    """
    series = read_telemetry([*run.power_files(), *run.segment_files()]).series
    keys = {
        uuid: members
        for (boot, uuid), members in device_keys(series).items()
        if boot == boot_id and uuid in uuids
    }
    lines = {
        uuid: line
        for uuid, members in keys.items()
        for key in members
        if (line := series[key].device) is not None
    }
    return Meters({uuid: device_of(members, series) for uuid, members in keys.items()}, lines)


def window_energy(meters: Meters, uuids: Sequence[str], start_ns: int, end_ns: int) -> Quantity:
    """Energy of all named devices together in one window, in J.

    What a gap hides is not in the value: the bounds hold it, and it is flagged.

    Args:
        meters: from `meters_of`.
        uuids: devices that the work occupied; one without samples makes the energy missing.
        start_ns: beginning, on the clock of the meters.
        end_ns: end, likewise.
    """
    if not uuids:
        return Quantity.missing("J", "no accelerator is named")
    absent = [uuid for uuid in uuids if uuid not in meters.devices]
    if absent:
        return Quantity.missing("J", f"no power samples of {absent[0]}")
    devices = [meters.devices[uuid] for uuid in uuids]
    length_s = (end_ns - start_ns) / NS_PER_S
    parts = [_part(device, start_ns, end_ns) for device in devices]
    covered_s = min(part.covered_s for part in parts)
    if covered_s <= _OPEN_S:
        return Quantity.missing("J", "no power samples or counters in that time")
    open_s = [max(0.0, length_s - part.covered_s) for part in parts]
    energy_j = math.fsum(part.energy_j for part in parts)
    bounded = max(open_s) > _OPEN_S
    limits = [device.limit_w for device in devices]
    low = energy_j + math.fsum((d.idle_w or 0.0) * s for d, s in zip(devices, open_s, strict=True))
    high = (
        None
        if None in limits
        else energy_j
        + math.fsum((limit or 0.0) * s for limit, s in zip(limits, open_s, strict=True))
    )
    coverage = min(min(part.sampled_s for part in parts) / length_s, 1.0)
    flags = [flag for device in devices for flag in device.flags]
    if coverage < MIN_COVERAGE:
        flags.append("low_coverage")
    return Quantity(
        energy_j,
        "J",
        weakest(device.source for device in devices),
        coverage,
        low if bounded else None,
        high if bounded else None,
        tuple(flags),
    )


@dataclass(frozen=True, slots=True)
class _Part:
    energy_j: float
    covered_s: float
    sampled_s: float


def _part(device: Device, start_ns: int, end_ns: int) -> _Part:
    starts, ends = _times(start_ns), _times(end_ns)
    return _Part(
        float(device.best.energy_j(starts, ends)[0]),
        float(device.best.covered_s(starts, ends)[0]),
        float(device.sampled_s(starts, ends)[0]),
    )


def _times(at_ns: int) -> Ints:
    return np.array([at_ns], np.int64)
