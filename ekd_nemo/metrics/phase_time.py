"""One device's time cut into pieces of one phase each, shared out where several ranks occupy the device."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from ekd_nemo.metrics.curve import Bools, Floats, Ints
from ekd_nemo.metrics.marks import NO_PHASE, RankMarks, stretch_at
from ekd_nemo.metrics.phase_stack import IDLE, PHASE_NUMBER
from ekd_nemo.records.phases import E_RUN_PHASES
from ekd_nemo.units import NS_PER_S

SHORT_S: Final = 1.0  # below this a phase is below the sensor
BUNDLE_NS: Final = 600_000_000_000
BLOCK_S: Final = 61.0  # at least 60 s, plus the one stretch by which a block's end may be missed

_RUN_PHASES: Final = np.array([PHASE_NUMBER[phase] for phase in E_RUN_PHASES], np.int64)
_STEP_PHASES: Final = np.array(
    [PHASE_NUMBER[phase] for phase in ("teacher_forward", "teacher_cache", "student_train")],
    np.int64,
)


@dataclass(frozen=True, slots=True)
class Window:
    """One attempt on one clock.

    Attributes:
        start_ns, end_ns: from the first to the last phase of any kind.
        run_start_ns, run_end_ns: from the first to the last phase that E_run counts; equal when there is none.
        lost_ns: from when on its work is not in the weights; None where all of it is.
    """

    attempt: int
    start_ns: int
    end_ns: int
    run_start_ns: int
    run_end_ns: int
    lost_ns: int | None = None


def is_in_run(rank: RankMarks) -> bool:
    """Whether a rank has a phase that E_run counts; one that evaluates alone, in a job of its own, has none."""
    return bool(np.isin(rank.stretches.phase, _RUN_PHASES).any())


def windows_of(ranks: Sequence[RankMarks]) -> list[Window]:
    """The attempts on one clock, over all its ranks, by number; ranks without a phase say nothing."""
    windows: list[Window] = []
    for attempt in sorted({rank.key.attempt for rank in ranks}):
        stretches = [rank.stretches for rank in ranks if rank.key.attempt == attempt]
        start = np.concatenate([s.start_ns for s in stretches])
        end = np.concatenate([s.end_ns for s in stretches])
        counts = np.isin(np.concatenate([s.phase for s in stretches]), _RUN_PHASES)
        if not len(start):
            continue
        run = (
            (int(start[counts].min()), int(end[counts].max()))
            if counts.any()
            else (int(start.min()),) * 2
        )
        windows.append(Window(attempt, int(start.min()), int(end.max()), *run))
    return windows


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Pieces of a device's time; where n ranks are busy at once there are n pieces with a share of 1/n each.

    Attributes:
        start_ns, end_ns: [N] bounds.
        phase: [N] index into `PHASES`; time of no phase inside an attempt is idle.
        share: [N] part of the device's energy and time that is this piece's.
        attempt: [N] number of the launch.
        in_run: [N] whether E_run counts the piece.
        lost: [N] whether a later attempt did it again.
        short: [N] whether it belongs to a stretch below the sensor.
        step_first, step_last: [N] steps that it lies in; -1 outside the phases that make steps.
    """

    start_ns: Ints
    end_ns: Ints
    phase: Ints
    share: Floats
    attempt: Ints
    in_run: Bools
    lost: Bools
    short: Bools
    step_first: Ints
    step_last: Ints

    @property
    def shared_s(self) -> Floats:
        """[N] time of each piece times its share, in s."""
        return (self.end_ns - self.start_ns) / NS_PER_S * self.share


def pieces_of(ranks: Sequence[RankMarks], windows: Sequence[Window]) -> Pieces:
    """Cut the time of one device by the marks of all ranks that occupy it, over all attempts.

    No moment counts more than once: where ranks overlap, also of different attempts, they share it equally.
    """
    edges = _edges(ranks, windows)
    starts, ends = edges[:-1], edges[1:]
    found = [stretch_at(rank.stretches, starts) for rank in ranks]
    busy = np.sum([index != NO_PHASE for index in found], axis=0, dtype=np.int64)
    parts = [
        _rank_pieces(rank, index, starts, ends, busy, windows)
        for rank, index in zip(ranks, found, strict=True)
    ]
    parts.append(_idle_pieces(starts, ends, busy, windows))
    columns = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Pieces)
    }
    order = np.lexsort((columns["phase"], columns["start_ns"]))
    return Pieces(**{name: column[order] for name, column in columns.items()})


def _edges(ranks: Sequence[RankMarks], windows: Sequence[Window]) -> Ints:
    parts = [
        np.array(
            [(w.start_ns, w.end_ns, w.run_start_ns, w.run_end_ns) for w in windows], np.int64
        ).ravel()
    ]
    parts.append(np.array([w.lost_ns for w in windows if w.lost_ns is not None], np.int64))
    for rank in ranks:
        parts += [rank.stretches.start_ns, rank.stretches.end_ns]
    return np.unique(np.concatenate(parts))


def _lost(starts: Ints, window: Window) -> Bools:
    """[N] whether what began then, in the attempt of a window, was lost."""
    if window.lost_ns is None:
        return np.zeros(len(starts), np.bool_)
    return np.asarray(starts >= window.lost_ns, np.bool_)


