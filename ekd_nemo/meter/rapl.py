"""Energy of processor packages and their memory from the kernel's powercap tree (Intel and AMD).

Units: the kernel counts microjoules; readings in mW and mJ. Clock: CLOCK_MONOTONIC at the read.
Counter source: `energy_uj`, which wraps at `max_energy_range_uj`; wraps are undone, so ours never
falls.
Covers: whole packages with every process on them; dram zones where the processor has them. Not
covered: psys and the core and uncore zones, which are parts of the package.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ekd_nemo.meter.cpu import dram_uuid, package_uuid
from ekd_nemo.meter.protocol import (
    CounterReading,
    Device,
    Fault,
    MeterUnavailableError,
    PowerReading,
    StateReading,
)
from ekd_nemo.records.clock import Instant, node_name, now
from ekd_nemo.records.lines import Role, Source
from ekd_nemo.units import MW_PER_W, NS_PER_S, UJ_PER_MJ

POWERCAP: Final = Path("/sys/class/powercap")
UW_PER_MW: Final = 1_000
UJ_PER_J: Final = 1_000_000


@dataclass(slots=True)
class _Zone:
    device: Device
    counter: Path
    range_uj: int
    raw_uj: int
    total_uj: int
    power_total_uj: int
    power_at: Instant

    def advance(self) -> Instant:
        """Read the counter, undo a wrap, add up."""
        raw_uj = int(self.counter.read_text())
        at = now()
        gained_uj = raw_uj - self.raw_uj
        if gained_uj < 0:
            gained_uj += self.range_uj
        self.raw_uj, self.total_uj = raw_uj, self.total_uj + gained_uj
        return at


class RaplMeter:
    """Package and dram zones.

    Args:
        role: what the packages are for `E_run`; memory is always `host`.
        node: this node's name; None: as records name it.
        tree: the powercap folder.
    Raises: MeterUnavailableError if there is no package zone or its counter may not be read.
    """

    name: str = "rapl"
    source: Source = "measured"
    exhausted: bool = False

    def __init__(
        self, *, role: Role = "accelerator", node: str | None = None, tree: Path = POWERCAP
    ) -> None:
        """Find the zones and take the first reading of each."""
        self._zones: list[_Zone] = []
        for folder in sorted(tree.glob("intel-rapl:*"), key=lambda path: path.name):
            device = _describe(folder, role, node or node_name())
            if device is not None:
                self._zones.append(_open_zone(folder, device))
        if not any(zone.device.device_kind == "cpu" for zone in self._zones):
            raise MeterUnavailableError(f"rapl: no package zone under {tree}")

    @property
    def devices(self) -> Sequence[Device]:
        """Packages and memories."""
        return [zone.device for zone in self._zones]

    def read_power(self) -> Sequence[PowerReading | Fault]:
        """Mean power since the read before, from the counters."""
        readings: list[PowerReading | Fault] = []
        for zone in self._zones:
            try:
                at = zone.advance()
            except (OSError, ValueError) as error:
                readings.append(Fault(zone.device.uuid, now(), "read_error", str(error)))
                continue
            duration_ns = at.mono_ns - zone.power_at.mono_ns
            if duration_ns <= 0:
                continue
            energy_uj = zone.total_uj - zone.power_total_uj
            power_mw = energy_uj * NS_PER_S / (duration_ns * (UJ_PER_J // MW_PER_W))
            readings.append(PowerReading(zone.device.uuid, at, round(power_mw)))
            zone.power_at, zone.power_total_uj = at, zone.total_uj
        return readings

    def read_counters(self) -> Sequence[CounterReading | Fault]:
        """The counters without their wraps."""
        readings: list[CounterReading | Fault] = []
        for zone in self._zones:
            try:
                at = zone.advance()
            except (OSError, ValueError) as error:
                readings.append(Fault(zone.device.uuid, now(), "read_error", str(error)))
                continue
            readings.append(CounterReading(zone.device.uuid, at, zone.total_uj // UJ_PER_MJ))
        return readings

    def read_state(self) -> Sequence[StateReading | Fault]:
        """Nothing: the zones tell energy only."""
        return []

    def close(self) -> None:
        """Nothing is held."""


def _describe(folder: Path, role: Role, node: str) -> Device | None:
    """The device of a zone; None for zones that are parts of others or the whole platform."""
    zone_name = _text(folder / "name")
    if zone_name.startswith("package-"):
        limit = folder / "constraint_0_power_limit_uw"
        return Device(
            uuid=package_uuid(node, zone_name.removeprefix("package-")),
            name=f"processor {zone_name}",
            device_kind="cpu",
            role=role,
            covers="one processor package with all its processes",
            period_ms=1,
            power_limit_mw=int(_text(limit)) // UW_PER_MW if limit.is_file() else None,
        )
    if zone_name == "dram":
        parent = _text(folder.parent / folder.name.rsplit(":", 1)[0] / "name")
        return Device(
            uuid=dram_uuid(node, parent.removeprefix("package-")),
            name=f"memory of {parent}",
            device_kind="dram",
            role="host",
            covers="the memory behind one processor package",
            period_ms=1,
        )
    return None


def _open_zone(folder: Path, device: Device) -> _Zone:
    counter = folder / "energy_uj"
    raw_uj = int(_text(counter))
    range_uj = int(_text(folder / "max_energy_range_uj"))
    return _Zone(device, counter, range_uj, raw_uj, raw_uj, raw_uj, now())


def _text(path: Path) -> str:
    """A kernel file's text.

    Raises: MeterUnavailableError saying what to do where only root may read it.
    """
    try:
        return path.read_text().strip()
    except PermissionError:
        raise MeterUnavailableError(
            f"rapl: {path} may not be read; as root: chmod a+r {path.parent.parent}/*/energy_uj"
        ) from None
    except OSError as error:
        raise MeterUnavailableError(f"rapl: {path}: {error.strerror}") from None
