"""The part of pynvml's interface that the meter uses, answered by simulated boards.

With this folder first on PYTHONPATH, `import pynvml` in a process finds it; the environment
variable SIMULATED_NVML names the machine's file. In a test's own process, set `MACHINE` and, if
wanted, `clock`.
"""
# ruff: noqa: N802, PLW0603  # the names are pynvml's, and so is the library's one state

import ctypes
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent))
from board import AVERAGE_WINDOW_S, INSTANT_WINDOW_S, Board, Machine

INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND, LIBRARY_NOT_FOUND, GPU_IS_LOST = 2, 3, 6, 12, 15
_TEXTS = {3: "Not Supported", 6: "Not Found", 12: "NVML Shared Library Not Found"}
_TEXTS[GPU_IS_LOST] = "GPU is lost"
_UNSIGNED, _UNSIGNED_LONG_LONG = 1, 3

MACHINE: Machine | None = None
clock: Callable[[], int] = time.monotonic_ns


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return _TEXTS.get(self.value, f"error {self.value}")


class _Value(ctypes.Union):
    _fields_ = [("dVal", ctypes.c_double), ("uiVal", ctypes.c_uint), ("ullVal", ctypes.c_ulonglong)]


def _now_s() -> float:
    assert MACHINE is not None
    return MACHINE.times_s(clock())[0]


def _counter_mj(board: Board, t_s: float) -> int:
    assert MACHINE is not None
    return board.counter_mj(t_s, MACHINE.times_s(clock())[1])


def _enter(board: Board, function: str) -> float:
    """Count the call, hang or be lost, and give the time of the answer."""
    board.calls.append(function)
    while board.hang_file and Path(board.hang_file).exists():
        time.sleep(0.01)
    t_s = _now_s()
    if any(begin_s <= t_s < end_s for begin_s, end_s in board.lost):
        raise NVMLError(GPU_IS_LOST)
    if function in board.unsupported:
        raise NVMLError(NOT_SUPPORTED)
    return t_s


def nvmlInit() -> None:
    global MACHINE
    if MACHINE is None:
        if "SIMULATED_NVML" not in os.environ:
            raise NVMLError(LIBRARY_NOT_FOUND)
        MACHINE = Machine.load(Path(os.environ["SIMULATED_NVML"]))


def nvmlShutdown() -> None:
    pass


def nvmlSystemGetDriverVersion() -> str:
    return "580.00 (simulated)"


def nvmlDeviceGetCount() -> int:
    assert MACHINE is not None
    return len(MACHINE.boards)


def nvmlDeviceGetHandleByIndex(index: int) -> Board:
    assert MACHINE is not None
    if index >= len(MACHINE.boards):
        raise NVMLError(INVALID_ARGUMENT)
    return MACHINE.boards[index]


def nvmlDeviceGetHandleByUUID(uuid: str) -> Board:
    assert MACHINE is not None
    for board in MACHINE.boards:
        if uuid in (board.uuid, board.uuid.replace("GPU-", "MIG-")):
            _enter(board, "nvmlDeviceGetHandleByUUID")
            return board
    raise NVMLError(NOT_FOUND)


def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(board: Board) -> Board:
    return board


def nvmlDeviceGetUUID(board: Board) -> str:
    return board.uuid


def nvmlDeviceGetName(board: Board) -> str:
    _enter(board, "nvmlDeviceGetName")
    return board.name


def nvmlDeviceGetArchitecture(board: Board) -> int:
    return board.architecture


def nvmlDeviceGetMigMode(board: Board) -> list[int]:
    _enter(board, "nvmlDeviceGetMigMode")
    return [int(board.mig), int(board.mig)]


def nvmlDeviceGetEnforcedPowerLimit(board: Board) -> int:
    _enter(board, "nvmlDeviceGetEnforcedPowerLimit")
    return board.power_limit_mw


def nvmlDeviceGetPowerUsage(board: Board) -> int:
    return board.sensor_mw(_enter(board, "nvmlDeviceGetPowerUsage"), AVERAGE_WINDOW_S)


def nvmlDeviceGetTotalEnergyConsumption(board: Board) -> int:
    return _counter_mj(board, _enter(board, "nvmlDeviceGetTotalEnergyConsumption"))


def _field(board: Board, t_s: float, field: int, scope: int) -> SimpleNamespace:
    value, kind, code = _Value(), _UNSIGNED, 0
    assert MACHINE is not None
    dated_s, lead_s = board.refreshed_s(t_s), MACHINE.times_s(clock())[1]
    board.calls.append(f"field {field}")
    if f"field {field}" in board.unsupported or scope != 0:
        code = NOT_SUPPORTED
    elif field == 185:
        value.uiVal = board.sensor_mw(t_s, AVERAGE_WINDOW_S)
    elif field == 186:
        value.uiVal = board.sensor_mw(t_s, INSTANT_WINDOW_S)
    elif field == 83:
        value.ullVal, kind, dated_s = _counter_mj(board, t_s), _UNSIGNED_LONG_LONG, t_s
    else:
        code = NOT_SUPPORTED
    return SimpleNamespace(
        fieldId=field,
        scopeId=scope,
        timestamp=0 if code else round(1_700_000_000_000_000 + (dated_s + lead_s) * 1e6),
        latencyUsec=100,
        valueType=kind,
        nvmlReturn=code,
        value=value,
    )


def nvmlDeviceGetFieldValues(board: Board, fields: Sequence[tuple[int, int]]) -> list[object]:
    t_s = _enter(board, "nvmlDeviceGetFieldValues")
    return [_field(board, t_s, field, scope) for field, scope in fields]


def nvmlDeviceGetUtilizationRates(board: Board) -> SimpleNamespace:
    t_s = _enter(board, "nvmlDeviceGetUtilizationRates")
    if board.mig:
        raise NVMLError(NOT_SUPPORTED)
    return SimpleNamespace(gpu=min(round(board.power_w(t_s) / 7), 100), memory=10)


def nvmlDeviceGetMemoryInfo(board: Board) -> SimpleNamespace:
    _enter(board, "nvmlDeviceGetMemoryInfo")
    return SimpleNamespace(used=40 << 30, total=80 << 30, free=40 << 30)


def nvmlDeviceGetTemperature(board: Board, _sensor: int) -> int:
    _enter(board, "nvmlDeviceGetTemperature")
    return 55


def nvmlDeviceGetFanSpeed(board: Board) -> int:
    _enter(board, "nvmlDeviceGetFanSpeed")
    raise NVMLError(NOT_SUPPORTED)  # SXM boards have no fan


def nvmlDeviceGetClockInfo(board: Board, kind: int) -> int:
    _enter(board, "nvmlDeviceGetClockInfo")
    return {1: 1980, 2: 2619}[kind]


def nvmlDeviceGetCurrentClocksEventReasons(board: Board) -> int:
    _enter(board, "nvmlDeviceGetCurrentClocksEventReasons")
    return 4
