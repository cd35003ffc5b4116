"""What the samplers of one run wrote, as columns: one series per device, boot and sampler."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ekd_nemo.metrics.curve import Ints
from ekd_nemo.metrics.quantity import Source
from ekd_nemo.records.jsonl import ReadReport, read_lines
from ekd_nemo.records.lines import CounterLine, DeviceLine, EventLine, PowerLine

_NO_INTS = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, order=True)
class SeriesKey:
    """One device as one sampler saw it on one clock."""

    uuid: str
    boot_id: str
    sampler: str
    node: str


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Samples in file order: unsorted, repeats included.

    Attributes:
        power_ns, power_mw: [N] average power.
        instant_ns, instant_mw: [M] instant power, kept for devices that give no average.
        counter_ns, counter_mj: [K] cumulative energy.
        device: what the meter promised; None where that line was lost.
        source: as the samples say.
    """

    source: Source
    device: DeviceLine | None = None
    power_ns: Ints = field(default_factory=_NO_INTS.copy)
    power_mw: Ints = field(default_factory=_NO_INTS.copy)
    instant_ns: Ints = field(default_factory=_NO_INTS.copy)
    instant_mw: Ints = field(default_factory=_NO_INTS.copy)
    counter_ns: Ints = field(default_factory=_NO_INTS.copy)
    counter_mj: Ints = field(default_factory=_NO_INTS.copy)


@dataclass(frozen=True, slots=True)
class Telemetry:
    """All series of a run, the samplers' events, and what the reader met."""

    series: Mapping[SeriesKey, Series]
    events: tuple[EventLine, ...]
    report: ReadReport


class _Columns:
    """Growing columns of one series."""

    def __init__(self) -> None:
        self.device: DeviceLine | None = None
        self.source: Source = "measured"
        self.power: list[tuple[int, int]] = []
        self.instant: list[tuple[int, int]] = []
        self.counter: list[tuple[int, int]] = []

    def frozen(self) -> Series:
        """The columns as arrays."""
        power, instant, counter = (
            _two_columns(rows) for rows in (self.power, self.instant, self.counter)
        )
        return Series(self.source, self.device, *power, *instant, *counter)


def _two_columns(rows: list[tuple[int, int]]) -> tuple[Ints, Ints]:
    table = np.array(rows, np.int64).reshape(-1, 2)
    return table[:, 0].copy(), table[:, 1].copy()


def read_telemetry(files: Iterable[Path]) -> Telemetry:
    """Read samplers' files; lines that are no records are skipped and counted in the report.

    Raises: OSError if a file cannot be read.
    """
    columns: dict[SeriesKey, _Columns] = defaultdict(_Columns)
    events: list[EventLine] = []
    report = ReadReport()
    for path in files:
        for line in read_lines(path, report):
            if isinstance(line, PowerLine | CounterLine | DeviceLine):
                _add(columns[SeriesKey(line.uuid, line.boot_id, line.sampler, line.node)], line)
            elif isinstance(line, EventLine):
                events.append(line)
    series = {key: columns[key].frozen() for key in sorted(columns)}
    ordered = sorted(
        events,
        key=lambda e: (e.node, e.boot_id, e.t_mono_ns, e.event, e.uuid or "", e.detail or ""),
    )
    return Telemetry(series, tuple(ordered), report)


def _add(columns: _Columns, line: PowerLine | CounterLine | DeviceLine) -> None:
    columns.source = line.source
    if isinstance(line, DeviceLine):
        columns.device = line
    elif isinstance(line, CounterLine):
        columns.counter.append((line.t_mono_ns, line.e_mj))
    else:
        if line.p_avg_mw is not None:
            columns.power.append((line.t_mono_ns, line.p_avg_mw))
        if line.p_inst_mw is not None:
            columns.instant.append((line.t_mono_ns, line.p_inst_mw))
