"""Every kind of line that telemetry and marks files hold, as frozen dataclasses.

Units are in the names: `_mj` millijoules, `_mw` milliwatts, `_ns` nanoseconds, `_us` microseconds,
`_pct` per cent. `t_mono_ns` is CLOCK_MONOTONIC of one node and boot: comparable only among lines of
the same `node` and `boot_id`. `t_wall_ns` is nanoseconds since the epoch and only a label. A value
that the device did not give is None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from ekd_nemo.records.phases import Phase

SCHEMA_VERSION: Final = 1

Source = Literal["measured", "estimated", "replayed"]
Role = Literal["accelerator", "host"]
Cause = Literal["start", "period", "mark", "stop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What all lines share: where and when.

    Attributes:
        node: short host name, as in the file's name.
        boot_id: which boot of the node; monotonic times of other boots do not compare.
        t_mono_ns: CLOCK_MONOTONIC.
        t_wall_ns: time since the epoch, a label only.
    """

    kind: ClassVar[str]
    node: str
    boot_id: str
    t_mono_ns: int
    t_wall_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryLine(Line):
    """A line of `telemetry/power-<node>.jsonl`.

    Attributes:
        sampler: id of one sampler process; counters compare only within one (uuid, sampler).
    """

    sampler: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartLine(TelemetryLine):
    """The first line of a sampler.

    Attributes:
        why: why these meters were taken.
        wall_synchronised: whether something disciplines the node's wall clock; None: not told.
        wall_max_error_us: the kernel's bound on the wall clock's error; None while nothing does.
    """

    kind = "start"
    pid: int
    power_period_ms: int
    counter_period_ms: int
    code_version: str
    meters: Sequence[str]
    why: str
    wall_synchronised: bool | None = None
    wall_max_error_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLine(TelemetryLine):
    """One measured device and what its meter promises; written after `start`, once per device.

    Attributes:
        device_kind: gpu, cpu or dram.
        role: what E_run counts (`accelerator`) or what is a line of its own (`host`).
        covers: in words, what the figures include.
        period_ms: how often the device itself renews its power value; None if not known.
        p_avg_window_ms: averaging window of `p_avg_mw`; None: the mean since the sample before.
        uncertainty_pct: of power and energy, one device, absolute; None if not known.
        power_limit_mw: upper bound of power, for the bounds of gaps.
        idle_power_mw: lower bound of power, for the bounds of gaps; None until known.
        parameters: what the meter assumed (TDP, idle share, recorded file, API used).
    """

    kind = "device"
    uuid: str
    meter: str
    source: Source
    name: str
    device_kind: Literal["gpu", "cpu", "dram"]
    role: Role
    covers: str
    period_ms: int | None = None
    p_avg_window_ms: int | None = None
    uncertainty_pct: float | None = None
    power_limit_mw: int | None = None
    idle_power_mw: int | None = None
    mig: bool | None = None
    parameters: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLine(TelemetryLine):
    """Power of one device; at least one of the two values is there.

    Attributes:
        p_avg_mw: averaged power, the one to integrate.
        p_inst_mw: instant power; sees only a part of the time.
        t_driver_us: the driver's own time of the value, since the epoch.
    """

    kind = "power"
    uuid: str
    meter: str
    source: Source
    p_avg_mw: int | None = None
    p_inst_mw: int | None = None
    t_driver_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterLine(TelemetryLine):
    """Cumulative energy of one device, from an arbitrary origin.

    Never falls within one (uuid, sampler) unless the device's counter was reset.
    """

    kind = "counter"
    uuid: str
    meter: str
    source: Source
    e_mj: int
    cause: Cause
    t_driver_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateLine(TelemetryLine):
    """Slow facts of one device, about once a second.

    Attributes:
        throttle_mask: the driver's bit mask of clock event reasons; 0 means none.
        p_module_mw: power of the whole module (Grace-Hopper), p_memory_mw: of its memory.
    """

    kind = "state"
    uuid: str
    meter: str
    source: Source
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


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLine(TelemetryLine):
    """The node's processors and memory as a whole, about once a second."""

    kind = "host"
    cpu_util_pct: float | None = None
    ram_used_bytes: int | None = None
    ram_total_bytes: int | None = None


Event = Literal[
    "not_supported",  # uuid, detail = field; once per device and field
    "read_error",  # uuid, detail = what the driver said
    "stall",  # a read of the driver that took duration_ns
    "late",  # ticks missed for another reason (a suspended or starved sampler), duration_ns
    "device_lost",
    "device_back",
    "counter_reset",  # the device's counter fell; detail = from -> to
    "mig",  # the device is split; its figures are the whole GPU's
    "shared",  # another sampler on this node reads the device as well (host devices only)
    "write_failed",  # lines that a full or broken disk has cost; detail = how many and why
    "clock_step",  # somebody set the wall clock, by duration_ns; detail = forwards or backwards
    "bad_mark",  # a datagram on the marks socket that is no mark
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLine(TelemetryLine):
    """Something that a reader of the figures has to know."""

    kind = "event"
    event: Event
    uuid: str | None = None
    duration_ns: int | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopLine(TelemetryLine):
    """The last line of a sampler, with what it cost; absent after a kill.

    Attributes:
        reason: signal, watched processes gone, all devices lost, end of replay.
        cpu_user_us: of the sampler process, start-up and driver time included.
        startup_cpu_us: of that, user and system, before the first sample.
        driver_wall_us: spent inside the meters' calls; driver_cpu_us: of that, on a core.
    """

    kind = "stop"
    reason: str
    cpu_user_us: int
    cpu_system_us: int
    startup_cpu_us: int
    driver_wall_us: int
    driver_cpu_us: int
    max_rss_kib: int
    ticks: int
    ticks_missed: int
    repeats_dropped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkLine(Line):
    """A line of `telemetry/marks-<rank>.jsonl`.

    Attributes:
        uuids: the devices that this rank occupies.
        parallel: the rank's index on each axis, e.g. {"tensor": 0, "pipeline": 1, "data": 0}.
    """

    rank: int
    attempt: int
    uuids: Sequence[str]
    parallel: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseBegin(MarkLine):
    """Time from here belongs to `phase`, until an inner phase begins or this one ends."""

    kind = "phase_begin"
    phase: Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEnd(MarkLine):
    """Ends the innermost open phase, which has this name."""

    kind = "phase_end"
    phase: Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMark(MarkLine):
    """The end of a training step.

    Attributes:
        tokens: non-padding tokens of this rank's data-parallel replica in this step: the same on
            all its tensor and pipeline ranks, so sum over distinct `parallel["data"]` only.
        tokens_valid: of those, the ones that carry loss.
    """

    kind = "step"
    step: int
    tokens: int
    tokens_valid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span(MarkLine):
    """A stretch inside a step, timed by the device (CUDA events), written soon after its end."""

    kind = "span"
    phase: Phase
    step: int
    duration_ns: int


TELEMETRY_KINDS: Final = (
    StartLine,
    DeviceLine,
    PowerLine,
    CounterLine,
    StateLine,
    HostLine,
    EventLine,
    StopLine,
)
MARK_KINDS: Final = (PhaseBegin, PhaseEnd, StepMark, Span)
