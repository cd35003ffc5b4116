"""`telemetry.jsonl` of the earlier framework: one line a tick with all GPUs of the node."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from ekd_nemo.errors import DataError
from ekd_nemo.metrics.imports.foreign import ForeignPower, Sample, epoch_ns
from ekd_nemo.records.jsonl import ReadReport, read_objects

_MIB: Final = 1 << 20
# Their field, the name in a state line, and what one of theirs is in ours.
_STATE: Final = (
    ("gpu_utilization_percent", "util_pct", 1),
    ("memory_utilization_percent", "memory_util_pct", 1),
    ("memory_used_MB", "memory_used_bytes", _MIB),
    ("memory_total_MB", "memory_total_bytes", _MIB),
    ("temperature_C", "temperature_c", 1),
    ("fan_speed_percent", "fan_pct", 1),
)
_LARGEST: Final = 1e15
_LARGEST_COUNTER: Final = (
    1e18  # a thousand times a year's millijoules of a busy board lies above 1e16
)


def read_earlier(path: Path) -> ForeignPower:
    """The samples of one file; lines and values that make no sense are left out and counted.

    A power or counter of 0 is what that framework wrote for a value it did not get: it is left out as well.

    Raises:
        DataError: if no sample is left.
    """
    report = ReadReport()
    found = ForeignPower()
    for line in read_objects(path, report):
        try:
            at_ns = epoch_ns(str(line.get("timestamp")))
        except ValueError:
            found.drop("lines without a time with zone")
            continue
        gpus = line.get("gpus")
        if not isinstance(gpus, list):
            found.drop("lines without gpus")
            continue
        for gpu in cast("list[Any]", gpus):
            _take(found, at_ns, gpu)
    found.drop("torn lines", report.torn)
    found.drop("bad lines", report.bad)
    if not any(s.power_w or s.energy_mj for samples in found.devices.values() for s in samples):
        raise DataError(
            f"{path}: holds no power sample: expected lines with timestamp and gpus[].power_watts"
        )
    return found


def _take(found: ForeignPower, at_ns: int, gpu: Any) -> None:
    """One GPU of one line."""
    index = cast("Mapping[str, Any]", gpu).get("gpu_index") if isinstance(gpu, Mapping) else None
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        found.drop("entries without gpu_index")
        return
    values = cast("Mapping[str, Any]", gpu)
    device = str(index)
    name = values.get("gpu_name")
    if isinstance(name, str):
        found.names[device] = name
    sample = Sample(
        at_ns,
        _above_zero(found, values, "power_watts"),
        _above_zero(found, values, "energy_mJ", _LARGEST_COUNTER),
    )
    for theirs, ours, scale in _STATE:
        number = _number(values.get(theirs))
        if number is not None and number >= 0:
            sample.state[ours] = round(number * scale)
    found.devices[device].append(sample)


def _above_zero(
    found: ForeignPower, values: Mapping[str, Any], key: str, largest: float = _LARGEST
) -> float | None:
    number = _number(values.get(key), largest)
    if number is None or number <= 0:
        found.drop(f"{key} missing or 0")
        return None
    return number


def _number(value: object, largest: float = _LARGEST) -> float | None:
    """A finite number of a sane size; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < largest and math.isfinite(value) else None
