"""NVIDIA GPUs through NVML (`nvidia-ml-py`, imported as pynvml), found and named by UUID.

Units: the driver's own mJ and mW. Clock: CLOCK_MONOTONIC after each call, with the driver's time of
the value beside it. Counter source: field 83, mJ since the driver was loaded.
Power: field 185 (average, the one to integrate) and 186 (instant, a 25 ms window each 100 ms) in
one call. Boards without field 185 answer `nvmlDeviceGetPowerUsage`, which is an average or an
instant value by architecture; the device line says which API is read.
Covers: the whole board; on Grace-Hopper the module. MIG: instances are not told apart, which is
said.
Uncertainty: about 5 % a board, proportional and fixed for a board.
"""

import importlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final, Literal, TypeVar

from ekd_nemo.errors import UserError
from ekd_nemo.meter.cuda_order import visible_to_cuda
from ekd_nemo.meter.protocol import (
    CounterReading,
    Device,
    Fault,
    MeterUnavailableError,
    PowerReading,
    StateReading,
)
from ekd_nemo.records.clock import now
from ekd_nemo.records.lines import Source
from ekd_nemo.units import NS_PER_S

FIELD_ENERGY: Final = 83
FIELD_POWER_AVERAGE: Final = 185
FIELD_POWER_INSTANT: Final = 186
SCOPE_GPU, SCOPE_MODULE, SCOPE_MEMORY = 0, 1, 2

SUCCESS: Final = 0
NEVER_CODES: Final = frozenset({2, 3, 13})  # invalid argument, not supported, function not found
LOST_CODES: Final = frozenset({15, 16})  # GPU is lost, reset required
RETRY_LOST_NS: Final = 10 * NS_PER_S
UNCERTAINTY_PCT: Final = 5.0
AMPERE: Final = 7
GA100_BOARDS: Final = ("A100", "A30", "A800")

PowerApi = Literal["field 185", "power usage, average", "power usage, instant"]
R = TypeVar("R", PowerReading, CounterReading, StateReading)
_VALUE_MEMBERS: Final = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


class _LostError(Exception):
    """The device has gone; the message is the driver's."""


@dataclass(slots=True)
class _Gpu:
    uuid: str
    handle: Any
    power_api: PowerApi = "field 185"
    unsupported: set[str] = field(default_factory=set[str])
    lost_ns: int | None = None
    faults: list[Fault] = field(default_factory=list[Fault])


@dataclass(frozen=True, slots=True)
class _Value:
    value: int
    t_driver_us: int | None


