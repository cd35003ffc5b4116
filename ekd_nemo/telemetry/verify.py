"""Is the record of a run whole: every sampler stopped, every mark inside sampled time, nothing torn.

A problem makes the record incomplete; a note is something to know that the figures already carry.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ekd_nemo.records.clocks import read_clocks
from ekd_nemo.records.jsonl import ReadReport, is_torn, read_lines
from ekd_nemo.records.lines import (
    CounterLine,
    DeviceLine,
    EventLine,
    Line,
    MarkLine,
    PhaseBegin,
    PhaseEnd,
    PowerLine,
    TelemetryLine,
)
from ekd_nemo.records.parse import BadLineError, decode_object, parse_object
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.records.segments import Segment, SegmentSeries, each_file
from ekd_nemo.telemetry.device_record import DeviceRecord
from ekd_nemo.units import NS_PER_S

UNCOVERED_SHARE: Final = 0.01  # the error budget: coverage of at least 99 %
UNCOVERED_FLOOR_S: Final = 2.0  # below it a missing stretch is not a gap
DISAGREEMENT_PCT: Final = 1.0  # counter against integral, at 60 s and more
PROBLEM_EVENTS: Final = frozenset({"device_lost", "counter_reset", "read_error", "write_failed"})


@dataclass(slots=True)
class Verdict:
    """What was found.

    Attributes:
        devices: one row per device and sampler.
        files: lines, torn and bad lines by file.
        problems: what makes the record incomplete.
        notes: what a reader of the figures should know.
    """

    devices: list[DeviceRecord] = field(default_factory=list[DeviceRecord])
    files: dict[Path, ReadReport] = field(default_factory=dict[Path, ReadReport])
    problems: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])

    @property
    def is_whole(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


def verify_run(run: RunDir) -> Verdict:
    """Read all telemetry of a run and judge it.

    Raises: RunDirError if the folder is not a run directory; DataError if the record of the nodes' clocks is broken.
    """
    run.require()
    verdict = Verdict()
    telemetry = _Telemetry(verdict)
    listed = (*run.power_files(), *run.segment_files())
    telemetry.read(listed)
    telemetry.judge()
    if not (run.power_files() or run.segment_files()):
        verdict.problems.append(f"{run.telemetry}: no power-*.jsonl: nothing was sampled")
    for path in run.marks_files():
        _read_marks(path, verdict)
    if not run.marks_files():
        verdict.notes.append("no marks: energy cannot be told by phase or step")
    _note_clocks(run, {device.node for device in verdict.devices}, verdict)
    for path, report in verdict.files.items():
        if report.torn:
            verdict.problems.append(f"{path}: {report.torn} torn lines")
        if report.bad:
            verdict.problems.append(f"{path}: {report.bad} bad lines; first: {report.faults[0]}")
    for device in verdict.devices:
        _judge_device(device, verdict)
    return verdict


def _note_clocks(run: RunDir, nodes: set[str], verdict: Verdict) -> None:
    """How well the clocks of several nodes are known."""
    measured = read_clocks(run.clock_files())
    for clocks in measured:
        worst_us = max(offset.uncertainty_ns for offset in clocks.offsets) / 1000
        verdict.notes.append(
            f"attempt {clocks.attempt}: clocks of {len(clocks.offsets)} nodes compared, to {worst_us:.0f} us"
        )
    if len(nodes) > 1 and not measured:
        verdict.notes.append(
            f"{len(nodes)} nodes whose clocks were not compared: each keeps a window of its own"
        )


@dataclass(slots=True)
class _Sampler:
    """One sampler process: its node, when it was first seen, and which kinds of lines are there."""

    node: str
    t_wall_ns: int
    kinds: set[str] = field(default_factory=set[str])


class _Telemetry:
    """What the samplers' files hold together: devices, samplers and events."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.devices: dict[tuple[str, str], DeviceRecord] = {}
        self.samplers: dict[str, _Sampler] = {}
        self.events: Counter[tuple[str, str, str, str]] = Counter()

    def read(self, files: Iterable[Path]) -> None:
        """Take in files, JSON lines and segments."""
        for line in each_file(files, self._from_lines, self._from_segment):
            self._take(line)

    def _from_lines(self, path: Path) -> Iterator[Line]:
        report = ReadReport()
        yield from read_lines(path, report)
        self.verdict.files[path] = report

    def _from_segment(self, path: Path) -> Iterator[Line]:
        """The lines that a segment holds as text; power and counters go to their devices as columns."""
        report = self.verdict.files.setdefault(path, ReadReport())
        segment = Segment(path)
        for group, series in enumerate(segment.series):
            report.lines += segment.rows(group)
            if series.kind in (PowerLine.kind, CounterLine.kind):
                device = self._device(*(text or "" for text in _identity(series)))
                device.meter, device.source = series.meter or "?", series.source or "?"
                if series.kind == PowerLine.kind:
                    names = ("t_mono_ns", "p_avg_mw", "p_inst_mw")
                    columns = segment.read(group, names)
                    device.add_power(*(columns.column(name).to_numpy() for name in names))
                else:
                    names = ("t_mono_ns", "e_mj")
                    columns = segment.read(group, names)
                    device.add_counters(*(columns.column(name).to_numpy() for name in names))
        for number, text in enumerate(segment.texts(), start=1):
            try:
                yield parse_object(decode_object(text.encode()))
            except BadLineError as error:
                report.lines -= 1
                report.note(path, number, str(error), torn=is_torn(text.encode()))

    def _device(self, node: str, boot_id: str, uuid: str, sampler: str) -> DeviceRecord:
        return self.devices.setdefault((uuid, sampler), DeviceRecord(node, boot_id, uuid, sampler))

    def _take(self, line: Line) -> None:
        if isinstance(line, TelemetryLine):
            seen = self.samplers.setdefault(line.sampler, _Sampler(line.node, line.t_wall_ns))
            seen.kinds.add(line.kind)
        if isinstance(line, PowerLine | CounterLine | DeviceLine):
            device = self._device(line.node, line.boot_id, line.uuid, line.sampler)
            device.meter, device.source = line.meter, line.source
            if isinstance(line, CounterLine):
                device.counters.append((line.t_mono_ns, line.e_mj))
            elif isinstance(line, PowerLine):
                device.add_sample(line.t_mono_ns, line.p_avg_mw, line.p_inst_mw)
        elif isinstance(line, EventLine):
            self.events[line.node, line.event, line.uuid or "", line.detail or ""] += 1
            if line.event == "counter_reset":
                self._device(
                    line.node, line.boot_id, line.uuid or "", line.sampler
                ).has_reset = True

    def judge(self) -> None:
        """Put devices, problems and notes into the verdict."""
        self.verdict.devices += self.devices.values()
        _judge_samplers(self.samplers, self.verdict)
        for (node, event, uuid, detail), count in self.events.items():
            text = " ".join(part for part in (f"{node}: {event}", uuid, detail) if part)
            times = f" ({count} times)" if count > 1 else ""
            is_problem = event in PROBLEM_EVENTS
            (self.verdict.problems if is_problem else self.verdict.notes).append(text + times)


