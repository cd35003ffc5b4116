"""Bulk reading of the samplers' lines: whole blocks at once as columns, anything odd line by line.

A block that pyarrow's JSON reader takes, and whose columns pass the typed reader's checks, is used as it is; any
other block goes through the typed reader. So both give the same samples and count the same bad lines, except that
of lines without energy (`state`, `host`) only the common columns are looked at.
"""

# pyarrow ships no types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportAttributeAccessIssue=false

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from ekd_nemo.records.jsonl import LINE_MAX_BYTES, ReadReport, is_torn
from ekd_nemo.records.lines import SCHEMA_VERSION, TELEMETRY_KINDS, Cause, Line, Source
from ekd_nemo.records.parse import TEXT_MAX, BadLineError, decode_object, parse_object

BLOCK_BYTES: Final = 8 << 20
DEPTH_MAX: Final = 64  # brackets that a line may open; records open a handful

_TEXTS: Final = ("kind", "node", "boot_id", "sampler", "uuid", "meter", "source", "cause")
_NUMBERS: Final = ("t_mono_ns", "t_wall_ns", "p_avg_mw", "p_inst_mw", "e_mj", "t_driver_us")
_SCHEMA: Final = pa.schema(
    [("schema_version", pa.int64())]
    + [(name, pa.string()) for name in _TEXTS]
    + [(name, pa.int64()) for name in _NUMBERS]
)
_OF_ALL: Final = ("node", "boot_id", "sampler", "t_mono_ns", "t_wall_ns")
_OF_SAMPLES: Final = ("uuid", "meter", "source")
_KINDS: Final = frozenset(kind.kind for kind in TELEMETRY_KINDS)
_AS_COLUMNS: Final = frozenset(("power", "counter", "state", "host"))


@dataclass(frozen=True, slots=True)
class Block:
    """Some lines of a file.

    Attributes:
        power, counter: tables with the columns of those lines; None if the block was read line by line.
        lines: every other line that says something about energy; all lines if read line by line.
    """

    power: Any
    counter: Any
    lines: list[Line]


def read_blocks(path: Path, report: ReadReport) -> Iterator[Block]:
    """The lines of one sampler's file, block by block; what is no record is skipped and counted.

    Raises: OSError if the file cannot be read.
    """
    for first, data in split_file(path):
        table = _table(data)
        if table is None:
            yield Block(None, None, list(_typed(path, first, data, report)))
            continue
        kind = table.column("kind")
        power = table.filter(pc.equal(kind, "power"))
        counter = table.filter(pc.equal(kind, "counter"))
        yield Block(power, counter, _others(table, data, path, first, report))


def split_file(path: Path) -> Iterator[tuple[int, bytes]]:
    """Whole lines, some megabytes at once, with the number of the first; an endless line comes cut."""
    number, rest = 1, b""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        block = min(BLOCK_BYTES, max(1, size))  # many files are small
        while chunk := file.read(block):
            data = rest + chunk
            end = data.rfind(b"\n") + 1
            if end:
                yield number, data[:end]
                number += data.count(b"\n", 0, end)
            rest = data[end:]
            if len(rest) > LINE_MAX_BYTES:
                rest = rest[: LINE_MAX_BYTES + 1]
    if rest:
        yield number, rest


def _table(data: bytes) -> Any:
    """The lines as a table, or None if any of them is not plainly a record."""
    if not _is_braced(data) or _is_deep(data):
        return None
    try:
        table = pj.read_json(
            pa.BufferReader(data),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pj.ParseOptions(
                explicit_schema=_SCHEMA, unexpected_field_behavior="ignore"
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    if table.num_rows != data.count(b"\n") or data.count(b"\n\n"):
        return None
    return table if _is_plain(table) else None


def _is_braced(data: bytes) -> bool:
    """Whether every line begins, and ends whole, as an object: Arrow's parser crashes on `null}` and on `null`."""
    lines = data.count(b"\n")
    begun = data.count(b"\n{") + data.startswith(b"{")
    return data.endswith(b"}\n") and begun == data.count(b"}\n") == lines


def _is_deep(data: bytes) -> bool:
    """Whether a line nests deeper than any record does: Arrow's parser overflows its stack there."""
    openings = data.count(b"{") + data.count(b"[")
    if openings - data.count(b"\n") <= DEPTH_MAX:
        return False
    return any(line.count(b"{") + line.count(b"[") > DEPTH_MAX for line in data.split(b"\n"))


def _is_plain(table: Any) -> bool:
    """Whether every row passes the checks that the typed reader makes of these columns."""
    if not all(table.column(name).null_count == 0 for name in ("schema_version", "kind", *_OF_ALL)):
        return False
    if set(table.column("schema_version").unique().to_pylist()) != {SCHEMA_VERSION}:
        return False
    for name in _NUMBERS:
        least = pc.min(table.column(name)).as_py()
        if least is not None and least < 0:
            return False
    try:
        texts = {name: set(table.column(name).unique().to_pylist()) for name in _TEXTS}
    except UnicodeDecodeError:
        return False
    if any(text and len(text) > TEXT_MAX for found in texts.values() for text in found):
        return False
    kinds = texts["kind"]
    return kinds <= _KINDS and _has_parts(table)


def _has_parts(table: Any) -> bool:
    """Whether power and counter lines have what they need."""
    kind = table.column("kind")
    power = table.filter(pc.equal(kind, "power"))
    counter = table.filter(pc.equal(kind, "counter"))
    for part in (power, counter):
        if any(part.column(name).null_count for name in _OF_SAMPLES):
            return False
        if not set(part.column("source").unique().to_pylist()) <= set(get_args(Source)):
            return False
    if counter.column("e_mj").null_count:
        return False
    return set(counter.column("cause").unique().to_pylist()) <= set(get_args(Cause))


def _others(table: Any, data: bytes, path: Path, first: int, report: ReadReport) -> list[Line]:
    """The lines that are neither samples nor without energy, typed; all lines are counted."""
    kinds = table.column("kind").to_pylist()
    chosen = [number for number, kind in enumerate(kinds) if kind not in _AS_COLUMNS]
    report.lines += len(kinds) - len(chosen)
    if not chosen:
        return []
    lines = data.split(b"\n")
    return [
        record
        for number in chosen
        if (record := parsed_line(path, first + number, lines[number], report)) is not None
    ]


def _typed(path: Path, first: int, data: bytes, report: ReadReport) -> Iterator[Line]:
    """The lines of a block one by one."""
    for number, line in enumerate(data.split(b"\n"), start=first):
        if line.strip():
            record = parsed_line(path, number, line, report)
            if record is not None:
                yield record


def parsed_line(path: Path, number: int, line: bytes, report: ReadReport) -> Line | None:
    """One line, counted; None if it is no record."""
    try:
        if len(line) > LINE_MAX_BYTES:
            raise BadLineError(f"longer than {LINE_MAX_BYTES} bytes")
        record = parse_object(decode_object(line))
    except BadLineError as error:
        report.note(path, number, str(error), torn=is_torn(line))
        return None
    report.lines += 1
    return record
