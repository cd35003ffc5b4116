"""What the ranks of one run marked: stretches of phases and steps with tokens, as columns per rank and attempt."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Final

import numpy as np

from ekd_nemo.metrics.curve import Bools, Ints
from ekd_nemo.metrics.devices import Clock
from ekd_nemo.metrics.phase_stack import IDLE, PHASE_NUMBER, PhaseStack
from ekd_nemo.records.jsonl import ReadReport, read_lines
from ekd_nemo.records.lines import MarkLine, PhaseBegin, PhaseEnd, Span, StepMark
from ekd_nemo.records.phases import Phase

NO_PHASE: Final = -1
# Two stretches of one phase this close are one: the time between is that of ending and beginning a mark.
_SEAM_NS: Final = 1_000_000
# A phase that begins after this long a silence, with the sampler gone in between, is a new process's: the old one died.
_SILENCE_NS: Final = 60_000_000_000


@dataclass(frozen=True, slots=True, order=True)
class RankKey:
    """One process of one attempt on one clock: what marks other devices is another process."""

    node: str
    boot_id: str
    attempt: int
    rank: int
    uuids: tuple[str, ...]

    @property
    def clock(self) -> Clock:
        """The clock of its times."""
        return Clock(self.node, self.boot_id)


@dataclass(frozen=True, slots=True, eq=False)
class Stretches:
    """Stretches of phases in order of time; they never overlap.

    Attributes:
        start_ns, end_ns: [N] bounds.
        phase: [N] index into `PHASES`.
    """

    start_ns: Ints
    end_ns: Ints
    phase: Ints


@dataclass(frozen=True, slots=True)
class StepTokens:
    """One step of one data-parallel replica as one rank marked it."""

    attempt: int
    step: int
    replica: int
    tokens: int
    tokens_valid: int | None


@dataclass(frozen=True, slots=True, eq=False)
class RankMarks:
    """One rank's marks.

    Attributes:
        stretches: what it did when.
        step_ns, steps: [S] end times and numbers of its steps.
        tokens: the same steps with their tokens.
        flags: `unclosed_attempt`, `unbalanced_marks`.
    """

    key: RankKey
    stretches: Stretches
    step_ns: Ints
    steps: Ints
    tokens: tuple[StepTokens, ...]
    flags: tuple[str, ...]


# The time at which a phase that was never closed ends: called with the rank and the time of its last line.
Horizon = Callable[[RankKey, int], int]


def read_marks(files: Iterable[Path], report: ReadReport) -> dict[RankKey, list[MarkLine]]:
    """The lines of all ranks, in order of time, repeated lines once.

    Raises: OSError if a file cannot be read.
    """
    lines: dict[RankKey, list[MarkLine]] = defaultdict(list)
    for path in files:
        for line in read_lines(path, report):
            if isinstance(line, MarkLine):
                uuids = tuple(sorted(set(line.uuids)))
                lines[RankKey(line.node, line.boot_id, line.attempt, line.rank, uuids)].append(line)
    return {key: _in_order(lines[key]) for key in sorted(lines)}


def _in_order(lines: Sequence[MarkLine]) -> list[MarkLine]:
    distinct: dict[tuple[object, ...], MarkLine] = {}
    for line in lines:
        identity = (
            line.kind,
            line.t_mono_ns,
            getattr(line, "phase", None),
            getattr(line, "step", None),
        )
        distinct.setdefault(identity, line)
    return sorted(distinct.values(), key=lambda line: line.t_mono_ns)


def rank_marks(key: RankKey, lines: Sequence[MarkLine], horizon: Horizon) -> RankMarks:
    """The marks of one rank, made from its ordered lines.

    Time belongs to the innermost open phase; a span overrides it for its duration. Marked idle time is like
    time without a mark: idle where it lies inside the run. A phase that was never closed
    ends where `horizon` says, and the rank is flagged `unclosed_attempt`.
    """
    flags: set[str] = set()
    stretches = _overlaid(
        _stretches(key, lines, horizon, flags), [line for line in lines if isinstance(line, Span)]
    )
    steps = [line for line in lines if isinstance(line, StepMark)]
    return RankMarks(
        key,
        _without_seams(_busy(stretches)),
        np.array([line.t_mono_ns for line in steps], np.int64),
        np.array([line.step for line in steps], np.int64),
        tuple(
            StepTokens(
                key.attempt, line.step, line.parallel.get("data", 0), line.tokens, line.tokens_valid
            )
            for line in steps
        ),
        tuple(sorted(flags)),
    )


def _stretches(
    key: RankKey, lines: Sequence[MarkLine], horizon: Horizon, flags: set[str]
) -> Stretches:
    """Walk the begin and end marks, moment by moment, with a stack of open phases."""
    stack = PhaseStack(flags)
    previous_ns = 0
    for at_ns, moment in groupby(lines, key=attrgetter("t_mono_ns")):
        here = list(moment)
        begun: list[Phase] = [line.phase for line in here if isinstance(line, PhaseBegin)]
        ended: list[Phase] = [line.phase for line in here if isinstance(line, PhaseEnd)]
        silent = begun and stack.open_phases and at_ns - previous_ns > _SILENCE_NS
        if silent and (died_ns := horizon(key, previous_ns)) < at_ns:
            stack.abandon(died_ns)
        stack.pass_moment(at_ns, begun, ended)
        previous_ns = at_ns
    if stack.open_phases:
        stack.abandon(horizon(key, previous_ns))
    table = np.array(stack.rows, np.int64).reshape(-1, 3)
    return Stretches(table[:, 0], table[:, 1], table[:, 2])


def _overlaid(base: Stretches, spans: Sequence[Span]) -> Stretches:
    """The stretches with spans laid over them; of overlapping spans the later one starts where the earlier ends."""
    if not spans:
        return base
    span_end = np.array([span.t_mono_ns for span in spans], np.int64)
    span_start = np.array(
        [span.t_mono_ns - min(span.duration_ns, span.t_mono_ns) for span in spans], np.int64
    )
    span_start[1:] = np.maximum(span_start[1:], span_end[:-1])
    span_phase = np.array([PHASE_NUMBER[span.phase] for span in spans], np.int64)
    edges = np.unique(np.concatenate((base.start_ns, base.end_ns, span_start, span_end)))
    over = phase_at(Stretches(span_start, span_end, span_phase), edges[:-1])
    below = phase_at(base, edges[:-1])
    phase = np.where(over != NO_PHASE, over, below)
    known = phase != NO_PHASE
    return Stretches(edges[:-1][known], edges[1:][known], phase[known])


def phase_at(stretches: Stretches, at_ns: Ints) -> Ints:
    """The phase number at each time (of the stretch that holds it or starts there); -1 in none."""
    return np.append(stretches.phase, NO_PHASE)[stretch_at(stretches, at_ns)]


def stretch_at(stretches: Stretches, at_ns: Ints) -> Ints:
    """The index of the stretch at each time; -1 in none."""
    if not len(stretches.start_ns):
        return np.full(at_ns.shape, NO_PHASE, np.int64)
    index = np.searchsorted(stretches.start_ns, at_ns, side="right") - 1
    inside: Bools = (index >= 0) & (at_ns < stretches.end_ns[index])
    return np.where(inside, index, NO_PHASE)


def _busy(stretches: Stretches) -> Stretches:
    """The stretches that are not idle."""
    busy = stretches.phase != IDLE
    return Stretches(stretches.start_ns[busy], stretches.end_ns[busy], stretches.phase[busy])


def _without_seams(stretches: Stretches) -> Stretches:
    """Neighbouring stretches of one phase, at most a millisecond apart, as one."""
    if not len(stretches.phase):
        return stretches
    near = stretches.start_ns[1:] - stretches.end_ns[:-1] <= _SEAM_NS
    first = np.append(True, ~(near & (stretches.phase[1:] == stretches.phase[:-1])))
    last = np.append(first[1:], True)
    return Stretches(stretches.start_ns[first], stretches.end_ns[last], stretches.phase[first])