def _identity(series: SegmentSeries) -> tuple[str | None, ...]:
    return series.node, series.boot_id, series.uuid, series.sampler


def _judge_samplers(samplers: Mapping[str, _Sampler], verdict: Verdict) -> None:
    """A killed sampler is a problem, unless a later one on its node went on for it."""
    newest = {sampler.node: sampler for sampler in sorted(samplers.values(), key=_begin)}
    for name, sampler in sorted(samplers.items()):
        if "start" not in sampler.kinds:
            verdict.problems.append(f"sampler {name} on {sampler.node} has no start line")
        if "stop" in sampler.kinds:
            continue
        text = f"sampler {name} on {sampler.node} has no stop line: killed"
        if sampler is newest[sampler.node]:
            verdict.problems.append(f"{text}, or still running")
        else:
            verdict.notes.append(f"{text}; a later one went on")


def _begin(sampler: _Sampler) -> int:
    return sampler.t_wall_ns


def _judge_device(device: DeviceRecord, verdict: Verdict) -> None:
    where = f"{device.uuid} (sampler {device.sampler})"
    if not device.times_ns:
        verdict.problems.append(f"{where}: no power sample")
        return
    gaps_s = device.gaps_s()
    if gaps_s and sum(gaps_s) > UNCOVERED_SHARE * device.duration_s():
        verdict.problems.append(
            f"{where}: {len(gaps_s)} gaps, {sum(gaps_s):.1f} s of {device.duration_s():.1f} s, "
            f"the longest {max(gaps_s):.1f} s"
        )
    percent = device.disagreement_pct()
    if percent is not None and abs(percent) > DISAGREEMENT_PCT:
        verdict.problems.append(f"{where}: integral and counter differ by {percent:+.2f} %")
    if device.source != "measured":
        verdict.notes.append(f"{device.uuid}: {device.source} by {device.meter}, not measured")


