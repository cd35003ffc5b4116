"""Power of the processor packages estimated from their utilisation and a stated TDP.

`P = idle + (tdp - idle) * utilisation`, always labelled `estimated`. It knows nothing of clocks,
vector width, memory or the rest of the machine: good for trying the whole road on a laptop, never
for a claim.

Units: TDP in W; readings in mW and mJ. Clock: CLOCK_MONOTONIC; busy time from the kernel's tick
counters (10 ms).
Counter source: busy CPU seconds since boot, through the formula.
Covers: every process on the packages, not only the run's.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ekd_nemo.meter.cpu import package_uuid, packages
from ekd_nemo.meter.protocol import (
    CounterReading,
    Device,
    Fault,
    MeterUnavailableError,
    PowerReading,
    StateReading,
)
from ekd_nemo.records.clock import node_name, now
from ekd_nemo.records.lines import Role, Source
from ekd_nemo.units import MJ_PER_J, MW_PER_W, NS_PER_S

PROC_STAT: Final = Path("/proc/stat")
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
DEFAULT_TDP_W: Final = 65.0
DEFAULT_IDLE_FRACTION: Final = 0.3


def busy_seconds(cpus: Sequence[int], stat: Path = PROC_STAT) -> float:
    """CPU seconds since boot in which these CPUs worked for this machine.

    Neither idle nor waiting, and not taken by another guest of the host (steal).

    Args:
        cpus: logical CPUs; empty means all.
        stat: the kernel's file.
    """
    wanted = {f"cpu{number}" for number in cpus} or {"cpu"}
    ticks = 0
    with stat.open() as file:
        for line in file:
            name, *fields = line.split()
            if not name.startswith("cpu"):
                break
            if name in wanted:
                user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[:7])
                ticks += user + nice + system + irq + softirq
                if wanted == {"cpu"}:
                    break
    return ticks / TICKS_PER_S


@dataclass(slots=True)
class _Package:
    device: Device
    cpus: Sequence[int]
    num_cpus: int
    t_origin_ns: int
    busy_origin_s: float
    t_last_ns: int
    energy_last_j: float = 0.0
    busy_last_s: float = 0.0
    t_state_ns: int = 0


class EstimateMeter:
    """One device per processor package.

    Args:
        tdp_w: thermal design power of one package; None takes 65 W and says that nobody stated it.
        idle_fraction: share of the TDP drawn when nothing runs.
        role: what the packages are for `E_run`.
        node: this node's name; None: as records name it.
    Raises: MeterUnavailableError if the kernel tells no processor time (some sandboxes).
    """

    name: str = "estimate"
    source: Source = "estimated"
    exhausted: bool = False

    def __init__(
        self,
        *,
        tdp_w: float | None = None,
        idle_fraction: float = DEFAULT_IDLE_FRACTION,
        role: Role = "accelerator",
        node: str | None = None,
    ) -> None:
        """Take the origin of all counters."""
        self._tdp_w = DEFAULT_TDP_W if tdp_w is None else tdp_w
        self._idle_w = self._tdp_w * idle_fraction
        parameters = {
            "tdp_w": self._tdp_w,
            "tdp_from": "default" if tdp_w is None else "stated",
            "idle_fraction": idle_fraction,
            "formula": "idle + (tdp - idle) * utilisation",
        }
        if busy_seconds([]) == 0:
            raise MeterUnavailableError(f"estimate: {PROC_STAT} tells no processor time")
        found = packages()
        self._packages: list[_Package] = []
        for number, cpus in found.items():
            device = Device(
                uuid=package_uuid(node or node_name(), number),
                name=f"processor package {number}",
                device_kind="cpu",
                role=role,
                covers="one processor package with all its processes, from utilisation alone",
                power_limit_mw=round(self._tdp_w * MW_PER_W),
                idle_power_mw=round(self._idle_w * MW_PER_W),
                parameters=parameters,
            )
            t_ns = time.monotonic_ns()
            listed = cpus if len(found) > 1 else []
            busy_s = busy_seconds(listed)
            num_cpus = len(cpus) or os.cpu_count() or 1
            self._packages.append(
                _Package(device, listed, num_cpus, t_ns, busy_s, t_ns, 0.0, busy_s, t_ns)
            )

    @property
    def devices(self) -> Sequence[Device]:
        """The packages."""
        return [package.device for package in self._packages]

    def _energy_j(self, package: _Package, t_ns: int, busy_s: float) -> float:
        """Energy since the origin: exact for the formula, whatever the sampling."""
        idle_j = self._idle_w * (t_ns - package.t_origin_ns) / NS_PER_S
        work_s = (busy_s - package.busy_origin_s) / package.num_cpus
        return idle_j + (self._tdp_w - self._idle_w) * work_s

    def read_power(self) -> Sequence[PowerReading | Fault]:
        """Mean power since the read before."""
        readings: list[PowerReading | Fault] = []
        for package in self._packages:
            at = now()
            if at.mono_ns <= package.t_last_ns:
                continue
            energy_j = self._energy_j(package, at.mono_ns, busy_seconds(package.cpus))
            duration_s = (at.mono_ns - package.t_last_ns) / NS_PER_S
            power_w = max(energy_j - package.energy_last_j, 0.0) / duration_s
            package.t_last_ns, package.energy_last_j = at.mono_ns, energy_j
            readings.append(PowerReading(package.device.uuid, at, round(power_w * MW_PER_W)))
        return readings

    def read_counters(self) -> Sequence[CounterReading | Fault]:
        """Energy since the meter was opened."""
        readings: list[CounterReading | Fault] = []
        for package in self._packages:
            at = now()
            energy_j = self._energy_j(package, at.mono_ns, busy_seconds(package.cpus))
            readings.append(CounterReading(package.device.uuid, at, round(energy_j * MJ_PER_J)))
        return readings

    def read_state(self) -> Sequence[StateReading | Fault]:
        """Utilisation since the read before."""
        readings: list[StateReading | Fault] = []
        for package in self._packages:
            at, busy_s = now(), busy_seconds(package.cpus)
            duration_s = (at.mono_ns - package.t_state_ns) / NS_PER_S
            if duration_s > 0:
                share = (busy_s - package.busy_last_s) / (duration_s * package.num_cpus)
                util_pct = min(max(round(100 * share), 0), 100)
                readings.append(StateReading(uuid=package.device.uuid, at=at, util_pct=util_pct))
            package.t_state_ns, package.busy_last_s = at.mono_ns, busy_s
        return readings

    def close(self) -> None:
        """Nothing is held."""
