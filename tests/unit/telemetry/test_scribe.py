"""What the scribe leaves out, and what a disk that fails costs."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ekd_nemo.meter.protocol import CounterReading, Fault, PowerReading
from ekd_nemo.records.clock import Instant
from ekd_nemo.records.jsonl import JsonlStore, ReadReport, read_lines
from ekd_nemo.records.lines import CounterLine, EventLine, PowerLine
from ekd_nemo.telemetry.scribe import Scribe

METER: Any = SimpleNamespace(name="nvml", source="measured")
S = 10**9


@pytest.fixture
def scribe(tmp_path: Path) -> Scribe:
    return Scribe(JsonlStore(tmp_path / "power-n.jsonl"), node="n", sampler="s")


def test_repeats_of_one_driver_time_are_dropped_by_device(scribe: Scribe) -> None:
    readings = [
        PowerReading(uuid, Instant(t, t), 1, None, driver_us)
        for t, uuid, driver_us in [(1, "a", 7), (2, "b", 7), (3, "a", 7), (4, "a", 8)]
    ]
    lines = scribe.power(METER, [*readings, PowerReading("c", Instant(5, 5), 1)] * 1)
    assert [line.t_mono_ns for line in lines] == [1, 2, 4, 5]
    assert scribe.repeats_dropped == 1


def test_a_counter_that_falls_is_an_event(scribe: Scribe) -> None:
    values = [5, 9, 3, 4]
    readings = [CounterReading("a", Instant(t, t), mj) for t, mj in enumerate(values)]
    lines = scribe.counters(METER, readings, "period")
    assert [type(line) for line in lines] == [CounterLine] * 2 + [EventLine] + [CounterLine] * 2
    reset = lines[2]
    assert isinstance(reset, EventLine)
    assert (reset.event, reset.detail) == ("counter_reset", "9 mJ -> 3 mJ")


def test_the_same_fault_is_written_once_a_minute(scribe: Scribe) -> None:
    times_s = [0, 1, 59, 61, 62]
    faults = [Fault("a", Instant(t * S, 0), "read_error", "x") for t in times_s]
    other = Fault("a", Instant(2 * S, 0), "read_error", "y")
    lines = scribe.power(METER, [*faults[:2], other, *faults[2:]])
    assert [line.t_mono_ns // S for line in lines] == [0, 2, 61]


def test_a_full_disk_costs_lines_and_says_so_later(
    tmp_path: Path, scribe: Scribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(t_ns: int) -> list[Any]:
        return scribe.power(METER, [PowerReading("a", Instant(t_ns, 0), 1)])

    scribe.write(line(1))
    write, room = os.write, [30]

    def full(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken, room[0] = min(room[0], len(data)), 0
        return write(fd, data[:taken])

    monkeypatch.setattr(os, "write", full)
    scribe.write(line(2))
    scribe.write(line(3))
    monkeypatch.setattr(os, "write", write)
    scribe.write(line(4))
    scribe.close([])
    scribe.write(line(5))  # too late
    report = ReadReport()
    lines = list(read_lines(tmp_path / "power-n.jsonl", report))
    assert [x.t_mono_ns for x in lines if isinstance(x, PowerLine)] == [1, 4]
    (event,) = [x for x in lines if isinstance(x, EventLine)]
    assert (event.event, event.detail) == (
        "write_failed",
        "2 lines lost: No space left on device",
    )
    assert (report.torn, report.bad) == (1, 0)
