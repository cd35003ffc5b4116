"""Power of NVIDIA Grace processors from the kernel's ACPI power meters under hwmon.

Units: the kernel tells microwatts; readings in mW. Clock: CLOCK_MONOTONIC at the read. Counter
source: none, the firmware keeps no energy. Power: the firmware's own average over its interval.
Covers: "Grace Power Socket N", the processor with its memory and regulators. The module's power
(with the GPU) and the parts of the socket are left out: they overlap with it and with NVML's.
Source: NVIDIA Grace Performance Tuning Guide, "Power Telemetry".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ekd_nemo.meter.cpu import package_uuid
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

HWMON: Final = Path("/sys/class/hwmon")
UW_PER_MW: Final = 1_000
_GRACE: Final = re.compile(r"Grace Power Socket (\d+)")


@dataclass(frozen=True, slots=True)
class _Socket:
    device: Device
    power: Path


class HwmonMeter:
    """One device per Grace socket.

    Args:
        role: what the sockets are for `E_run`.
        node: this node's name; None: as records name it.
        tree: the hwmon folder.
    Raises: MeterUnavailableError if there is no such socket.
    """

    name: str = "hwmon"
    source: Source = "measured"
    exhausted: bool = False

    def __init__(
        self, *, role: Role = "accelerator", node: str | None = None, tree: Path = HWMON
    ) -> None:
        """Find the sockets."""
        self._sockets = [
            _socket(info, match[1], role, node or node_name())
            for info in sorted(tree.glob("hwmon*/device/power1_oem_info"))
            if (match := _GRACE.search(info.read_text()))
        ]
        if not self._sockets:
            raise MeterUnavailableError(f"hwmon: no Grace power meter under {tree}")

    @property
    def devices(self) -> Sequence[Device]:
        """The sockets."""
        return [socket.device for socket in self._sockets]

    def read_power(self) -> Sequence[PowerReading | Fault]:
        """The firmware's average."""
        readings: list[PowerReading | Fault] = []
        for socket in self._sockets:
            uuid = socket.device.uuid
            try:
                power_uw = int(socket.power.read_text())
            except (OSError, ValueError) as error:
                readings.append(Fault(uuid, now(), "read_error", str(error)))
                continue
            readings.append(PowerReading(uuid, now(), power_uw // UW_PER_MW))
        return readings

    def read_counters(self) -> Sequence[CounterReading | Fault]:
        """Nothing: there is no counter."""
        return []

    def read_state(self) -> Sequence[StateReading | Fault]:
        """Nothing: the meters tell power only."""
        return []

    def close(self) -> None:
        """Nothing is held."""


def _socket(info: Path, number: str, role: Role, node: str) -> _Socket:
    interval = info.with_name("power1_average_interval")
    interval_ms = int(interval.read_text()) if interval.is_file() else None
    device = Device(
        uuid=package_uuid(node, number),
        name=info.read_text().strip(),
        device_kind="cpu",
        role=role,
        covers="one Grace socket: processor, its memory and regulators, all processes",
        period_ms=interval_ms,
        p_avg_window_ms=interval_ms,
    )
    return _Socket(device, info.with_name("power1_average"))
