"""NVIDIA GPUs through DCGM's own Python bindings, from the host engine that runs on the node.

Units: field 155 average and 157 instant power in W, field 156 energy in mJ. Clock: CLOCK_MONOTONIC after each call,
with the host engine's time of the value beside it. Counter source: field 156, mJ since the driver was loaded.
Fields are asked for by number; their names have changed between versions.
Covers: the whole board; on Grace-Hopper the module. MIG: only the board's figures are read.
Not covered: starting a host engine (one that is ours would compete with the site's for the driver).
Source: NVIDIA/DCGM, testing/python3/{DcgmHandle,DcgmGroup,DcgmFieldGroup,dcgm_field_helpers}.py.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ekd_nemo.meter.nvml import UNCERTAINTY_PCT, visible_uuids
from ekd_nemo.meter.protocol import (
    CounterReading,
    Device,
    Fault,
    MeterUnavailableError,
    PowerReading,
    StateReading,
)
from ekd_nemo.records.clock import Instant, now
from ekd_nemo.records.lines import Source
from ekd_nemo.units import MW_PER_W

PATH_VARIABLE: Final = "DCGM_BINDINGS_PATH"
FOLDERS: Final = (
    Path("/usr/share/datacenter-gpu-manager-4/bindings/python3"),
    Path("/usr/local/dcgm/bindings/python3"),
)
HOST: Final = "localhost"
POWER, ENERGY, INSTANT = 155, 156, 157
TEMPERATURE, FAN, SM_CLOCK, MEMORY_CLOCK, CLOCK_REASONS = 150, 191, 100, 101, 112
UTIL, MEMORY_UTIL, MEMORY_TOTAL, MEMORY_USED = 203, 204, 250, 252
FAST: Final = (POWER, ENERGY, INSTANT)
SLOW: Final = (
    TEMPERATURE, FAN, SM_CLOCK, MEMORY_CLOCK, CLOCK_REASONS, UTIL, MEMORY_UTIL, MEMORY_TOTAL, MEMORY_USED
)  # fmt: skip
FAST_PERIOD_US: Final = 100_000
SLOW_PERIOD_US: Final = 1_000_000
KEPT_S: Final = 10.0
MIB: Final = 1 << 20


class DcgmBindingsMeter:
    """The GPUs of the node's host engine.

    Args:
        uuids: GPUs to read; None: those in CUDA_VISIBLE_DEVICES if it holds UUIDs, else all.
        host: where the host engine listens.
    Raises: MeterUnavailableError without bindings or host engine, for a UUID that it does not know, or without any GPU.
    """

    name: str = "dcgm"
    source: Source = "measured"
    exhausted: bool = False

    def __init__(self, *, uuids: Sequence[str] | None = None, host: str = HOST) -> None:
        """Connect, and have the host engine watch the fields."""
        pydcgm, structs = _import_bindings()
        self._error: type[Exception] = structs.DCGMError
        try:
            self._handle: Any = pydcgm.DcgmHandle(ipAddress=host)
            self._gpus = self._choose(visible_uuids() if uuids is None else uuids, host)
            self._group: Any = pydcgm.DcgmGroup(
                self._handle, groupName=f"ekd-{os.getpid()}", groupType=structs.DCGM_GROUP_EMPTY
            )
            for gpu in self._gpus:
                self._group.AddGpu(gpu)
            self._fast = self._watch(pydcgm, "power", FAST, FAST_PERIOD_US)
            self._slow = self._watch(pydcgm, "state", SLOW, SLOW_PERIOD_US)
            self._handle.GetSystem().UpdateAllFields(True)
        except self._error as error:
            raise MeterUnavailableError(f"dcgm: host engine on {host}: {error}") from None
        self._host = host
        self._counted: dict[str, int] = {}
        self._said: set[tuple[str, str]] = set()

    def _choose(self, wanted: Sequence[str] | None, host: str) -> dict[int, tuple[str, str]]:
        """UUID and name by the host engine's number of each GPU that is wanted."""
        discovery = self._handle.GetSystem().discovery
        known: dict[int, tuple[str, str]] = {}
        for gpu in discovery.GetAllGpuIds():
            names = discovery.GetGpuAttributes(gpu).identifiers
            known[int(gpu)] = (_text(names.uuid), _text(names.deviceName))
        uuids = {uuid for uuid, _ in known.values()}
        missing = sorted(set(wanted or ()) - uuids)
        if missing:
            raise MeterUnavailableError(
                f"dcgm: host engine on {host} does not know GPU {missing[0]}"
            )
        chosen = {
            gpu: names for gpu, names in known.items() if wanted is None or names[0] in wanted
        }
        if not chosen:
            raise MeterUnavailableError(f"dcgm: host engine on {host}: no GPU to read")
        return chosen

    def _watch(self, pydcgm: Any, name: str, fields: Sequence[int], period_us: int) -> Any:
        group = pydcgm.DcgmFieldGroup(self._handle, f"ekd-{name}-{os.getpid()}", list(fields))
        self._group.samples.WatchFields(group, period_us, KEPT_S, 0)
        return group

    @property
    def devices(self) -> Sequence[Device]:
        """The GPUs."""
        return [
            Device(
                uuid=uuid,
                name=name,
                device_kind="gpu",
                role="accelerator",
                covers="the whole board",
                exclusive=True,
                period_ms=FAST_PERIOD_US // 1000,
                p_avg_window_ms=1000,
                uncertainty_pct=UNCERTAINTY_PCT,
                parameters={"dcgm": f"host engine on {self._host}", "fields": list(FAST)},
            )
            for uuid, name in self._gpus.values()
        ]

    def read_power(self) -> Sequence[PowerReading | Fault]:
        """Average and instant power of each GPU; the host engine's time of the value tells repeats."""
        values, at, faults = self._latest(self._fast)
        readings: list[PowerReading | Fault] = list(faults)
        if values is None:
            return readings
        for gpu, (uuid, _) in self._gpus.items():
            average, instant = (values.get(gpu, {}).get(field) for field in (POWER, INSTANT))
            readings += self._absent(uuid, {POWER: average, INSTANT: instant}, at)
            if average is None and instant is None:
                continue
            dated = average or instant
            t_driver_us = None if dated is None else dated[1]
            readings.append(
                PowerReading(
                    uuid, at, _whole(average, MW_PER_W), _whole(instant, MW_PER_W), t_driver_us
                )
            )
        return readings

    def read_counters(self) -> Sequence[CounterReading | Fault]:
        """Energy since the driver was loaded, where the host engine has a new value."""
        values, at, faults = self._latest(self._fast)
        readings: list[CounterReading | Fault] = list(faults)
        for gpu, (uuid, _) in self._gpus.items():
            energy = (values or {}).get(gpu, {}).get(ENERGY)
            if values is not None:
                readings += self._absent(uuid, {ENERGY: energy}, at)
            if energy is not None and energy[1] != self._counted.get(uuid):
                self._counted[uuid] = energy[1]
                readings.append(CounterReading(uuid, at, round(energy[0]), energy[1]))
        return readings

    def read_state(self) -> Sequence[StateReading | Fault]:
        """Utilisation, memory, temperature, fan, clocks and why they are held down."""
        values, at, faults = self._latest(self._slow)
        readings: list[StateReading | Fault] = list(faults)
        for gpu, (uuid, _) in self._gpus.items() if values is not None else ():
            of_gpu = (values or {}).get(gpu, {})
            readings.append(
                StateReading(
                    uuid=uuid,
                    at=at,
                    util_pct=_whole(of_gpu.get(UTIL)),
                    memory_util_pct=_whole(of_gpu.get(MEMORY_UTIL)),
                    memory_used_bytes=_whole(of_gpu.get(MEMORY_USED), MIB),
                    memory_total_bytes=_whole(of_gpu.get(MEMORY_TOTAL), MIB),
                    temperature_c=_whole(of_gpu.get(TEMPERATURE)),
                    fan_pct=_whole(of_gpu.get(FAN)),
                    clock_sm_mhz=_whole(of_gpu.get(SM_CLOCK)),
                    clock_memory_mhz=_whole(of_gpu.get(MEMORY_CLOCK)),
                    throttle_mask=_whole(of_gpu.get(CLOCK_REASONS)),
                )
            )
        return readings

    def close(self) -> None:
        """End the watches and the connection."""
        self._handle.Shutdown()

    def _latest(
        self, group: Any
    ) -> tuple[dict[int, dict[int, tuple[float, int]]] | None, Instant, list[Fault]]:
        """Value and time [us] by GPU and field, blank ones left out; None and a fault where that fails."""
        try:
            found = self._group.samples.GetLatest(group).values
        except self._error as error:
            return None, now(), [Fault(None, now(), "read_error", f"dcgm: {error}")]
        values: dict[int, dict[int, tuple[float, int]]] = {}
        for gpu, fields in found.items():
            for field, series in fields.items():
                last = series[-1]
                if not last.isBlank and float(last.value) >= 0:
                    values.setdefault(int(gpu), {})[int(field)] = (float(last.value), int(last.ts))
        return values, now(), []

    def _absent(
        self, uuid: str, asked: dict[int, tuple[float, int] | None], at: Instant
    ) -> list[Fault]:
        """A fault, once, for each field that the host engine gives no value of."""
        faults: list[Fault] = []
        for field, value in asked.items():
            what = f"field {field}"
            if value is None and (uuid, what) not in self._said:
                self._said.add((uuid, what))
                faults.append(Fault(uuid, at, "not_supported", what))
        return faults


def _whole(value: tuple[float, int] | None, factor: int = 1) -> int | None:
    return None if value is None else round(value[0] * factor)


def _text(value: str | bytes) -> str:
    """Structures of older bindings hold bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _import_bindings() -> tuple[Any, Any]:
    """The modules `pydcgm` and `dcgm_structs`, which DCGM's packages put beside the library, not on Python's path.

    Raises: MeterUnavailableError where they are not, or cannot load the library.
    """
    given = os.environ.get(PATH_VARIABLE)
    folders = [Path(given)] if given else list(FOLDERS)
    found = next((folder for folder in folders if (folder / "pydcgm.py").is_file()), None)
    if found is None:
        raise MeterUnavailableError(
            f"dcgm: no bindings in {' or '.join(map(str, folders))}; {PATH_VARIABLE} names their folder"
        )
    if str(found) not in sys.path:
        sys.path.append(str(found))
    try:
        return importlib.import_module("pydcgm"), importlib.import_module("dcgm_structs")
    except (ImportError, OSError) as error:
        raise MeterUnavailableError(f"dcgm: bindings in {found}: {error}") from None
