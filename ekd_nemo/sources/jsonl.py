"""Local JSONL files as records, read line by line; a broken line stops with its file and number."""

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, BinaryIO, cast

from ekd_nemo.errors import DataError

_EXPECTED = "a file with one JSON object a line"


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and objects of a file, in order; blank lines are skipped.

    Raises:
        DataError: for a file that cannot be read, or a line that is not a JSON object.
    """
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, _object(line, path, number)


def sampled_records(
    paths: tuple[Path, ...], count: int, seed: int
) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """A seeded sample of records of several files together, without replacement, in file order.

    Only the chosen lines are parsed. Memory: 8 bytes for each line.
    """
    numbers = [array("Q", _line_numbers(path)) for path in paths]
    total = sum(map(len, numbers))
    chosen = set(Random(f"{seed}:jsonl-sample").sample(range(total), min(count, total)))
    first = 0
    for path, lines in zip(paths, numbers, strict=True):
        wanted = {line for position, line in enumerate(lines, first) if position in chosen}
        first += len(lines)
        with _open(path) as stream:
            for number, line in enumerate(stream, 1):
                if number in wanted:
                    yield path, number, _object(line, path, number)


def _line_numbers(path: Path) -> Iterator[int]:
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); expected {_EXPECTED}"
        ) from error


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        value: Any = json.loads(line.rstrip())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f"{path}, line {number}: not valid JSON ({_reason(error)}); expected {_EXPECTED}"
        ) from error
    if not isinstance(value, dict):
        raise DataError(
            f"{path}, line {number}: not an object but {type(value).__name__}; expected {_EXPECTED}"
        )
    return cast("dict[str, Any]", value)


def _reason(error: json.JSONDecodeError | UnicodeDecodeError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    return "nested too deeply"
