"""What the ranks of one run marked: stretches of phases and steps with tokens, as columns per rank and attempt."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final

import numpy as np

from ekd_nemo.metrics.curve import Bools, Ints
from ekd_nemo.metrics.mark_lines import BEGIN, END, SPAN, STEP, MarkColumns, RankKey
from ekd_nemo.metrics.phase_stack import IDLE, PhaseStack
from ekd_nemo.metrics.tokens import StepTokens

NO_PHASE: Final = -1
# Two stretches of one phase this close are one: the time between is that of ending and beginning a mark.
_SEAM_NS: Final = 1_000_000
# A phase that begins after this long a silence, with the sampler gone in between, is a new process's: the old one died.
_SILENCE_NS: Final = 60_000_000_000


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
    tokens: StepTokens
    flags: tuple[str, ...]


# The time at which a phase that was never closed ends: called with the rank and the time of its last line.
Horizon = Callable[[RankKey, int], int]


def rank_marks(key: RankKey, lines: MarkColumns, horizon: Horizon) -> RankMarks:
    """The marks of one rank, made from its ordered lines.

    Time belongs to the innermost open phase; a span overrides it for its duration. Marked idle time is like
    time without a mark: idle where it lies inside the run. A phase that was never closed
    ends where `horizon` says, and the rank is flagged `unclosed_attempt`.
    """
    flags: set[str] = set()
    stretches = _overlaid(_stretches(key, lines, horizon, flags), lines)
    steps = lines.kind == STEP
    return RankMarks(
        key,
        _without_seams(_busy(stretches)),
        lines.t_ns[steps],
        lines.step[steps],
        StepTokens(
            key.attempt,
            lines.step[steps],
            lines.replica[steps],
            lines.tokens[steps],
            lines.tokens_valid[steps],
        ),
        tuple(sorted(flags)),
    )


def _stretches(key: RankKey, lines: MarkColumns, horizon: Horizon, flags: set[str]) -> Stretches:
    """Walk the begin and end marks, moment by moment, with a stack of open phases."""
    stack = PhaseStack(flags)
    previous_ns = 0
    for at_ns, begun, ended in _moments(lines):
        if begun and stack.open_phases and at_ns - previous_ns > _SILENCE_NS:
            last_ns = _last_before(lines, at_ns)
            died_ns = horizon(key, last_ns)
            if at_ns - last_ns > _SILENCE_NS and died_ns < at_ns:
                stack.abandon(died_ns)
        stack.pass_moment(at_ns, begun, ended)
        previous_ns = at_ns
    if stack.open_phases:
        stack.abandon(horizon(key, int(lines.t_ns[-1])))
    table = np.array(stack.rows, np.int64).reshape(-1, 3)
    return Stretches(table[:, 0], table[:, 1], table[:, 2])


def _moments(lines: MarkColumns) -> Iterator[tuple[int, list[int], list[int]]]:
    """Each time at which phases begin or end, with their numbers."""
    marks = (lines.kind == BEGIN) | (lines.kind == END)
    rows = zip(
        lines.t_ns[marks].tolist(),
        lines.kind[marks].tolist(),
        lines.phase[marks].tolist(),
        strict=True,
    )
    for at_ns, moment in groupby(rows, key=itemgetter(0)):
        here = list(moment)
        yield (
            at_ns,
            [phase for _, kind, phase in here if kind == BEGIN],
            [phase for _, kind, phase in here if kind == END],
        )


def _last_before(lines: MarkColumns, at_ns: int) -> int:
    """The time of the last line of any kind before a time at which there is one."""
    return int(lines.t_ns[max(0, int(np.searchsorted(lines.t_ns, at_ns)) - 1)])


def _overlaid(base: Stretches, lines: MarkColumns) -> Stretches:
    """The stretches with spans laid over them; of overlapping spans the later one starts where the earlier ends."""
    spans = lines.kind == SPAN
    if not spans.any():
        return base
    span_end = lines.t_ns[spans]
    span_start = span_end - np.minimum(lines.duration_ns[spans], span_end)
    span_start[1:] = np.maximum(span_start[1:], span_end[:-1])
    edges = np.unique(np.concatenate((base.start_ns, base.end_ns, span_start, span_end)))
    over = phase_at(Stretches(span_start, span_end, lines.phase[spans]), edges[:-1])
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
