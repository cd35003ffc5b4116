"""A recorded telemetry file played again, for tests and for trying readers without the devices.

Units, devices and what they cover: as recorded; the source becomes `replayed`. Clock:
CLOCK_MONOTONIC of the replay, recorded time divided by `speed`. Power stays as it was, so at a
speed above 1 energy shrinks with time; counters are scaled with it so that both still agree.
Not covered: files of several samplers are joined at their monotonic times, so of one boot only.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from ekd_nemo.meter.protocol import (
    CounterReading,
    Device,
    Fault,
    MeterUnavailableError,
    PowerReading,
    StateReading,
)
from ekd_nemo.records.clock import now
from ekd_nemo.records.jsonl import ReadReport, read_lines
from ekd_nemo.records.lines import CounterLine, DeviceLine, PowerLine, Source, StateLine

NS_PER_US: Final = 1_000
L = TypeVar("L", PowerLine, CounterLine, StateLine)


@dataclass(slots=True)
class _Track:
    device: Device
    power: list[PowerLine] = field(default_factory=list[PowerLine])
    counters: list[CounterLine] = field(default_factory=list[CounterLine])
    states: list[StateLine] = field(default_factory=list[StateLine])


class ReplayMeter:
    """The devices of one recorded `power-<node>.jsonl`.

    Args:
        path: the file.
        speed: recorded seconds that pass in one second.
    Raises: MeterUnavailableError if the file is absent or holds no device with power lines.
    """

    name: str = "replay"
    source: Source = "replayed"

    def __init__(self, path: Path, *, speed: float = 1.0) -> None:
        """Read the whole file; time starts at the first read of power."""
        if not path.is_file():
            raise MeterUnavailableError(f"replay: {path}: no such file")
        if speed <= 0:
            raise MeterUnavailableError(f"replay: speed must be above 0, got {speed}")
        self._speed = speed
        self._tracks = [t for t in _read_tracks(path, speed).values() if t.power]
        if not self._tracks:
            raise MeterUnavailableError(f"replay: {path}: holds no device with power lines")
        self._begin_ns = min(track.power[0].t_mono_ns for track in self._tracks)
        self._end_ns = max(track.power[-1].t_mono_ns for track in self._tracks)
        self._origin_ns: int | None = None

    @property
    def devices(self) -> Sequence[Device]:
        """The recorded devices."""
        return [track.device for track in self._tracks]

    @property
    def exhausted(self) -> bool:
        """Whether the record has been played to its end."""
        return self._recorded_ns() > self._end_ns

    def _recorded_ns(self) -> int:
        """The recorded time that is now."""
        if self._origin_ns is None:
            return self._begin_ns
        return self._begin_ns + round((now().mono_ns - self._origin_ns) * self._speed)

    def read_power(self) -> Sequence[PowerReading | Fault]:
        """The latest recorded power; its driver time tells repeats."""
        if self._origin_ns is None:
            self._origin_ns = now().mono_ns
        t_ns, readings = self._recorded_ns(), list[PowerReading | Fault]()
        for track in self._tracks:
            line = _latest(track.power, t_ns)
            if line is not None:
                t_driver_us = line.t_driver_us or line.t_mono_ns // NS_PER_US
                readings.append(
                    PowerReading(line.uuid, now(), line.p_avg_mw, line.p_inst_mw, t_driver_us)
                )
        return readings

    def read_counters(self) -> Sequence[CounterReading | Fault]:
        """The latest recorded counter, scaled by the speed from its first value."""
        t_ns, readings = self._recorded_ns(), list[CounterReading | Fault]()
        for track in self._tracks:
            line = _latest(track.counters, t_ns)
            if line is not None:
                first_mj = track.counters[0].e_mj
                e_mj = first_mj + round((line.e_mj - first_mj) / self._speed)
                readings.append(CounterReading(line.uuid, now(), max(e_mj, 0), line.t_driver_us))
        return readings

    def read_state(self) -> Sequence[StateReading | Fault]:
        """The latest recorded state."""
        t_ns, readings = self._recorded_ns(), list[StateReading | Fault]()
        for track in self._tracks:
            line = _latest(track.states, t_ns)
            if line is not None:
                readings.append(_state(line))
        return readings

    def close(self) -> None:
        """Nothing is held."""


def _latest(lines: list[L], t_ns: int) -> L | None:
    index = bisect_right(lines, t_ns, key=lambda line: line.t_mono_ns)
    return lines[index - 1] if index else None


def _read_tracks(path: Path, speed: float) -> dict[str, _Track]:
    """Lines by device, in order of time."""
    tracks: dict[str, _Track] = {}
    for line in read_lines(path, ReadReport()):
        if isinstance(line, DeviceLine):
            tracks.setdefault(line.uuid, _Track(_device(line, path, speed)))
        elif isinstance(line, PowerLine | CounterLine | StateLine) and line.uuid in tracks:
            track = tracks[line.uuid]
            if isinstance(line, PowerLine):
                track.power.append(line)
            elif isinstance(line, CounterLine):
                track.counters.append(line)
            else:
                track.states.append(line)
    for track in tracks.values():
        for lines in (track.power, track.counters, track.states):
            lines.sort(key=lambda line: line.t_mono_ns)
    return tracks


def _device(line: DeviceLine, path: Path, speed: float) -> Device:
    return Device(
        uuid=line.uuid,
        name=line.name,
        device_kind=line.device_kind,
        role=line.role,
        covers=line.covers,
        period_ms=line.period_ms,
        p_avg_window_ms=line.p_avg_window_ms,
        uncertainty_pct=line.uncertainty_pct,
        power_limit_mw=line.power_limit_mw,
        idle_power_mw=line.idle_power_mw,
        mig=line.mig,
        parameters={
            **(line.parameters or {}),
            "replayed_file": path.name,
            "replayed_meter": line.meter,
            "replayed_source": line.source,
            "speed": speed,
        },
    )


def _state(line: StateLine) -> StateReading:
    return StateReading(
        uuid=line.uuid,
        at=now(),
        util_pct=line.util_pct,
        memory_util_pct=line.memory_util_pct,
        memory_used_bytes=line.memory_used_bytes,
        memory_total_bytes=line.memory_total_bytes,
        temperature_c=line.temperature_c,
        fan_pct=line.fan_pct,
        clock_sm_mhz=line.clock_sm_mhz,
        clock_memory_mhz=line.clock_memory_mhz,
        throttle_mask=line.throttle_mask,
        p_module_mw=line.p_module_mw,
        p_memory_mw=line.p_memory_mw,
    )
