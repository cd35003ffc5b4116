"""The nodes of an attempt as one run: its window on each node's own clock, where the clocks' offsets were measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ekd_nemo.metrics.phase_time import Window
from ekd_nemo.records.clocks import ClockOffsets

Windows = Mapping[str, tuple[Window, ...]]


def joined(windows: Windows, clocks: Sequence[ClockOffsets]) -> dict[str, tuple[Window, ...]]:
    """Windows by boot id, E_run's part of each stretched to the attempt's on all nodes.

    A node that began later or ended earlier than the others was held for the run all the same: that time is idle. An
    attempt with a node whose clock was not measured, or with one node, stays as it is; one that only evaluated, in a
    job of its own, was not among those that met and is left alone.
    """
    found = {boot: list(of_boot) for boot, of_boot in windows.items()}
    for measured in clocks:
        ahead_ns = {offset.boot_id: offset.ahead_ns for offset in measured.offsets}
        parts = [
            (boot, number, window)
            for boot, number, window in _of_attempt(found, measured.attempt)
            if window.run_end_ns > window.run_start_ns
        ]
        if len(parts) < 2 or not all(boot in ahead_ns for boot, _, _ in parts):
            continue
        spans = [
            (one.run_start_ns - ahead_ns[boot], one.run_end_ns - ahead_ns[boot])
            for boot, _, one in parts
        ]
        start_ns, end_ns = min(start for start, _ in spans), max(end for _, end in spans)
        for boot, number, one in parts:
            begin = max(0, start_ns + ahead_ns[boot])
            end = max(begin, end_ns + ahead_ns[boot])
            found[boot][number] = replace(
                one,
                start_ns=min(one.start_ns, begin),
                end_ns=max(one.end_ns, end),
                run_start_ns=begin,
                run_end_ns=end,
            )
    return {boot: tuple(of_boot) for boot, of_boot in found.items()}


def _of_attempt(
    windows: Mapping[str, Sequence[Window]], attempt: int
) -> Iterable[tuple[str, int, Window]]:
    """Boot id, place and the window itself of one attempt."""
    for boot, of_boot in windows.items():
        for number, window in enumerate(of_boot):
            if window.attempt == attempt:
                yield boot, number, window
