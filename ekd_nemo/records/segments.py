"""Parquet segments: what a sampler's JSON lines become once the file is closed; lossless and columnar.

One row group a series (kind, node, boot, sampler, device, meter, source), in the order of the lines; the list of
series is in the file's metadata, so that a reader takes only the groups and columns that it needs. Lines of other
kinds, and lines that are no records, are kept as their own text in the last group.
"""

# pyarrow ships no types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportArgumentType=false

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from errno import ENOENT
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ekd_nemo.errors import DataError
from ekd_nemo.records.lines import CounterLine, HostLine, Line, PowerLine, StateLine
from ekd_nemo.records.parse import BadLineError, decode_object, parse_object

T = TypeVar("T")
SCHEMA_VERSION: Final = 1
SUFFIX: Final = ".parquet"
TEXT: Final = "text"  # the kind of the group that holds lines as they were

SAMPLES: Final = (PowerLine, CounterLine, StateLine, HostLine)
_KEYS: Final = ("node", "boot_id", "sampler", "uuid", "meter", "source")
_METADATA: Final = b"ekd_series"


@dataclass(frozen=True, slots=True)
class SegmentSeries:
    """One row group: what its rows have in common."""

    kind: str
    node: str | None = None
    boot_id: str | None = None
    sampler: str | None = None
    uuid: str | None = None
    meter: str | None = None
    source: str | None = None


def _columns() -> list[tuple[str, Any]]:
    """Every field of a sample that is not a key, with its Arrow type."""
    found: dict[str, Any] = {}
    for kind in SAMPLES:
        for field in fields(kind):
            if field.name not in _KEYS:
                found[field.name] = pa.int64()
    return [(name, _TYPES.get(name, pa.int64())) for name in found] + [("line", pa.string())]


_TYPES: Final[Mapping[str, Any]] = {"cause": pa.string(), "cpu_util_pct": pa.float64()}
_SCHEMA: Final = pa.schema(_columns())
_TIME: Final = _SCHEMA.get_field_index("t_mono_ns")


def pack(source: Path, target: Path) -> int:
    """Write the lines of a closed JSON file as a segment, in one rename; the source is left as it is.

    Returns:
        The number of lines kept as text.

    Raises:
        OSError: if the source cannot be read or the target not be written.
    """
    groups: dict[SegmentSeries, list[Line]] = defaultdict(list)
    texts: list[str] = []
    for raw in source.read_bytes().split(b"\n"):
        if not raw.strip():
            continue
        line = _sample(raw)
        if line is None:
            texts.append(raw.decode("utf-8", "replace"))
        else:
            groups[_series_of(line)].append(line)
    tables = {series: _table(series.kind, groups[series]) for series in groups}
    write_segment(target, tables, texts)
    return len(texts)


def each_file(
    files: Iterable[Path],
    lines: Callable[[Path], Iterable[T]],
    segment: Callable[[Path], Iterable[T]],
) -> Iterator[T]:
    """What `lines` finds in files of JSON lines and `segment` in segments, file after file.

    A sampler packs and removes a part at any moment, also while a summary of its run is made: of one that has gone
    since the files were listed its segment is read, unless that was listed as well.

    Raises:
        FileNotFoundError: if there is none.
    """
    listed = list(files)
    for path in listed:
        if path.suffix == SUFFIX:
            yield from segment(path)
            continue
        try:
            yield from lines(path)
        except FileNotFoundError:
            packed = path.with_suffix(SUFFIX)
            if not packed.is_file():
                text = "no such file, and no segment in its place"
                raise FileNotFoundError(ENOENT, text, str(path)) from None
            if packed not in listed:
                yield from segment(packed)


def _sample(raw: bytes) -> Line | None:
    """The typed line, if it is one of a sample."""
    try:
        line = parse_object(decode_object(raw))
    except BadLineError:
        return None
    return line if isinstance(line, SAMPLES) else None


def _series_of(line: Line) -> SegmentSeries:
    return SegmentSeries(line.kind, *(getattr(line, name, None) for name in _KEYS))


def _table(kind: str, lines: Sequence[Line]) -> Any:
    names = [f.name for f in fields(type(lines[0])) if f.name not in _KEYS]
    return pa.table(
        {
            name: pa.array([getattr(line, name) for line in lines], _TYPES.get(name, pa.int64()))
            for name in names
        }
    )


def write_segment(
    target: Path, tables: Mapping[SegmentSeries, Any], texts: Iterable[str] = ()
) -> None:
    """Write groups of columns as a segment.

    Args:
        target: file; replaced in one rename.
        tables: Arrow tables of the columns of a kind, by series; columns that a table lacks become null.
        texts: lines to keep as they are.
    """
    kept = list(texts)
    order = sorted(tables, key=lambda s: tuple(value or "" for value in asdict(s).values()))
    series = [*order, *([SegmentSeries(TEXT)] if kept else [])]
    schema = _SCHEMA.with_metadata({_METADATA: json.dumps({
        "schema_version": SCHEMA_VERSION, "series": [asdict(s) for s in series]}).encode()})  # fmt: skip
    temporary = target.with_name(f".{target.name}.tmp")
    delta = {name: "DELTA_BINARY_PACKED" for name, kind in _columns() if kind == pa.int64()}
    try:
        with pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            use_dictionary=False,
            column_encoding=delta,
            write_statistics=["t_mono_ns"],
        ) as writer:
            for one in order:
                table = _filled(tables[one], schema)
                writer.write_table(table, row_group_size=max(1, table.num_rows))
            if kept:
                table = _filled(pa.table({"line": pa.array(kept, pa.string())}), schema)
                writer.write_table(table, row_group_size=table.num_rows)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _filled(table: Any, schema: Any) -> Any:
    """The table with all columns of a segment."""
    present = set(table.column_names)
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in present
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _one_line(error: Exception) -> str:
    """Arrow's messages may have several lines."""
    return " ".join(str(error).split())


class Segment:
    """A segment opened for reading; groups are read when asked for."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            DataError: if it is not a segment of this version.
        """
        self.path = path
        try:
            self._file = pq.ParquetFile(path)
            raw = json.loads((self._file.schema_arrow.metadata or {})[_METADATA])
            version, listed = raw["schema_version"], raw["series"]
            self.series: tuple[SegmentSeries, ...] = tuple(SegmentSeries(**one) for one in listed)
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not a segment of samples ({_one_line(error)})") from error
        if version != SCHEMA_VERSION or len(self.series) != self._file.num_row_groups:
            raise DataError(f"{path}: a segment of another version, or cut")

    def read(self, group: int, columns: Sequence[str]) -> Any:
        """Columns of one series as an Arrow table.

        Raises:
            DataError: if the group cannot be read.
        """
        try:
            table = self._file.read_row_group(group, columns=list(columns), use_threads=False)
            if any(pa.types.is_string(field.type) for field in table.schema):
                table.validate(full=True)
            return table
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(
                f"{self.path}: group {group} cannot be read ({_one_line(error)})"
            ) from error

    def rows(self, group: int) -> int:
        """The number of rows of one series."""
        return self._file.metadata.row_group(group).num_rows

    def extent(self, group: int) -> tuple[int, int]:
        """The first and last time of one series in ns."""
        statistics = self._file.metadata.row_group(group).column(_TIME).statistics
        return statistics.min, statistics.max

    def texts(self) -> Iterator[str]:
        """The lines that were kept as they were."""
        for group, series in enumerate(self.series):
            if series.kind == TEXT:
                yield from self.read(group, ["line"]).column("line").to_pylist()
