"""How far the monotonic clocks of a run's nodes lie apart: `telemetry/clocks-<attempt>.json`.

Written once an attempt by rank 0 of a run on several nodes, as measured when the ranks met. Without the file nodes'
times are only compared within a node.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ekd_nemo.errors import DataError
from ekd_nemo.records.atomic import write_text

Count = Annotated[int, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ClockOffset(_Section):
    """One node's clock beside the reference's.

    Attributes:
        ahead_ns: the node's CLOCK_MONOTONIC less the reference's at one moment; any sign.
        uncertainty_ns: half of the quickest exchange: the true value lies within +- this.
        rounds: exchanges, of which the quickest counts.
    """

    node: str
    boot_id: str
    ahead_ns: int
    uncertainty_ns: Count
    rounds: Count


class ClockOffsets(_Section):
    """The clocks of one attempt; the reference itself is among them, with 0."""

    schema_version: Literal[1] = 1
    attempt: Annotated[int, Field(ge=1)]
    t_mono_ns: Count
    offsets: Annotated[tuple[ClockOffset, ...], Field(min_length=1)]


def write_clocks(path: Path, clocks: ClockOffsets) -> None:
    """Write the file in one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, clocks.model_dump_json(indent=2) + "\n")


def read_clocks(files: Sequence[Path]) -> tuple[ClockOffsets, ...]:
    """The clocks of every attempt that measured them.

    Raises: DataError naming file and key if one is broken.
    """
    return tuple(_read(path) for path in files)


def _read(path: Path) -> ClockOffsets:
    try:
        return ClockOffsets.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(f"{path}: {where}: {first['msg']}") from None
