"""Power logs as CSV with a time and a power column, as nvidia-smi and wall meters write them."""

import csv
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ekd_nemo.errors import DataError
from ekd_nemo.metrics.imports.foreign import ForeignPower, Sample, epoch_ns

_TIME: Final = (
    "timestamp",
    "time",
    "t",
    "time_s",
    "t_s",
    "seconds",
    "elapsed_s",
    "datetime",
    "date",
)
_POWER: Final = (
    "power",
    "power_w",
    "power_watts",
    "watts",
    "power.draw [w]",
    "power.draw",
    "power [w]",
    "w",
)
_MILLI: Final = ("power_mw", "power [mw]", "milliwatts", "mw")
_DEVICE: Final = (
    "uuid",
    "gpu_uuid",
    "index",
    "gpu",
    "gpu_index",
    "device",
    "pci.bus_id",
    "gpu_bus_id",
    "serial",
    "gpu_serial",
    "name",
)


def read_power_csv(path: Path) -> ForeignPower:
    """The samples of one file. Times are seconds from anywhere, or dates (UTC where they have no zone).

    Raises:
        DataError: without a header that names a time and a power column, or without a sample.
    """
    found = ForeignPower()
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        header = [name.strip().lower() for name in _cells(next(file, ""))]
        time, power = _column(header, _TIME), _column(header, (*_POWER, *_MILLI))
        device = _column(header, _DEVICE)
        if time is None or power is None:
            raise DataError(
                f"{path}:1: needs a time column ({', '.join(_TIME[:4])}, ...) and a power column "
                f"({', '.join(_POWER[:4])}, {_MILLI[0]}, ...), found: {', '.join(header) or 'nothing'}"
            )
        scale = 1e-3 if header[power] in _MILLI else 1.0
        for line in file:
            _take(found, _cells(line), (time, power, device), scale)
    if not found.devices:
        raise DataError(f"{path}: holds no line with a time and a power")
    return found


def _cells(line: str) -> list[str]:
    """The cells of a line; none where it is no CSV. A quote that is never closed ends with its line."""
    try:
        return next(csv.reader([line]), list[str]())
    except csv.Error:
        return []


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    """The column of the first name that there is."""
    return next((header.index(name) for name in names if name in header), None)


def _take(
    found: ForeignPower, row: Sequence[str], columns: tuple[int, int, int | None], scale: float
) -> None:
    time, power, device = columns
    try:
        at_ns = _time_ns(row[time].strip())
        watts = float(row[power].strip().removesuffix("W").strip()) * scale
        name = "0" if device is None else row[device].strip()
    except (ValueError, IndexError):
        found.drop("lines without a time and a power")
        return
    if not 0 <= watts < math.inf:
        found.drop("powers below 0 or not finite")
        return
    found.devices[name].append(Sample(at_ns, watts))


def _time_ns(text: str) -> int:
    """Seconds or a date as nanoseconds."""
    try:
        seconds = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text.replace("/", "-"))
        return epoch_ns((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat())
    if not 0 <= seconds < 9e9:  # beyond that int64 holds no nanoseconds
        raise ValueError(text)
    return round(seconds * 1e9)