class NvmlMeter:
    """All GPUs that this process may use, or those of `uuids`.

    Args:
        uuids: GPU UUIDs to read; None: those in CUDA_VISIBLE_DEVICES (numbers are NVML's where CUDA_DEVICE_ORDER says
            so, else the CUDA driver is asked which GPUs they are), or all that the driver shows if it is unset.
        driver: the pynvml module; None imports it.
    Raises: MeterUnavailableError without driver, library or GPU, or for a UUID that is not there; UserError where
        numbers cannot be told apart, so that no other run's GPUs are measured.
    """

    name: str = "nvml"
    source: Source = "measured"

    def __init__(
        self, *, uuids: Sequence[str] | None = None, driver: ModuleType | None = None
    ) -> None:
        """Initialise the driver library and describe each GPU."""
        self._nvml: Any = driver or _import_driver()
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise MeterUnavailableError(f"nvml: {error}") from None
        try:
            self._gpus = self._find(visible_uuids() if uuids is None else uuids)
            self._devices = [self._describe(gpu) for gpu in self._gpus]
        except (self._nvml.NVMLError, _LostError) as error:
            self._nvml.nvmlShutdown()
            raise MeterUnavailableError(f"nvml: {error}") from None
        except UserError:
            self._nvml.nvmlShutdown()
            raise
        if not self._gpus:
            self._nvml.nvmlShutdown()
            raise MeterUnavailableError("nvml: no GPU that this process may use")

    @property
    def devices(self) -> Sequence[Device]:
        """The GPUs."""
        return self._devices

    @property
    def exhausted(self) -> bool:
        """Never: a lost GPU may come back."""
        return False

    def read_power(self) -> Sequence[PowerReading | Fault]:
        """Average and instant power of each GPU, one driver call a GPU."""
        return self._each(self._power)

    def read_counters(self) -> Sequence[CounterReading | Fault]:
        """Energy since the driver was loaded."""
        return self._each(self._counter)

    def read_state(self) -> Sequence[StateReading | Fault]:
        """Utilisation, memory, temperature, fan, clocks, throttle reasons, power of the scopes."""
        return self._each(self._state)

    def close(self) -> None:
        """Let go of the driver."""
        self._nvml.nvmlShutdown()

    def _find(self, uuids: Sequence[str] | None) -> list[_Gpu]:
        nvml = self._nvml
        handles = self._visible() if uuids is None else [self._board(uuid) for uuid in uuids]
        found = {_text(nvml.nvmlDeviceGetUUID(handle)): handle for handle in handles}
        return [_Gpu(uuid, handle) for uuid, handle in found.items()]

    def _visible(self) -> list[Any]:
        """Handles of the GPUs in CUDA_VISIBLE_DEVICES, which holds numbers, or of all if it is unset."""
        nvml = self._nvml
        count = nvml.nvmlDeviceGetCount()
        indices = visible_indices()
        if indices is None or set(indices) == set(range(count)):
            indices = list(range(count))
        elif os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            return self._as_cuda_counts()
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in indices]

    def _as_cuda_counts(self) -> list[Any]:
        uuids = visible_to_cuda()
        if uuids is None:
            given = os.environ["CUDA_VISIBLE_DEVICES"]
            raise UserError(
                f"nvml: CUDA_VISIBLE_DEVICES={given} counts as CUDA does, which NVML does not know, and the CUDA "
                "driver cannot be asked; set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name GPUs by UUID"
            )
        return [self._named(uuid) for uuid in uuids]

    def _named(self, uuid: str) -> Any:
        """Handle of the board with this bare UUID, or that holds the MIG instance of that UUID."""
        try:
            return self._nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except self._nvml.NVMLError:
            return self._board(f"MIG-{uuid}")

    def _board(self, uuid: str) -> Any:
        """Handle of the board with this UUID, or that holds this MIG instance."""
        try:
            handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
            if uuid.startswith("MIG"):
                return self._nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        except self._nvml.NVMLError as error:
            raise MeterUnavailableError(f"nvml: GPU {uuid}: {error}") from None
        return handle

    def _describe(self, gpu: _Gpu) -> Device:
        nvml = self._nvml
        name = _text(nvml.nvmlDeviceGetName(gpu.handle))
        mig_mode = self._ask(gpu, "mig", lambda: nvml.nvmlDeviceGetMigMode(gpu.handle)[0])
        if mig_mode:
            detail = "split into MIG instances; all figures are the whole board's"
            gpu.faults.append(Fault(gpu.uuid, now(), "mig", detail))
        limit_mw = self._ask(
            gpu, "power_limit", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu.handle)
        )
        gpu.power_api = self._choose_power_api(gpu, name)
        window_ms = None if gpu.power_api == "power usage, instant" else 1000
        return Device(
            uuid=gpu.uuid,
            name=name,
            device_kind="gpu",
            role="accelerator",
            covers="the whole board" + (" (all MIG instances)" if mig_mode else ""),
            exclusive=True,
            period_ms=100,
            p_avg_window_ms=window_ms,
            uncertainty_pct=UNCERTAINTY_PCT,
            power_limit_mw=limit_mw,
            mig=None if mig_mode is None else bool(mig_mode),
            parameters={
                "power_api": gpu.power_api,
                "driver": _text(nvml.nvmlSystemGetDriverVersion()),
            },
        )

    def _choose_power_api(self, gpu: _Gpu, name: str) -> PowerApi:
        """Field 185 where there, else what nvmlDeviceGetPowerUsage is on this architecture."""
        if self._fields(gpu, ((FIELD_POWER_AVERAGE, SCOPE_GPU),))[0] is not None:
            return "field 185"
        arch = self._ask(
            gpu, "architecture", lambda: self._nvml.nvmlDeviceGetArchitecture(gpu.handle)
        )
        newer = arch is not None and (
            arch > AMPERE or (arch == AMPERE and not any(b in name for b in GA100_BOARDS))
        )
        return "power usage, average" if newer else "power usage, instant"

    def _each(self, read: Callable[[_Gpu], R | None]) -> list[R | Fault]:
        """`read` on every GPU that is there; one that fails costs only its own readings."""
        results: list[R | Fault] = []
        for gpu in self._gpus:
            try:
                if self._is_there(gpu):
                    reading = read(gpu)
                    if reading is not None:
                        results.append(reading)
            except _LostError as error:
                gpu.lost_ns = now().mono_ns
                gpu.faults.append(Fault(gpu.uuid, now(), "device_lost", str(error)))
            results.extend(gpu.faults)
            gpu.faults.clear()
        return results

    def _is_there(self, gpu: _Gpu) -> bool:
        """Whether to read the GPU; one that was lost is looked for again every ten seconds."""
        if gpu.lost_ns is None:
            return True
        if now().mono_ns - gpu.lost_ns < RETRY_LOST_NS:
            return False
        gpu.lost_ns = now().mono_ns
        try:
            gpu.handle = self._nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
            self._nvml.nvmlDeviceGetName(gpu.handle)
        except self._nvml.NVMLError:
            return False  # still lost, as the record says already
        gpu.lost_ns = None
        gpu.faults.append(Fault(gpu.uuid, now(), "device_back"))
        return True

    def _ask(self, gpu: _Gpu, what: str, call: Callable[[], Any]) -> int | None:
        """The driver's answer; None, with a fault beside it, where there is none."""
        if what in gpu.unsupported:
            return None
        try:
            return int(call())
        except self._nvml.NVMLError as error:
            self._note(gpu, what, int(error.value), str(error))
            return None

    def _note(self, gpu: _Gpu, what: str, code: int, message: str) -> None:
        if code in LOST_CODES:
            raise _LostError(message)
        if code in NEVER_CODES:
            gpu.unsupported.add(what)
            gpu.faults.append(Fault(gpu.uuid, now(), "not_supported", what))
        else:
            gpu.faults.append(Fault(gpu.uuid, now(), "read_error", f"{what}: {message}"))

    def _fields(self, gpu: _Gpu, wanted: Sequence[tuple[int, int]]) -> list[_Value | None]:
        """Several field values in one driver call; None for those that it does not give."""
        names = [f"field {number} scope {scope}" for number, scope in wanted]
        asked = [w for w, n in zip(wanted, names, strict=True) if n not in gpu.unsupported]
        if not asked:
            return [None] * len(wanted)
        try:
            answers = self._nvml.nvmlDeviceGetFieldValues(gpu.handle, asked)
        except self._nvml.NVMLError as error:
            self._note(gpu, "field values", int(error.value), str(error))
            return [None] * len(wanted)
        values: dict[str, _Value | None] = {}
        for (number, scope), answer in zip(asked, answers, strict=True):
            name = f"field {number} scope {scope}"
            values[name] = self._field(gpu, name, answer)
        return [values.get(name) for name in names]

    def _field(self, gpu: _Gpu, name: str, answer: Any) -> _Value | None:
        code = int(answer.nvmlReturn)
        if code != SUCCESS:
            self._note(gpu, name, code, str(self._nvml.NVMLError(code)))
            return None
        value = int(getattr(answer.value, _VALUE_MEMBERS[int(answer.valueType)]))
        return _Value(value, int(answer.timestamp) or None)

    def _power(self, gpu: _Gpu) -> PowerReading | None:
        average, instant = self._fields(
            gpu, ((FIELD_POWER_AVERAGE, SCOPE_GPU), (FIELD_POWER_INSTANT, SCOPE_GPU))
        )
        p_avg_mw = average.value if average else None
        p_inst_mw = instant.value if instant else None
        if gpu.power_api != "field 185":
            usage_mw = self._ask(
                gpu, "power usage", lambda: self._nvml.nvmlDeviceGetPowerUsage(gpu.handle)
            )
            if gpu.power_api == "power usage, average":
                p_avg_mw = usage_mw
            elif p_inst_mw is None:
                p_inst_mw = usage_mw
        if p_avg_mw is None and p_inst_mw is None:
            return None
        dated = average or instant
        return PowerReading(
            gpu.uuid, now(), p_avg_mw, p_inst_mw, dated.t_driver_us if dated else None
        )

    def _counter(self, gpu: _Gpu) -> CounterReading | None:
        (energy,) = self._fields(gpu, ((FIELD_ENERGY, SCOPE_GPU),))
        if energy is not None:
            return CounterReading(gpu.uuid, now(), energy.value, energy.t_driver_us)
        e_mj = self._ask(
            gpu, "energy", lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle)
        )
        return None if e_mj is None else CounterReading(gpu.uuid, now(), e_mj)

    def _state(self, gpu: _Gpu) -> StateReading:
        nvml, handle = self._nvml, gpu.handle
        util = self._pair(gpu, "utilisation", nvml.nvmlDeviceGetUtilizationRates, "gpu", "memory")
        memory = self._pair(gpu, "memory", nvml.nvmlDeviceGetMemoryInfo, "used", "total")
        module, of_memory = self._fields(
            gpu, ((FIELD_POWER_AVERAGE, SCOPE_MODULE), (FIELD_POWER_AVERAGE, SCOPE_MEMORY))
        )
        return StateReading(
            uuid=gpu.uuid,
            at=now(),
            util_pct=util[0],
            memory_util_pct=util[1],
            memory_used_bytes=memory[0],
            memory_total_bytes=memory[1],
            temperature_c=self._ask(
                gpu, "temperature", lambda: nvml.nvmlDeviceGetTemperature(handle, 0)
            ),
            fan_pct=self._ask(gpu, "fan", lambda: nvml.nvmlDeviceGetFanSpeed(handle)),
            clock_sm_mhz=self._ask(gpu, "sm clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, 1)),
            clock_memory_mhz=self._ask(
                gpu, "memory clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, 2)
            ),
            throttle_mask=self._ask(
                gpu, "throttle", lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
            ),
            p_module_mw=module.value if module else None,
            p_memory_mw=of_memory.value if of_memory else None,
        )

    def _pair(
        self, gpu: _Gpu, what: str, call: Callable[[Any], Any], first: str, second: str
    ) -> tuple[int | None, int | None]:
        """Two members of one answer of the driver."""
        if what in gpu.unsupported:
            return None, None
        try:
            answer = call(gpu.handle)
        except self._nvml.NVMLError as error:
            self._note(gpu, what, int(error.value), str(error))
            return None, None
        return int(getattr(answer, first)), int(getattr(answer, second))


def visible_uuids() -> list[str] | None:
    """The UUIDs in CUDA_VISIBLE_DEVICES; none if it hides all GPUs.

    Returns: None if it is unset or holds CUDA's own numbers, which say nothing here.
    """
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        return None
    entries = [e.strip() for e in os.environ["CUDA_VISIBLE_DEVICES"].split(",")]
    if entries[0] in ("", "-1"):
        return []
    return [e for e in entries if e.startswith(("GPU-", "MIG-"))] or None


def visible_indices() -> list[int] | None:
    """The numbers in CUDA_VISIBLE_DEVICES; they are NVML's only where CUDA_DEVICE_ORDER is PCI_BUS_ID.

    Returns: None if it is unset or holds anything else.
    """
    entries = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [int(e) for e in entries] if all(e.strip().isdecimal() for e in entries) else None


def _import_driver() -> ModuleType:
    """The bindings, without the warning that a second package of their name gives when imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return importlib.import_module("pynvml")


def _text(value: str | bytes) -> str:
    """Older bindings give bytes."""
    return value.decode() if isinstance(value, bytes) else value
