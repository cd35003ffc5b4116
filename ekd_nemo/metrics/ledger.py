"""The ledger: energy by device, attempt, phase and step range. Derived; can always be rebuilt from the records."""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Final

from ekd_nemo.metrics.curve import EMPTY
from ekd_nemo.metrics.devices import (
    Clock,
    Device,
    Reconciliation,
    device_keys,
    device_of,
    reconcile,
    role_of,
)
from ekd_nemo.metrics.joined import joined
from ekd_nemo.metrics.ledger_rows import LedgerRow, device_rows
from ekd_nemo.metrics.lost import with_losses
from ekd_nemo.metrics.mark_lines import MarkColumns, RankKey, read_marks
from ekd_nemo.metrics.marks import RankMarks, rank_marks
from ekd_nemo.metrics.phase_stack import PHASE_NUMBER
from ekd_nemo.metrics.phase_time import Window, windows_of
from ekd_nemo.metrics.series import Telemetry, read_telemetry
from ekd_nemo.records.clocks import ClockOffsets, read_clocks
from ekd_nemo.records.jsonl import ReadReport
from ekd_nemo.records.phases import E_RUN_PHASES
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.units import NS_PER_S

_RUN_PHASES: Final = frozenset(PHASE_NUMBER[phase] for phase in E_RUN_PHASES)


@dataclass(frozen=True)
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
        """Time that E_run spans: its attempts added up."""
        return sum(self.lengths_ns.values()) / NS_PER_S

    @cached_property
    def lengths_ns(self) -> dict[int, int]:
        """What E_run spans of each attempt, by number: the longest window of its nodes.

        Without attempts that held processors alone, such as the building of shards on a cluster.
        """
        held = {row.attempt for row in self.rows if row.in_run and row.role != "host"}
        longest: dict[int, int] = defaultdict(int)
        for window in chain.from_iterable(self.windows.values()):
            if window.attempt in held:
                length = window.run_end_ns - window.run_start_ns
                longest[window.attempt] = max(longest[window.attempt], length)
        return dict(sorted(longest.items()))

    def windows_on(self, boot_id: str) -> Sequence[Window]:
        """The windows on one clock of the attempts that E_run spans."""
        return [w for w in self.windows.get(boot_id, ()) if w.attempt in self.lengths_ns]


def ledger_of_run(run: RunDir) -> Ledger:
    """Read a run's telemetry and marks and build its ledger.

    Raises: OSError if a file cannot be read, DataError if the record of the nodes' clocks is broken. Files that are
        absent give a ledger without rows.
    """
    telemetry = read_telemetry([*run.power_files(), *run.segment_files()])
    marks = read_marks(run.marks_files(), telemetry.report)
    return build_ledger(telemetry, marks, read_clocks(run.clock_files()))


def build_ledger(
    telemetry: Telemetry,
    marks: Mapping[RankKey, MarkColumns],
    clocks: Sequence[ClockOffsets] = (),
) -> Ledger:
    """The ledger of one run from its columns, marks and nodes' clocks; the order of the input does not matter."""
    horizon = _Horizon(telemetry, marks)
    ranks = tuple(rank_marks(key, marks[key], horizon) for key in sorted(marks))
    by_boot: dict[str, list[RankMarks]] = defaultdict(list)
    for rank in ranks:
        by_boot[rank.key.boot_id].append(rank)
    windows = joined({boot: tuple(windows_of(by_boot[boot])) for boot in sorted(by_boot)}, clocks)
    windows = with_losses(windows, ranks, clocks)
    apart = _on_processors_alone(telemetry, ranks)
    rows: list[LedgerRow] = []
    reconciliation: dict[tuple[str, str], Reconciliation] = {}
    flags = {flag for rank in ranks for flag in rank.flags}
    if telemetry.report.torn:
        flags.add("torn_lines")
    if telemetry.report.bad:
        flags.add("bad_lines")

    def account(load: Callable[[], Device]) -> _Account:
        return _accounted(load(), by_boot, windows, apart)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy and pyarrow let go of the interpreter
        for part in pool.map(account, _loaders(telemetry, ranks)):
            rows.extend(part.rows)
            flags.update(part.flags)
            reconciliation.update(part.reconciliation)
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

    def __init__(self, telemetry: Telemetry, marks: Mapping[RankKey, MarkColumns]) -> None:
        self._extents = _sampler_extents(telemetry)
        self._starts = [
            (key.boot_id, key.attempt, int(lines.t_ns[0]), int(lines.phase[0]))
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
            and (attempt > rank.attempt or phase not in _RUN_PHASES)
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


@dataclass(frozen=True, slots=True)
class _Account:
    """What one device adds to the ledger."""

    rows: list[LedgerRow]
    flags: tuple[str, ...]
    reconciliation: Mapping[tuple[str, str], Reconciliation]


def _accounted(
    device: Device,
    by_boot: Mapping[str, Sequence[RankMarks]],
    windows: Mapping[str, Sequence[Window]],
    apart: Set[tuple[str, int]],
) -> _Account:
    """One device's rows, over the attempts on its clock; no accelerator was held in those set apart."""
    boot = device.clock.boot_id
    here = windows.get(boot, ())
    if device.role != "host":
        here = [window for window in here if (boot, window.attempt) not in apart]
    if not here:
        return _Account([], (), {})
    rows = device_rows(device, by_boot[boot], here)
    if device.role != "accelerator":
        return _Account(rows, (), {})
    compared = _summed([reconcile(device, w.run_start_ns, w.run_end_ns) for w in here])
    return _Account(rows, device.flags, {(boot, device.uuid): compared})


def _on_processors_alone(telemetry: Telemetry, ranks: Sequence[RankMarks]) -> set[tuple[str, int]]:
    """Boot id and attempt of those whose ranks occupied nothing but host devices, such as a cluster's shards."""
    hosts = {
        device
        for device, keys in device_keys(telemetry.series).items()
        if role_of(keys, telemetry.series) == "host"
    }
    seen: dict[tuple[str, int], bool] = {}
    for rank in ranks:
        boot, place = rank.key.boot_id, (rank.key.boot_id, rank.key.attempt)
        alone = bool(rank.key.uuids) and all((boot, uuid) in hosts for uuid in rank.key.uuids)
        seen[place] = seen.get(place, True) and alone
    return {place for place, alone in seen.items() if alone}


def _loaders(telemetry: Telemetry, ranks: Sequence[RankMarks]) -> list[Callable[[], Device]]:
    """A function for each sampled device, and for each that ranks occupied without any sample of it."""
    keys = device_keys(telemetry.series)
    unseen = {
        (rank.key.boot_id, uuid): rank.key.clock
        for rank in ranks
        for uuid in rank.key.uuids
        if (rank.key.boot_id, uuid) not in keys
    }
    sampled = [partial(device_of, members, telemetry.series) for members in keys.values()]
    return sampled + [
        partial(_unsampled, uuid, clock) for (_, uuid), clock in sorted(unseen.items())
    ]


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
