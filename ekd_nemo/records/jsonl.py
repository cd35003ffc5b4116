"""Append-only JSON lines: a store that flushes each line, a reader that survives any file."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ekd_nemo.records.lines import Line
from ekd_nemo.records.parse import BadLineError, decode_object, encode, parse_object

LINE_MAX_BYTES: Final = 1 << 20
KEPT_FAULTS: Final = 100
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')


class JsonlStore:
    """Appends whole lines, one write call each time; they are the kernel's before `append` returns.

    A torn last line that a killed writer or a full disk left is closed with a newline before the
    next one, so that it costs one line only.
    """

    def __init__(self, path: Path) -> None:
        """Open for appending; the folder is made, the file never shortened."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._fd).st_size
        self._is_torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"

    def append(self, lines: Sequence[Line]) -> None:
        """Write the lines, together."""
        if lines:
            self.append_text("".join(encode(line) + "\n" for line in lines))

    def append_text(self, text: str) -> None:
        """Write text that ends in a newline.

        Raises: OSError (a full disk), perhaps with a part written; the next call closes that part.
        """
        if self._is_torn:
            text = "\n" + text
        rest = memoryview(text.encode())
        while rest:
            written = os.write(self._fd, rest)
            self._is_torn = written < len(rest)
            rest = rest[written:]

    def size_bytes(self) -> int:
        """Of the file now."""
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        """Hand the lines to the disk and close."""
        if self._fd >= 0:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        """The store itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


@dataclass(slots=True)
class ReadReport:
    """What a reader met in one or more files.

    Attributes:
        lines: good lines.
        torn: lines cut by a kill or a full disk; skipped.
        bad: other lines that are no records; skipped.
        faults: the first of those, as `file:line: reason`.
    """

    lines: int = 0
    torn: int = 0
    bad: int = 0
    faults: list[str] = field(default_factory=list[str])

    def note(self, path: Path, number: int, reason: str, torn: bool) -> None:
        """Count one skipped line."""
        if torn:
            self.torn += 1
        else:
            self.bad += 1
        if len(self.faults) < KEPT_FAULTS:
            self.faults.append(f"{path}:{number}: {reason}")


def _split(path: Path) -> Iterator[bytes]:
    """The file's lines; one that is too long comes cut, once, without the rest."""
    with path.open("rb") as file:
        while line := file.readline(LINE_MAX_BYTES):
            yield line
            while len(line) == LINE_MAX_BYTES and not line.endswith(b"\n"):
                line = file.readline(LINE_MAX_BYTES)


def is_torn(line: bytes) -> bool:
    """Whether a line that does not parse is the beginning of one: an object never closed.

    Braces are counted outside of strings: a cut may fall right behind an inner object.
    """
    if not line.startswith(b"{"):
        return False
    outside = _STRING.sub(b"", line)
    return b'"' in outside or outside.count(b"{") > outside.count(b"}")


def read_objects(path: Path, report: ReadReport) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, in order; what is none is skipped and counted in `report`.

    For files without a typed schema (`logs/train.jsonl`); empty lines are passed over.
    """
    for number, line in enumerate(_split(path), start=1):
        if not line.strip():
            continue
        try:
            raw = decode_object(line)
        except BadLineError as error:
            report.note(path, number, str(error), torn=is_torn(line))
            continue
        report.lines += 1
        yield raw


def read_lines(path: Path, report: ReadReport) -> Iterator[Line]:
    """The typed lines of a telemetry or marks file, in the file's order.

    Skips and counts what is no record. Neither sorts nor drops duplicates: the ledger does.
    Raises: OSError if the file cannot be read.
    """
    for number, line in enumerate(_split(path), start=1):
        if not line.strip():
            continue
        try:
            record = parse_object(decode_object(line))
        except BadLineError as error:
            report.note(path, number, str(error), torn=is_torn(line))
            continue
        report.lines += 1
        yield record
