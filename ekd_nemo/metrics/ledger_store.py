"""The ledger as a Parquet file beside the records that it was derived from."""

# pyarrow ships no types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownLambdaType=false

from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from ekd_nemo.errors import DataError
from ekd_nemo.metrics.ledger_rows import LedgerRow
from ekd_nemo.records.atomic import write_bytes

SCHEMA_VERSION: Final = "2"

_SCHEMA: Final = pa.schema(
    [
        pa.field("node", pa.string(), nullable=False),
        pa.field("boot_id", pa.string(), nullable=False),
        pa.field("uuid", pa.string(), nullable=False),
        pa.field("role", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("attempt", pa.int64(), nullable=False),
        pa.field("phase", pa.string()),
        pa.field("in_run", pa.bool_(), nullable=False),
        pa.field("lost", pa.bool_(), nullable=False),
        pa.field("step_first", pa.int64()),
        pa.field("step_last", pa.int64()),
        pa.field("start_ns", pa.int64(), nullable=False),
        pa.field("end_ns", pa.int64(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("energy_j", pa.float64(), nullable=False),
        pa.field("integral_j", pa.float64()),
        pa.field("counter_j", pa.float64()),
        pa.field("covered_s", pa.float64(), nullable=False),
        pa.field("sampled_s", pa.float64(), nullable=False),
        pa.field("low_j", pa.float64(), nullable=False),
        pa.field("high_j", pa.float64()),
        pa.field("apportioned", pa.bool_(), nullable=False),
    ],
    metadata={"schema_version": SCHEMA_VERSION, "made_by": "ekd metrics ledger"},
)


def write_ledger(path: Path, rows: Sequence[LedgerRow]) -> None:
    """Write the rows in one rename; the same rows give the same bytes."""
    columns = zip(*map(astuple, rows), strict=True) if rows else ([] for _ in _SCHEMA)
    arrays = [
        pa.array(list(column), field.type) for column, field in zip(columns, _SCHEMA, strict=True)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA), sink, compression="zstd")
    write_bytes(path, sink.getvalue().to_pybytes())


def read_ledger(path: Path) -> list[LedgerRow]:
    """The rows of a ledger file.

    Raises:
        DataError: if it is not one of this version.
    """
    try:
        table = pq.read_table(path)
        table.validate(full=True)  # texts that are none
        is_ours = (
            table.schema.equals(_SCHEMA)
            and (table.schema.metadata or {}).get(b"schema_version") == SCHEMA_VERSION.encode()
        )
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: not a ledger ({reason}); `ekd metrics ledger` rebuilds it"
        ) from error
    if not is_ours:
        raise DataError(f"{path}: a ledger of another version; `ekd metrics ledger` rebuilds it")
    names = [field.name for field in fields(LedgerRow)]
    columns: list[list[Any]] = [table.column(name).to_pylist() for name in names]
    return [LedgerRow(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]
