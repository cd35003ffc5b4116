"""What the samplers of one run wrote, as columns: one series per device, boot and sampler."""

# pyarrow ships no types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from ekd_nemo.errors import DataError
from ekd_nemo.metrics.columns import Block, parsed_line, read_blocks
from ekd_nemo.metrics.curve import Ints
from ekd_nemo.metrics.quantity import Source
from ekd_nemo.records.jsonl import ReadReport
from ekd_nemo.records.lines import CounterLine, DeviceLine, EventLine, Line, PowerLine
from ekd_nemo.records.segments import TEXT, Segment, SegmentSeries, each_file


@dataclass(frozen=True, slots=True, order=True)
class SeriesKey:
    """One device as one sampler saw it on one clock."""

    uuid: str
    boot_id: str
    sampler: str
    node: str


class Samples(NamedTuple):
    """Times and values of one figure, unsorted, repeats included.

    Attributes:
        at_ns: [N] monotonic times.
        value: [N] in the device's unit (mW, mJ).
    """

    at_ns: Ints
    value: Ints


# The figures of a series, by the column that holds them, and the kind of line that the column is of.
_FIGURES: Final = {"p_avg_mw": "power", "p_inst_mw": "power", "e_mj": "counter"}


@dataclass(frozen=True, slots=True)
class _Group:
    """Samples that still lie in a segment."""

    segment: Segment
    number: int


class Series:
    """The samples of one series; those in segments are read when they are asked for.

    Attributes:
        device: what the meter promised; None where that line was lost.
        source: as the samples say.
    """

    def __init__(self) -> None:
        """Begin without samples."""
        self.device: DeviceLine | None = None
        self.source: Source = "measured"
        self._parts: dict[str, list[Samples | _Group]] = defaultdict(list)

    def add(self, figure: str, part: Samples | _Group) -> None:
        """Take some samples of a figure."""
        self._parts[figure].append(part)

    def samples(self, figure: str) -> Samples:
        """All samples of `p_avg_mw`, `p_inst_mw` or `e_mj`."""
        parts = [
            part if isinstance(part, Samples) else _read(part, figure)
            for part in self._parts[figure]
        ]
        if not parts:
            return Samples(np.zeros(0, np.int64), np.zeros(0, np.int64))
        return (
            parts[0]
            if len(parts) == 1
            else Samples(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        )

    def extent(self) -> tuple[int, int] | None:
        """The first and last time of any sample; None without any."""
        ends = [
            (int(part.at_ns.min()), int(part.at_ns.max()))
            if isinstance(part, Samples)
            else part.segment.extent(part.number)
            for parts in self._parts.values()
            for part in parts
        ]
        return (min(first for first, _ in ends), max(last for _, last in ends)) if ends else None


def _read(group: _Group, figure: str) -> Samples:
    """One figure of a segment's group; rows without it are left out."""
    return _samples(group.segment.read(group.number, ["t_mono_ns", figure]), figure)


def _samples(table: Any, figure: str) -> Samples:
    """A figure's column and its times as arrays.

    Raises:
        DataError: where a time is missing or a number negative, which no reader lets into a table.
    """
    column = table.column(figure)
    if column.null_count:
        table = table.filter(column.is_valid())
    at, value = (table.column(name).to_numpy() for name in ("t_mono_ns", figure))
    if at.dtype != np.int64 or (len(at) and min(at.min(), value.min()) < 0):
        raise DataError(f"{figure}: a sample without time, or below 0")
    return Samples(at, value)


@dataclass(frozen=True, slots=True)
class Telemetry:
    """All series of a run, the samplers' events, and what the reader met."""

    series: Mapping[SeriesKey, Series]
    events: tuple[EventLine, ...]
    report: ReadReport


def read_telemetry(files: Iterable[Path]) -> Telemetry:
    """Read samplers' files, JSON lines and segments; lines that are no records are skipped and counted.

    Raises:
        OSError: if a file cannot be read.
        DataError: if a segment is broken.
    """
    series: dict[SeriesKey, Series] = defaultdict(Series)
    events: list[EventLine] = []
    report = ReadReport()
    for block in each_file(
        files,
        lambda path: read_blocks(path, report),
        lambda path: _segment_blocks(path, series, report),
    ):
        for figure in _FIGURES:
            _add_columns(series, figure, block)
        _add_lines(series, events, block.lines)
    ordered = sorted(
        events,
        key=lambda e: (e.node, e.boot_id, e.t_mono_ns, e.event, e.uuid or "", e.detail or ""),
    )
    return Telemetry({key: series[key] for key in sorted(series)}, tuple(ordered), report)


def _segment_blocks(
    path: Path, series: dict[SeriesKey, Series], report: ReadReport
) -> Iterator[Block]:
    """Note the groups of a segment; its other lines come as a block."""
    segment = Segment(path)
    for number, one in enumerate(segment.series):
        if one.kind == TEXT:
            continue
        report.lines += segment.rows(number)
        for figure, kind in _FIGURES.items():
            if one.kind == kind and segment.rows(number):
                _series(series, one).add(figure, _Group(segment, number))
    texts = [
        parsed_line(path, number, text.encode(), report)
        for number, text in enumerate(segment.texts(), start=1)
    ]
    yield Block(None, None, [line for line in texts if line is not None])


def _series(series: dict[SeriesKey, Series], one: SegmentSeries) -> Series:
    found = series[SeriesKey(one.uuid or "", one.boot_id or "", one.sampler or "", one.node or "")]
    if one.source in ("measured", "estimated", "replayed"):
        found.source = one.source
    return found


_KEY_COLUMNS: Final = ("uuid", "boot_id", "sampler", "node", "source")


def _add_columns(series: dict[SeriesKey, Series], figure: str, block: Block) -> None:
    """Sort the rows of a block's table into their series."""
    table = block.power if _FIGURES[figure] == "power" else block.counter
    if table is None or not table.num_rows:
        return
    codes = np.zeros(table.num_rows, np.int64)
    names: list[list[str]] = []
    for column in _KEY_COLUMNS:
        encoded = table.column(column).combine_chunks().dictionary_encode()
        names.append(encoded.dictionary.to_pylist())
        codes = codes * len(names[-1]) + encoded.indices.to_numpy()
    for code in np.unique(codes).tolist():
        samples = _samples(table.filter(pa.array(codes == code)), figure)
        if not len(samples.at_ns):
            continue
        values: list[str] = []
        rest = code
        for column in reversed(names):
            rest, index = divmod(rest, len(column))
            values.append(column[index])
        source, node, sampler, boot_id, uuid = values
        _series(series, SegmentSeries("", node, boot_id, sampler, uuid, None, source)).add(
            figure, samples
        )


def _add_lines(
    series: dict[SeriesKey, Series], events: list[EventLine], lines: Iterable[Line]
) -> None:
    """Take lines that were read one by one."""
    rows: dict[tuple[SeriesKey, str], list[tuple[int, int]]] = defaultdict(list)
    for line in lines:
        if isinstance(line, EventLine):
            events.append(line)
        elif isinstance(line, DeviceLine | PowerLine | CounterLine):
            key = SeriesKey(line.uuid, line.boot_id, line.sampler, line.node)
            series[key].source = line.source
            if isinstance(line, DeviceLine):
                series[key].device = line
            for figure in _FIGURES:
                value = getattr(line, figure, None)
                if value is not None:
                    rows[key, figure].append((line.t_mono_ns, value))
    for (key, figure), pairs in rows.items():
        table = np.array(pairs, np.int64)
        series[key].add(figure, Samples(table[:, 0], table[:, 1]))
