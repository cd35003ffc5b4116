"""The lines of all ranks as columns, one table a rank; repeated lines once, in order of time.

The marks API writes its lines in one fixed form, which one regular expression reads some ten times faster than JSON;
a block with any other line goes through the typed reader.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from ekd_nemo.metrics.columns import parsed_line, split_file
from ekd_nemo.metrics.curve import Ints
from ekd_nemo.metrics.devices import Clock
from ekd_nemo.metrics.phase_stack import PHASE_NUMBER
from ekd_nemo.records.jsonl import ReadReport
from ekd_nemo.records.lines import MARK_KINDS, MarkLine, PhaseBegin, PhaseEnd, Span, StepMark
from ekd_nemo.records.parse import BadLineError, decode_object, parse_object

BEGIN, END, STEP, SPAN = range(4)
_CODES: Final = {PhaseBegin.kind: BEGIN, PhaseEnd.kind: END, StepMark.kind: STEP, Span.kind: SPAN}
assert len(_CODES) == len(MARK_KINDS)


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


class MarkColumns(NamedTuple):
    """The lines of one rank, in order of time; -1 where a line has no such value.

    Attributes:
        t_ns: [N] monotonic times.
        kind: [N] BEGIN, END, STEP or SPAN.
        phase: [N] index into `PHASES`.
        step, tokens, tokens_valid, replica: [N] of steps; the replica is the index on the data axis.
        duration_ns: [N] of spans.
    """

    t_ns: Ints
    kind: Ints
    phase: Ints
    step: Ints
    tokens: Ints
    tokens_valid: Ints
    replica: Ints
    duration_ns: Ints


Row = tuple[int, int, int, int, int, int, int, int]
Rows = dict[RankKey, list[Row]]

# An integer below 9e18, so that int64 holds it; the typed reader sees to what lies above.
_DIGITS: Final = rb"0|[1-8][0-9]{0,18}|9[0-9]{0,17}"
_NUMBER: Final = rb"(" + _DIGITS + rb")"
_LINE: Final = re.compile(
    rb'^{"schema_version":1,"kind":"([a-z_]+)","t_mono_ns":'
    + _NUMBER
    + rb',"t_wall_ns":(?:'
    + _DIGITS
    + rb'),([^\n]*?),("rank":[^\n]*})\n',
    re.MULTILINE,
)
_STEP_BODY: Final = re.compile(
    rb'"step":' + _NUMBER + rb',"tokens":' + _NUMBER + rb',"tokens_valid":(null|' + _DIGITS + rb")"
)
_SPAN_BODY: Final = re.compile(
    rb'"phase":"([a-z_]+)","step":' + _NUMBER + rb',"duration_ns":' + _NUMBER
)
_PHASE_BODIES: Final = {
    f'"phase":"{phase}"'.encode(): number for phase, number in PHASE_NUMBER.items()
}
_TAIL_KEYS: Final = ("rank", "attempt", "node", "boot_id", "uuids", "parallel")


def read_marks(files: Iterable[Path], report: ReadReport) -> dict[RankKey, MarkColumns]:
    """The lines of all ranks by process; what is no record is skipped and counted.

    Raises: OSError if a file cannot be read.
    """
    rows: Rows = defaultdict(list)
    for path in files:
        tails: dict[bytes, tuple[RankKey, int] | None] = {}
        for first, data in split_file(path):
            found = _fixed_rows(data, tails)
            if found is None:
                found = _typed_rows(path, first, data, report)
            else:
                report.lines += data.count(b"\n")
            for key, part in found.items():
                rows[key].extend(part)
    return {key: _in_order(np.array(rows[key], np.int64)) for key in sorted(rows)}


def _in_order(table: Ints) -> MarkColumns:
    """Rows by time, those of one time in the order of the file, repeated ones once."""
    _, kept = np.unique(table[:, :4], axis=0, return_index=True)
    table = table[np.sort(kept)]
    table = table[np.argsort(table[:, 0], kind="stable")]
    return MarkColumns(*(column.copy() for column in table.T))


def _fixed_rows(data: bytes, tails: dict[bytes, tuple[RankKey, int] | None]) -> Rows | None:
    """The rows of a block in the fixed form; None if any line has another."""
    lines = _LINE.findall(data)
    if len(lines) != data.count(b"\n") or not data.endswith(b"\n"):
        return None
    rows: Rows = defaultdict(list)
    previous, replica, part = b"", 0, list[Row]()
    for kind, at, body, tail in lines:
        if tail != previous:
            if tail not in tails:
                tails[tail] = _tail(tail)
            who = tails[tail]
            if who is None:
                return None
            previous, replica, part = tail, who[1], rows[who[0]]
        row = _row(kind, int(at), body, replica)
        if row is None:
            return None
        part.append(row)
    return rows


def _tail(tail: bytes) -> tuple[RankKey, int] | None:
    """Who marked, and the index on the data axis; None if that is not plainly there."""
    try:
        raw = decode_object(b"{" + tail)
        line = parse_object({**_PROBE, **raw})
    except BadLineError:
        return None
    if tuple(raw) != _TAIL_KEYS or not isinstance(line, MarkLine):
        return None
    return _key_of(line), line.parallel.get("data", 0)


_PROBE: Final = {
    "schema_version": 1,
    "kind": PhaseEnd.kind,
    "phase": "idle",
    "t_mono_ns": 0,
    "t_wall_ns": 0,
}


def _key_of(line: MarkLine) -> RankKey:
    return RankKey(line.node, line.boot_id, line.attempt, line.rank, tuple(sorted(set(line.uuids))))


def _row(kind: bytes, at_ns: int, body: bytes, replica: int) -> Row | None:
    """One line's values; None if its body is not in the fixed form."""
    if kind in (b"phase_begin", b"phase_end"):
        phase = _PHASE_BODIES.get(body)
        code = BEGIN if kind == b"phase_begin" else END
        return None if phase is None else (at_ns, code, phase, -1, -1, -1, replica, -1)
    if kind == b"step":
        step = _STEP_BODY.fullmatch(body)
        if step is None:
            return None
        number, tokens, valid = step.groups()
        known = -1 if valid == b"null" else int(valid)
        return at_ns, STEP, -1, int(number), int(tokens), known, replica, -1
    span = _SPAN_BODY.fullmatch(body) if kind == b"span" else None
    phase = None if span is None else _PHASE_BODIES.get(b'"phase":"' + span[1] + b'"')
    if span is None or phase is None:
        return None
    return at_ns, SPAN, phase, int(span[2]), -1, -1, replica, int(span[3])


def _typed_rows(path: Path, first: int, data: bytes, report: ReadReport) -> Rows:
    """The rows of a block by the typed reader."""
    rows: Rows = defaultdict(list)
    for number, text in enumerate(data.split(b"\n"), start=first):
        line = parsed_line(path, number, text, report) if text.strip() else None
        if isinstance(line, MarkLine):
            rows[_key_of(line)].append(_row_of(line))
    return rows


def _row_of(line: MarkLine) -> Row:
    phase = PHASE_NUMBER[line.phase] if isinstance(line, PhaseBegin | PhaseEnd | Span) else -1
    step = line.step if isinstance(line, StepMark | Span) else -1
    tokens, valid = -1, -1
    if isinstance(line, StepMark):
        tokens = line.tokens
        valid = -1 if line.tokens_valid is None else line.tokens_valid
    duration = line.duration_ns if isinstance(line, Span) else -1
    replica = line.parallel.get("data", 0)
    return line.t_mono_ns, _CODES[line.kind], phase, step, tokens, valid, replica, duration
