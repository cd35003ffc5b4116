"""The part of DCGM's `pydcgm` that the meter uses, answered by simulated boards.

The host engine renews watched fields at their period; GetLatest gives what it saw last, with its own time.
"""
# ruff: noqa: N802, N803  # the names are DCGM's

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent.parent / "simulated_nvml"))
sys.path.insert(0, str(Path(__file__).parent))
from board import AVERAGE_WINDOW_S, INSTANT_WINDOW_S, Board
from dcgm_structs import DCGMError

BOARDS: list[Board] = []
is_down = False
BLANK_INT64 = 0x7FFFFFFFFFFFFFF0  # DCGM's "no value"


def clock() -> float:
    """Seconds since the script began; tests put another in its place."""
    return 0.0


class DcgmHandle:
    def __init__(self, handle: object = None, ipAddress: str | None = None) -> None:
        if is_down:
            raise DCGMError("The connection to the host engine is not valid any longer")
        self.is_open = True

    def GetSystem(self) -> SimpleNamespace:
        discovery = SimpleNamespace(
            GetAllGpuIds=lambda: list(range(len(BOARDS))),
            GetGpuAttributes=lambda gpu: SimpleNamespace(
                identifiers=SimpleNamespace(
                    uuid=BOARDS[gpu].uuid.encode(), deviceName=BOARDS[gpu].name
                )
            ),
        )
        return SimpleNamespace(discovery=discovery, UpdateAllFields=lambda waitForUpdate: None)

    def Shutdown(self) -> None:
        self.is_open = False


class DcgmFieldGroup:
    def __init__(self, dcgmHandle: DcgmHandle, name: str, fieldIds: list[int]) -> None:
        self.fieldIds = fieldIds
        self.period_s = 0.0


class DcgmGroup:
    def __init__(self, dcgmHandle: DcgmHandle, groupName: str, groupType: int) -> None:
        self.gpus: list[int] = []
        self.samples = self

    def AddGpu(self, gpuId: int) -> None:
        self.gpus.append(gpuId)

    def WatchFields(
        self, fieldGroup: DcgmFieldGroup, updateFreq: int, maxKeepAge: float, maxKeepSamples: int
    ) -> None:
        fieldGroup.period_s = updateFreq / 1e6

    def GetLatest(self, fieldGroup: DcgmFieldGroup) -> SimpleNamespace:
        if is_down:
            raise DCGMError("The connection to the host engine is not valid any longer")
        t_s = clock() // fieldGroup.period_s * fieldGroup.period_s
        values = {
            gpu: {field: [_value(BOARDS[gpu], field, t_s)] for field in fieldGroup.fieldIds}
            for gpu in self.gpus
        }
        return SimpleNamespace(values=values)


def _value(board: Board, field: int, t_s: float) -> SimpleNamespace:
    value: float = BLANK_INT64
    if f"field {field}" not in board.unsupported:
        match field:
            case 155:
                value = board.sensor_mw(t_s, AVERAGE_WINDOW_S) / 1000
            case 157:
                value = board.sensor_mw(t_s, INSTANT_WINDOW_S) / 1000
            case 156:
                value = board.counter_mj(t_s)
            case 203:
                value = 97
            case 252:
                value = 1024
            case 191:
                pass  # SXM boards have no fan
            case _:
                value = 55
    ts = round((1_700_000_000 + t_s) * 1e6)
    return SimpleNamespace(ts=ts, fieldId=field, value=value, isBlank=value == BLANK_INT64)
