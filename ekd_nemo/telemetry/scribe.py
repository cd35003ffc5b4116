"""Turns readings into stamped lines and appends them; one for all threads of a sampler."""

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Final, TypedDict

from ekd_nemo.meter.protocol import CounterReading, Device, Fault, Meter, PowerReading, StateReading
from ekd_nemo.records.clock import Instant, boot_id, now
from ekd_nemo.records.jsonl import JsonlStore
from ekd_nemo.records.lines import (
    Cause,
    CounterLine,
    DeviceLine,
    Event,
    EventLine,
    HostLine,
    Line,
    PowerLine,
    StateLine,
)
from ekd_nemo.telemetry.rolling import next_part
from ekd_nemo.units import NS_PER_S

REPEATED_FAULT_NS: Final = 60 * NS_PER_S


log = logging.getLogger(__name__)


class Stamp(TypedDict):
    """What every line of one sampler shares."""

    node: str
    boot_id: str
    sampler: str
    t_mono_ns: int
    t_wall_ns: int


class Scribe:
    """Writes the lines of one sampler.

    A fault that repeats is written once a minute. After `close` nothing is written any more.
    """

    def __init__(self, store: JsonlStore, *, node: str, sampler: str) -> None:
        """Write to `store`, stamping every line with node, boot and sampler."""
        self._store = store
        self._node = node
        self._sampler = sampler
        self._lock = threading.Lock()
        self._open = True
        self._quiet_until_ns: dict[tuple[str | None, str, str | None], int] = {}
        self._driver_time_us: dict[str, int] = {}
        self._energy_mj: dict[str, int] = {}
        self._lost_lines = 0
        self._lost_reason = ""
        self.repeats_dropped = 0

    def stamp(self, at: Instant) -> Stamp:
        """The shared fields of a line made at this moment."""
        return {
            "node": self._node,
            "boot_id": boot_id(),
            "sampler": self._sampler,
            "t_mono_ns": at.mono_ns,
            "t_wall_ns": at.wall_ns,
        }

    def write(self, lines: Sequence[Line]) -> None:
        """Append lines together, unless the scribe has been closed.

        What a full or broken disk does not take is lost; once it takes lines again, the first one
        says how many.
        """
        with self._lock:
            if self._open:
                self._append(lines)

    def _append(self, lines: Sequence[Line]) -> None:
        lost = self._lost_event()
        try:
            self._store.append([*lost, *lines])
        except OSError as error:
            if not self._lost_lines:
                log.error("%s: %s", self._store.path, error.strerror)
            self._lost_lines += len(lines)
            self._lost_reason = error.strerror or str(error)
        else:
            self._lost_lines = 0

    def _lost_event(self) -> list[Line]:
        if not self._lost_lines:
            return []
        detail = f"{self._lost_lines} lines lost: {self._lost_reason}"
        return [self.event("write_failed", now(), detail=detail)]

    def roll(self, head: Sequence[Line]) -> None:
        """Set the file aside as its next part and go on in a new one, which begins with `head`."""
        full = self._store
        with self._lock:
            full.path.rename(next_part(full.path))
            self._store = JsonlStore(full.path)
            self._append(head)
        full.close()

    def size_bytes(self) -> int:
        """Of the growing file."""
        return self._store.size_bytes()

    def close(self, last: Sequence[Line]) -> None:
        """Append the last lines; whoever still reads a device writes no more."""
        with self._lock:
            if self._open:
                self._open = False
                self._append(last)
                self._store.close()

    def power(self, meter: Meter, readings: Iterable[PowerReading | Fault]) -> list[Line]:
        """Power lines; a reading with the driver's time of the one before is dropped."""
        lines: list[Line] = []
        for reading in readings:
            if isinstance(reading, Fault):
                lines += self.fault(reading)
            elif self._is_new(reading):
                lines.append(
                    PowerLine(
                        **self.stamp(reading.at),
                        uuid=reading.uuid,
                        meter=meter.name,
                        source=meter.source,
                        p_avg_mw=reading.p_avg_mw,
                        p_inst_mw=reading.p_inst_mw,
                        t_driver_us=reading.t_driver_us,
                    )
                )
        return lines

    def _is_new(self, reading: PowerReading) -> bool:
        if reading.t_driver_us is None:
            return True
        if self._driver_time_us.get(reading.uuid) == reading.t_driver_us:
            self.repeats_dropped += 1
            return False
        self._driver_time_us[reading.uuid] = reading.t_driver_us
        return True

    def counters(
        self, meter: Meter, readings: Iterable[CounterReading | Fault], cause: Cause
    ) -> list[Line]:
        """Counter lines; a counter that fell is an event before its line."""
        lines: list[Line] = []
        for reading in readings:
            if isinstance(reading, Fault):
                lines += self.fault(reading)
                continue
            before_mj = self._energy_mj.get(reading.uuid, 0)
            if reading.e_mj < before_mj:
                detail = f"{before_mj} mJ -> {reading.e_mj} mJ"
                lines.append(self.event("counter_reset", reading.at, reading.uuid, detail=detail))
            self._energy_mj[reading.uuid] = reading.e_mj
            lines.append(
                CounterLine(
                    **self.stamp(reading.at),
                    uuid=reading.uuid,
                    meter=meter.name,
                    source=meter.source,
                    e_mj=reading.e_mj,
                    cause=cause,
                    t_driver_us=reading.t_driver_us,
                )
            )
        return lines

    def states(self, meter: Meter, readings: Iterable[StateReading | Fault]) -> list[Line]:
        """State lines."""
        lines: list[Line] = []
        for reading in readings:
            if isinstance(reading, Fault):
                lines += self.fault(reading)
                continue
            values = {f.name: getattr(reading, f.name) for f in fields(reading) if f.name != "at"}
            stamp = self.stamp(reading.at)
            lines.append(StateLine(**stamp, meter=meter.name, source=meter.source, **values))
        return lines

    def fault(self, fault: Fault) -> list[Line]:
        """The event of a fault, or nothing if the same one was written in the last minute."""
        key = (fault.uuid, fault.event, fault.detail)
        if fault.at.mono_ns < self._quiet_until_ns.get(key, 0):
            return []
        self._quiet_until_ns[key] = fault.at.mono_ns + REPEATED_FAULT_NS
        return [self.event(fault.event, fault.at, fault.uuid, detail=fault.detail)]

    def event(
        self,
        event: Event,
        at: Instant,
        uuid: str | None = None,
        *,
        duration_ns: int | None = None,
        detail: str | None = None,
    ) -> Line:
        """One event line."""
        return EventLine(
            **self.stamp(at), event=event, uuid=uuid, duration_ns=duration_ns, detail=detail
        )

    def device(self, meter: Meter, device: Device) -> Line:
        """The line that describes a device."""
        values = {f.name: getattr(device, f.name) for f in fields(device) if f.name != "exclusive"}
        return DeviceLine(**self.stamp(now()), meter=meter.name, source=meter.source, **values)

    def host(self, cpu_util_pct: float | None, ram_used_bytes: int, ram_total_bytes: int) -> Line:
        """The node's processors and memory."""
        return HostLine(
            **self.stamp(now()),
            cpu_util_pct=cpu_util_pct,
            ram_used_bytes=ram_used_bytes,
            ram_total_bytes=ram_total_bytes,
        )