@dataclass(slots=True)
class _Attempt:
    """What one rank marked in one attempt."""

    begin_ns: int
    end_ns: int
    boot_id: str
    node: str
    uuids: set[str] = field(default_factory=set[str])
    open_phases: int = 0


def _read_marks(path: Path, verdict: Verdict) -> None:
    """One rank's marks: inside sampled time, and closed in the last attempt."""
    report = verdict.files.setdefault(path, ReadReport())
    attempts: dict[tuple[int, str], _Attempt] = {}
    for line in read_lines(path, report):
        if not isinstance(line, MarkLine):
            continue
        key = (line.attempt, line.boot_id)
        attempt = attempts.setdefault(
            key, _Attempt(line.t_mono_ns, line.t_mono_ns, line.boot_id, line.node)
        )
        attempt.begin_ns = min(attempt.begin_ns, line.t_mono_ns)
        attempt.end_ns = max(attempt.end_ns, line.t_mono_ns)
        attempt.uuids.update(line.uuids)
        attempt.open_phases += isinstance(line, PhaseBegin) - isinstance(line, PhaseEnd)
    for (number, _), attempt in attempts.items():
        where = f"{path.name} attempt {number}"
        if attempt.open_phases:
            is_last = number == max(n for n, _ in attempts)
            text = f"{where}: a phase without end: killed{', or still running' * is_last}"
            (verdict.problems if is_last else verdict.notes).append(text)
        for uuid in sorted(attempt.uuids):
            _judge_window(where, uuid, attempt, verdict)
        if not attempt.uuids:
            verdict.problems.append(f"{where}: names no device")


def _judge_window(where: str, uuid: str, attempt: _Attempt, verdict: Verdict) -> None:
    stretches = [
        stretch
        for device in verdict.devices
        if (device.uuid, device.node, device.boot_id) == (uuid, attempt.node, attempt.boot_id)
        for stretch in device.covered()
    ]
    if not stretches:
        verdict.problems.append(f"{where}: {uuid} was never sampled on {attempt.node}")
        return
    window_s = (attempt.end_ns - attempt.begin_ns) / NS_PER_S
    missing_s = window_s - _overlap_s(stretches, attempt.begin_ns, attempt.end_ns)
    if missing_s > max(UNCOVERED_SHARE * window_s, UNCOVERED_FLOOR_S):
        verdict.problems.append(
            f"{where}: {missing_s:.1f} s of its {window_s:.1f} s are not sampled on {uuid}"
        )


def _overlap_s(stretches: Iterable[tuple[int, int]], begin_ns: int, end_ns: int) -> float:
    """Time of a window inside the union of the stretches."""
    covered_ns, reached_ns = 0, begin_ns
    for stretch_begin_ns, stretch_end_ns in sorted(stretches):
        left_ns, right_ns = max(stretch_begin_ns, reached_ns), min(stretch_end_ns, end_ns)
        if right_ns > left_ns:
            covered_ns += right_ns - left_ns
            reached_ns = right_ns
    return covered_ns / NS_PER_S


def table_rows(verdict: Verdict) -> Sequence[Sequence[str]]:
    """The devices as a table of text, its first row the heads."""
    rows = [
        [
            "device",
            "node",
            "sampler",
            "meter",
            "source",
            "samples",
            "time",
            "gaps",
            "longest",
            "counter",
        ]
    ]
    for device in verdict.devices:
        gaps_s = device.gaps_s()
        percent = device.disagreement_pct()
        rows.append(
            [
                device.uuid,
                device.node,
                device.sampler,
                device.meter,
                device.source,
                str(len(device.times_ns)),
                f"{device.duration_s():.1f} s",
                str(len(gaps_s)),
                f"{max(gaps_s):.1f} s" if gaps_s else "-",
                "n/a" if percent is None else f"{percent:+.2f} %",
            ]
        )
    return rows
