"""Follows files that grow: the whole lines that have come since the last look."""

import os
from pathlib import Path
from typing import BinaryIO, Final

from ekd_nemo.records.lines import Line
from ekd_nemo.records.parse import BadLineError, decode_object, parse_object

READ_BYTES: Final = 8 << 20


class Follower:
    """The lines of one telemetry or marks file, each told once.

    A line that is not yet whole waits for its end. A file that has become shorter, or another one,
    is read again from its beginning. What is no record is passed over and counted.

    Args:
        path: may be absent at first; may be set anew when the file is renamed.
        ends_bytes: when the file is longer than twice this at the first look, only so much of its
            beginning and its end is read; None reads all.
    """

    def __init__(self, path: Path, *, ends_bytes: int | None = None) -> None:
        """Nothing is read yet."""
        self.path = path
        self.skipped = 0
        self._ends_bytes = ends_bytes
        self._offset = 0
        self._inode = -1

    def new_lines(self) -> list[Line]:
        """The lines since the last call, in the file's order; none while the file is absent."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            return self._read(file)

    def _read(self, file: BinaryIO) -> list[Line]:
        stat = os.fstat(file.fileno())  # of what was opened: the path may be another file's by now
        lines: list[Line] = []
        if stat.st_ino != self._inode or stat.st_size < self._offset:
            self._inode, self._offset = stat.st_ino, 0
            if self._ends_bytes is not None and stat.st_size > 2 * self._ends_bytes:
                lines += self._parse(_whole_lines(file.read(self._ends_bytes)))
                file.seek(stat.st_size - self._ends_bytes)
                self._offset = file.tell() + len(file.readline())
        file.seek(self._offset)
        while chunk := file.read(READ_BYTES):
            whole = _whole_lines(chunk)
            if not whole:
                # what is longer than a chunk is no record; a shorter one is not yet whole
                self._offset += len(chunk) if len(chunk) == READ_BYTES else 0
                break
            self._offset += len(whole)
            file.seek(self._offset)
            lines += self._parse(whole)
        return lines

    def _parse(self, text: bytes) -> list[Line]:
        lines: list[Line] = []
        for part in text.split(b"\n"):
            if not part.strip():
                continue
            try:
                lines.append(parse_object(decode_object(part)))
            except BadLineError:
                self.skipped += 1
        return lines


def _whole_lines(text: bytes) -> bytes:
    return text[: text.rfind(b"\n") + 1]