def _rank_pieces(
    rank: RankMarks,
    index: Ints,
    starts: Ints,
    ends: Ints,
    busy: Ints,
    windows: Sequence[Window],
) -> Pieces:
    """The pieces of one rank."""
    here = index != NO_PHASE
    stretch = index[here]
    phase = rank.stretches.phase[stretch]
    length_s = (rank.stretches.end_ns - rank.stretches.start_ns)[stretch] / NS_PER_S
    first, last = _steps_between(rank, starts[here], ends[here])
    steps = np.isin(phase, _STEP_PHASES)
    lost = np.zeros(len(stretch), np.bool_)
    for window in windows:
        if window.attempt == rank.key.attempt:
            lost |= _lost(starts[here], window)
    return Pieces(
        starts[here],
        ends[here],
        phase,
        1.0 / busy[here],
        np.full(len(stretch), rank.key.attempt, np.int64),
        np.isin(phase, _RUN_PHASES),
        lost,
        length_s < SHORT_S,
        np.where(steps, first, -1),
        np.where(steps, last, -1),
    )


def _steps_between(rank: RankMarks, starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """The steps in progress at the start and at the end of each piece; -1 after the last step's end."""
    if not len(rank.steps):
        return np.full(len(starts), -1), np.full(len(starts), -1)
    top = len(rank.steps) - 1
    first = np.searchsorted(rank.step_ns, starts, side="right")
    last = np.searchsorted(rank.step_ns, ends, side="left")
    known = first <= top
    return (
        np.where(known, rank.steps[np.minimum(first, top)], -1),
        np.where(known, rank.steps[np.minimum(last, top)], -1),
    )


def _idle_pieces(starts: Ints, ends: Ints, busy: Ints, windows: Sequence[Window]) -> Pieces:
    """The pieces of time inside an attempt in which no rank was in a phase."""
    attempt = np.zeros(len(starts), np.int64)
    in_run, lost = np.zeros(len(starts), np.bool_), np.zeros(len(starts), np.bool_)
    for window in windows:
        inside = (starts >= window.start_ns) & (ends <= window.end_ns)
        attempt[inside] = window.attempt
        in_run |= (starts >= window.run_start_ns) & (ends <= window.run_end_ns)
        lost |= inside & _lost(starts, window)
    here = (busy == 0) & (attempt > 0)
    count = int(here.sum())
    none = np.full(count, -1, np.int64)
    return Pieces(
        starts[here],
        ends[here],
        np.full(count, IDLE, np.int64),
        np.ones(count),
        attempt[here],
        in_run[here],
        lost[here],
        (ends - starts)[here] / NS_PER_S < SHORT_S,
        none,
        none,
    )


def blocks_of(pieces: Pieces) -> Ints:
    """[N] the block of each short piece, from 0; -1 for pieces of long stretches.

    Short pieces are gathered, within their attempt and side of `in_run`, into blocks of at least 60 s of such pieces
    (or one block where there is less), over which energy is apportioned by time.
    """
    block = np.full(len(pieces.phase), -1, np.int64)
    kind = 2 * pieces.attempt + pieces.in_run
    made = 0
    for value in np.unique(kind[pieces.short]):
        chosen = pieces.short & (kind == value)
        time_s = pieces.shared_s[chosen]
        total_s = float(time_s.sum())
        count = max(1, int(total_s / BLOCK_S))
        begun_s = np.cumsum(time_s) - time_s
        block[chosen] = made + np.minimum((begun_s / total_s * count).astype(np.int64), count - 1)
        made += count
    return block


def rows_of(pieces: Pieces, block: Ints) -> Ints:
    """[N] the ledger row of each piece, from 0.

    Short pieces go by block and phase. Long stretches of a phase that follow each other, with other phases in
    between, share a row until ten minutes of them are together, so that a ledger does not grow with the steps.
    """
    bundle = np.where(pieces.short, 0, _bundles(pieces))
    columns = (pieces.attempt, pieces.in_run, pieces.lost, pieces.phase, block, bundle)
    keys = np.stack(columns).astype(np.int64)
    _, row = np.unique(keys, axis=1, return_inverse=True)
    return np.asarray(row, np.int64).reshape(-1)


def _bundles(pieces: Pieces) -> Ints:
    """[N] a number that long pieces of one phase, attempt and ten minutes share."""
    columns = (pieces.lost, pieces.in_run, pieces.phase, pieces.attempt, pieces.short)
    order = np.lexsort((pieces.start_ns, *columns))
    start, end = pieces.start_ns[order], pieces.end_ns[order]
    changed = np.ones(len(order), np.bool_)
    changed[1:] = np.any([column[order][1:] != column[order][:-1] for column in columns], axis=0)
    apart = changed.copy()
    apart[1:] |= start[1:] > end[:-1]
    # the time, since the first stretch of its kind began, at which each stretch of touching pieces begins
    begun_ns = start[np.flatnonzero(apart)][np.cumsum(apart) - 1]
    since_ns = begun_ns - start[np.flatnonzero(changed)][np.cumsum(changed) - 1]
    number = np.empty(len(order), np.int64)
    number[order] = since_ns // BUNDLE_NS
    return number
