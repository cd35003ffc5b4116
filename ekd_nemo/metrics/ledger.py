"""The ledger: energy by device, attempt, phase and step range. Derived; can always be rebuilt from the records."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ekd_nemo.metrics.curve import EMPTY
from ekd_nemo.metrics.devices import (
    Clock,
    Device,
    Reconciliation,
    device_keys,
    device_of,
    reconcile,
)
from ekd_nemo.metrics.ledger_rows import LedgerRow, device_rows
from ekd_nemo.metrics.marks import RankKey, RankMarks, rank_marks, read_marks
from ekd_nemo.metrics.phase_time import Window, windows_of
from ekd_nemo.metrics.series import Telemetry, read_telemetry
from ekd_nemo.records.jsonl import ReadReport
from ekd_nemo.records.lines import MarkLine
from ekd_nemo.records.phases import E_RUN_PHASES
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.units import NS_PER_S


@dataclass(frozen=True, slots=True)
class Ledger:
    """The rows of a run and what a reader has to know about them.

    Attributes:
        windows: attempts by boot id.
        reconciliation: counters against integrals over the attempts, per accelerator and boot.
        flags: of the whole run, sorted.
        report: lines read and skipped.
    """

    rows: tuple[LedgerRow, ...]
    windows: Mapping[str, tuple[Window, ...]]
    reconciliation: Mapping[tuple[str, str], Reconciliation]
    ranks: tuple[RankMarks, ...]
    flags: tuple[str, ...]
    report: ReadReport

    @property
    def duration_s(self) -> float:
        """Time that E_run spans: per attempt the longest window of its nodes, attempts added up."""
        longest: dict[int, int] = defaultdict(int)
        for windows in self.windows.values():
            for window in windows:
                longest[window.attempt] = max(
                    longest[window.attempt], window.run_end_ns - window.run_start_ns
                )
        return sum(longest.values()) / NS_PER_S


def ledger_of_run(run: RunDir) -> Ledger:
    """Read a run's telemetry and marks and build its ledger.

    Raises: OSError if a file cannot be read. Files that are absent give a ledger without rows.
    """
    telemetry = read_telemetry([*run.power_files(), *run.segment_files()])
    return build_ledger(telemetry, read_marks(run.marks_files(), telemetry.report))


def build_ledger(telemetry: Telemetry, marks: Mapping[RankKey, Sequence[MarkLine]]) -> Ledger:
    """The ledger of one run from its columns and marks; the order of the input does not matter."""
    horizon = _Horizon(telemetry, marks)
    ranks = tuple(rank_marks(key, marks[key], horizon) for key in sorted(marks))
    by_boot: dict[str, list[RankMarks]] = defaultdict(list)
    for rank in ranks:
        by_boot[rank.key.boot_id].append(rank)
    windows = {boot: tuple(windows_of(by_boot[boot])) for boot in sorted(by_boot)}
    rows: list[LedgerRow] = []
    reconciliation: dict[tuple[str, str], Reconciliation] = {}
    flags = {flag for rank in ranks for flag in rank.flags}
    if telemetry.report.torn:
        flags.add("torn_lines")
    if telemetry.report.bad:
        flags.add("bad_lines")
    for device in _devices(telemetry, ranks):
        here = windows.get(device.clock.boot_id, ())
        if not here:
            continue
        rows.extend(device_rows(device, by_boot[device.clock.boot_id], here))
        if device.role == "accelerator":
            flags.update(device.flags)
            parts = [reconcile(device, w.run_start_ns, w.run_end_ns) for w in here]
            reconciliation[device.clock.boot_id, device.uuid] = _summed(parts)
    rows.sort(key=lambda row: (row.node, row.boot_id, row.uuid, row.attempt, row.start_ns))
    flags.update(_summed(list(reconciliation.values())).flags)
    return Ledger(
        tuple(rows), windows, reconciliation, ranks, tuple(sorted(flags)), telemetry.report
    )


class _Horizon:
    """Where a phase ends that was never closed, because its process was killed.

    At the last sample of the sampler that was running then (it stops when the ranks are gone), at the next attempt's
    first mark, or at the first mark of a later evaluation, whichever comes first; without a sampler at the rank's
    own last line.
    """

    def __init__(self, telemetry: Telemetry, marks: Mapping[RankKey, Sequence[MarkLine]]) -> None:
        self._extents = _sampler_extents(telemetry)
        self._starts = [
            (key.boot_id, key.attempt, lines[0].t_mono_ns, getattr(lines[0], "phase", None))
            for key, lines in marks.items()
        ]

    def __call__(self, rank: RankKey, last_ns: int) -> int:
        """The time at which the rank's open phases end."""
        ends = [
            end
            for boot, start, end in self._extents
            if boot == rank.boot_id and start <= last_ns < end
        ]
        if not ends:
            return last_ns
        later = [
            start
            for boot, attempt, start, phase in self._starts
            if boot == rank.boot_id
            and start > last_ns
            and (attempt > rank.attempt or phase not in E_RUN_PHASES)
        ]
        return min(max(ends), *later) if later else max(ends)


def _sampler_extents(telemetry: Telemetry) -> list[tuple[str, int, int]]:
    """Boot, first and last sample of each sampler."""
    extents: dict[tuple[str, str], tuple[int, int]] = {}
    for key, series in telemetry.series.items():
        found = series.extent()
        if found is None:
            continue
        first, last = extents.get((key.boot_id, key.sampler), found)
        extents[key.boot_id, key.sampler] = (min(first, found[0]), max(last, found[1]))
    return [(boot, first, last) for (boot, _), (first, last) in sorted(extents.items())]


def _devices(telemetry: Telemetry, ranks: Sequence[RankMarks]) -> Iterator[Device]:
    """The sampled devices, one at a time, then those that ranks occupied without any sample of them."""
    keys = device_keys(telemetry.series)
    for members in keys.values():
        yield device_of(members, telemetry.series)
    unseen = {
        (rank.key.boot_id, uuid): rank.key.clock
        for rank in ranks
        for uuid in rank.key.uuids
        if (rank.key.boot_id, uuid) not in keys
    }
    for (_, uuid), clock in sorted(unseen.items()):
        yield _unsampled(uuid, clock)


def _unsampled(uuid: str, clock: Clock) -> Device:
    flags = ("device_without_samples",)
    return Device(
        uuid, clock, uuid, "accelerator", "measured", EMPTY, EMPTY, EMPTY, None, None, flags
    )


def _summed(parts: Sequence[Reconciliation]) -> Reconciliation:
    return Reconciliation(
        sum(part.counter_j for part in parts),
        sum(part.integral_j for part in parts),
        sum(part.common_s for part in parts),
    )
