"""What a meter is: devices that it covers, and three reads of them.

A meter never invents a value: what the device did not give is None, and a device or field that
fails is a `Fault` beside the readings of the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ekd_nemo.errors import UserError
from ekd_nemo.records.clock import Instant
from ekd_nemo.records.lines import Event, Role, Source

DeviceKind = Literal["gpu", "cpu", "dram"]


class MeterUnavailableError(UserError):
    """This machine does not have the meter, or does not let us read it; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One measured device and what its figures mean; see `records.lines.DeviceLine`.

    Attributes:
        exclusive: only one sampler of a node may read it.
    """

    uuid: str
    name: str
    device_kind: DeviceKind
    role: Role
    covers: str
    exclusive: bool = False
    period_ms: int | None = None
    p_avg_window_ms: int | None = None
    uncertainty_pct: float | None = None
    power_limit_mw: int | None = None
    idle_power_mw: int | None = None
    mig: bool | None = None
    parameters: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class PowerReading:
    """Power of one device; `p_avg_mw` is the one to integrate."""

    uuid: str
    at: Instant
    p_avg_mw: int | None
    p_inst_mw: int | None = None
    t_driver_us: int | None = None


@dataclass(frozen=True, slots=True)
class CounterReading:
    """Cumulative energy of one device from an arbitrary origin."""

    uuid: str
    at: Instant
    e_mj: int
    t_driver_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateReading:
    """Slow facts of one device; see `records.lines.StateLine`."""

    uuid: str
    at: Instant
    util_pct: int | None = None
    memory_util_pct: int | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: int | None = None
    fan_pct: int | None = None
    clock_sm_mhz: int | None = None
    clock_memory_mhz: int | None = None
    throttle_mask: int | None = None
    p_module_mw: int | None = None
    p_memory_mw: int | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """A device or field that could not be read, or something to know about one."""

    uuid: str | None
    at: Instant
    event: Event
    detail: str | None = None


class Meter(Protocol):
    """Reads a fixed set of devices; used by one thread at a time."""

    @property
    def name(self) -> str:
        """As records name it: nvml, rapl, estimate, replay."""
        ...

    @property
    def source(self) -> Source:
        """What its figures are."""
        ...

    @property
    def devices(self) -> Sequence[Device]:
        """What it reads, in a stable order."""
        ...

    @property
    def exhausted(self) -> bool:
        """Whether it will never give a reading again."""
        ...

    def read_power(self) -> Sequence[PowerReading | Fault]:
        """Power now, about ten times a second; a device may be absent when it has nothing new."""
        ...

    def read_counters(self) -> Sequence[CounterReading | Fault]:
        """Energy counters now; called about once a second: more often falsifies some."""
        ...

    def read_state(self) -> Sequence[StateReading | Fault]:
        """Utilisation, memory, temperature, clocks now; called about once a second."""
        ...

    def close(self) -> None:
        """Let go of the driver."""
        ...
