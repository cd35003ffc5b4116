"""The ledger rows of one device: its pieces of time, measured on its curves and summed by phase and stretch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ekd_nemo.metrics.curve import EnergyCurve, Floats, Ints
from ekd_nemo.metrics.devices import Device, Role
from ekd_nemo.metrics.marks import RankMarks
from ekd_nemo.metrics.phase_time import Pieces, Window, blocks_of, is_in_run, pieces_of, rows_of
from ekd_nemo.metrics.quantity import Source
from ekd_nemo.records.phases import PHASES, Phase

_OPEN_S: Final = 1e-6  # uncovered time below a microsecond is rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """Energy of one device in one stretch, or block of short stretches, of one phase.

    Attributes:
        role: accelerator or host; None where nobody knows.
        phase: None for an accelerator that no rank occupied.
        in_run: whether E_run counts the row.
        lost: whether a later attempt did its work again.
        step_first, step_last: None outside the phases that make steps.
        start_ns, end_ns: outer bounds on the clock of `boot_id`; a block of short stretches has others in between.
        duration_s: time of this row, shared out where ranks overlap.
        energy_j: best estimate: counters, filled by power samples; what a gap hides is not in it.
        integral_j, counter_j: from power samples and from counters alone; None without any.
        covered_s: time that `energy_j` covers.
        sampled_s: time between samples without a gap.
        low_j, high_j: bounds with the gaps; `high_j` None: not bounded.
        apportioned: whether the row's energy is a share by time of a block of short stretches.
    """

    node: str
    boot_id: str
    uuid: str
    role: Role | None
    source: Source
    attempt: int
    phase: Phase | None
    in_run: bool
    lost: bool
    step_first: int | None
    step_last: int | None
    start_ns: int
    end_ns: int
    duration_s: float
    energy_j: float
    integral_j: float | None
    counter_j: float | None
    covered_s: float
    sampled_s: float
    low_j: float
    high_j: float | None
    apportioned: bool


def device_rows(
    device: Device, ranks: Sequence[RankMarks], windows: Sequence[Window]
) -> list[LedgerRow]:
    """The rows of one device, by attempt and time.

    Args:
        device: the device.
        ranks: all ranks on its clock. The ones that occupy it share its time; a host device follows all of them.
        windows: the attempts on its clock.
    """
    if device.role == "host":
        return _occupied_rows(device, ranks, windows)
    own = [rank for rank in ranks if device.uuid in rank.key.uuids]
    if not own:
        return _unoccupied_rows(device, windows)
    attempts = {rank.key.attempt for rank in own}
    here = [window for window in windows if window.attempt in attempts]
    others = [window for window in windows if window.attempt not in attempts]
    # a board that the run no longer has is not sampled for it either
    seen = [w for w in others if device.best.covered_s(w.run_start_ns, w.run_end_ns)[0] > _OPEN_S]
    return [
        *_occupied_rows(device, own, _held(own, here)),
        *_unoccupied_rows(device, seen),
    ]


def _occupied_rows(
    device: Device, ranks: Sequence[RankMarks], windows: Sequence[Window]
) -> list[LedgerRow]:
    """The rows of a device whose time these ranks share."""
    pieces = pieces_of(ranks, windows)
    block = blocks_of(pieces)
    return _rows(device, pieces, block, rows_of(pieces, block), occupied=True)


def _unoccupied_rows(device: Device, windows: Sequence[Window]) -> list[LedgerRow]:
    """A row an attempt in which no rank had the device."""
    runs = [window for window in windows if window.run_end_ns > window.run_start_ns]
    number = np.arange(len(runs), dtype=np.int64)
    nowhere = np.full(len(runs), -1, np.int64)
    return _rows(device, _whole(runs), nowhere, number, occupied=False)


def _held(ranks: Sequence[RankMarks], windows: Sequence[Window]) -> list[Window]:
    """The windows, E_run's part left out of those in which no rank did anything for it on this device.

    Such as a GPU on which a job of its own evaluated, beside those that had trained.
    """
    held = {rank.key.attempt for rank in ranks if is_in_run(rank)}
    return [
        window if window.attempt in held else replace(window, run_end_ns=window.run_start_ns)
        for window in windows
    ]


def _whole(windows: Sequence[Window]) -> Pieces:
    """One piece per attempt, for an accelerator that no rank occupied."""
    count = len(windows)
    none = np.full(count, -1, np.int64)
    return Pieces(
        np.array([window.run_start_ns for window in windows], np.int64),
        np.array([window.run_end_ns for window in windows], np.int64),
        none,
        np.ones(count),
        np.array([window.attempt for window in windows], np.int64),
        np.zeros(count, np.bool_),
        np.zeros(count, np.bool_),
        np.zeros(count, np.bool_),
        none,
        none,
    )


def _rows(
    device: Device, pieces: Pieces, block: Ints, number: Ints, *, occupied: bool
) -> list[LedgerRow]:
    """Sum the pieces by row number."""
    count = int(number.max()) + 1 if len(number) else 0

    def summed(values: Floats) -> list[float]:
        return np.bincount(number, _apportioned(values, pieces, block), count).tolist()

    def of_curve(curve: EnergyCurve) -> list[float] | list[None]:
        if curve.is_empty:
            return [None] * count
        return summed(curve.energy_j(pieces.start_ns, pieces.end_ns) * pieces.share)

    duration_s = np.bincount(number, pieces.shared_s, count).tolist()
    energy_j = summed(device.best.energy_j(pieces.start_ns, pieces.end_ns) * pieces.share)
    covered_s = summed(device.best.covered_s(pieces.start_ns, pieces.end_ns) * pieces.share)
    sampled_s = summed(device.sampled_s(pieces.start_ns, pieces.end_ns) * pieces.share)
    integral_j, counter_j = of_curve(device.power), of_curve(device.counter)
    first = np.full(count, len(number), np.int64)
    np.minimum.at(first, number, np.arange(len(number)))
    start, end = _extremes(number, count, pieces.start_ns, pieces.end_ns)
    step_first, step_last = _extremes(number, count, pieces.step_first, pieces.step_last)
    rows = [
        LedgerRow(
            node=device.clock.node,
            boot_id=device.clock.boot_id,
            uuid=device.uuid,
            role=device.role,
            source=device.source,
            attempt=int(pieces.attempt[piece]),
            phase=PHASES[pieces.phase[piece]] if occupied else None,
            in_run=bool(pieces.in_run[piece]),
            lost=bool(pieces.lost[piece]),
            step_first=_step(step_first[row]),
            step_last=_step(step_last[row]),
            start_ns=int(start[row]),
            end_ns=int(end[row]),
            duration_s=duration_s[row],
            energy_j=energy_j[row],
            integral_j=integral_j[row],
            counter_j=counter_j[row],
            covered_s=covered_s[row],
            sampled_s=sampled_s[row],
            low_j=_bound(energy_j[row], duration_s[row] - covered_s[row], device.idle_w or 0.0),
            high_j=_high(energy_j[row], duration_s[row] - covered_s[row], device.limit_w),
            apportioned=bool(block[piece] >= 0),
        )
        for row, piece in enumerate(first.tolist())
    ]
    return sorted(rows, key=lambda row: (row.attempt, row.start_ns, row.phase or ""))


def _apportioned(values: Floats, pieces: Pieces, block: Ints) -> Floats:
    """Values of the pieces; inside a block of short ones the block's sum is shared out by time."""
    short = block >= 0
    if not short.any():
        return values
    time_s = pieces.shared_s
    block_value = np.bincount(block[short], values[short])
    block_s = np.bincount(block[short], time_s[short])
    shared = values.copy()
    shared[short] = block_value[block[short]] * time_s[short] / block_s[block[short]]
    return shared


def _extremes(number: Ints, count: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """Smallest `low` and largest `high` of each row."""
    smallest = np.full(count, np.iinfo(np.int64).max, np.int64)
    largest = np.full(count, -1, np.int64)
    np.minimum.at(smallest, number, low)
    np.maximum.at(largest, number, high)
    return smallest, largest


def _step(number: int) -> int | None:
    return None if number < 0 else int(number)


def _bound(energy_j: float, open_s: float, power_w: float) -> float:
    """The energy with the uncovered time at a constant power."""
    return energy_j + power_w * open_s if open_s > _OPEN_S else energy_j


def _high(energy_j: float, open_s: float, limit_w: float | None) -> float | None:
    if limit_w is None and open_s > _OPEN_S:
        return None
    return _bound(energy_j, open_s, limit_w or 0.0)
