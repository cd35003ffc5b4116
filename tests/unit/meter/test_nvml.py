"""The NVML meter against simulated boards."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest

from ekd_nemo.errors import UserError
from ekd_nemo.meter import cuda_order, nvml
from ekd_nemo.meter.nvml import NvmlMeter
from ekd_nemo.meter.protocol import (
    CounterReading,
    Fault,
    MeterUnavailableError,
    PowerReading,
    StateReading,
)
from tests.unit.meter.simulated_nvml import pynvml as simulated
from tests.unit.meter.simulated_nvml.board import Board as PackagedBoard

Board = simulated.Board
FLAT = ((0.0, 300.0),)
RAMP = ((0.0, 100.0), (5.0, 100.0), (15.0, 600.0), (20.0, 150.0))


class VirtualClock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.t_ns = 0

    def __call__(self) -> int:
        return self.t_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualClock]:
    clock = VirtualClock()
    monkeypatch.setattr(simulated, "clock", clock)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield clock
    simulated.MACHINE = None


def open_meter(*boards: PackagedBoard, uuids: list[str] | None = None) -> NvmlMeter:
    simulated.MACHINE = simulated.Machine(list(boards), 0)
    driver: ModuleType = simulated
    return NvmlMeter(uuids=uuids, driver=driver)


def faults(readings: object) -> list[tuple[str, str | None]]:
    assert isinstance(readings, list)
    return [(r.event, r.detail) for r in readings if isinstance(r, Fault)]


def test_integral_and_counter_agree_with_the_script(clock: VirtualClock) -> None:
    board = Board(uuid="GPU-a", curve=RAMP)
    meter = open_meter(board)
    samples: list[tuple[float, int]] = []
    counters: list[int] = []
    for tick in range(601):
        clock.t_ns = 20_000_000 + tick * 100_000_000
        if tick % 10 == 0:
            (counter,) = meter.read_counters()
            assert isinstance(counter, CounterReading)
            counters.append(counter.e_mj)
        power = meter.read_power()[-1]
        assert isinstance(power, PowerReading)
        assert power.p_avg_mw is not None
        samples.append((clock.t_ns / 1e9, power.p_avg_mw))
    integral_j = sum((t1 - t0) * (p0 + p1) / 2000 for (t0, p0), (t1, p1) in pairwise(samples))
    truth_j = board.energy_j(samples[0][0], samples[-1][0])
    assert (counters[-1] - counters[0]) / 1000 == pytest.approx(truth_j, rel=1e-5)
    # the 1 s average lags: the integral misses half a second's change of power at the edges
    assert integral_j == pytest.approx(truth_j, rel=0.01)


def test_counter_is_read_only_when_asked_for(clock: VirtualClock) -> None:
    board = Board(uuid="GPU-a", curve=FLAT)
    meter = open_meter(board)
    board.calls.clear()
    for _ in range(10):
        meter.read_power()
    assert board.calls.count("field 83") == 0
    assert board.calls.count("nvmlDeviceGetFieldValues") == 10
    assert set(board.calls) == {"nvmlDeviceGetFieldValues", "field 185", "field 186"}


def test_missing_values_are_none_and_said_once(clock: VirtualClock) -> None:
    meter = open_meter(Board(uuid="GPU-a", curve=FLAT, unsupported=["field 186"]))
    first, again = meter.read_power(), meter.read_power()
    (reading,) = [r for r in first if isinstance(r, PowerReading)]
    assert reading.p_inst_mw is None
    assert reading.p_avg_mw == 300_000
    assert ("not_supported", "field 186 scope 0") in faults(first)
    assert faults(again) == []
    states = meter.read_state()
    (state,) = [r for r in states if isinstance(r, StateReading)]
    assert (state.fan_pct, state.p_module_mw) == (None, None)
    assert (state.util_pct, state.temperature_c, state.throttle_mask) == (43, 55, 4)
    assert ("not_supported", "fan") in faults(states)
    assert faults(meter.read_state()) == []


@pytest.mark.parametrize(
    ("architecture", "name", "is_average"),
    [(8, "NVIDIA L40S", True), (7, "NVIDIA A10", True), (7, "NVIDIA A100-SXM4-80GB", False)],
)
def test_boards_without_field_185(
    clock: VirtualClock, architecture: int, name: str, is_average: bool
) -> None:
    board = Board(
        uuid="GPU-a",
        curve=FLAT,
        name=name,
        architecture=architecture,
        unsupported=["field 185", "field 186"],
    )
    meter = open_meter(board)
    (reading,) = [r for r in meter.read_power() if isinstance(r, PowerReading)]
    expected = (300_000, None) if is_average else (None, 300_000)
    assert (reading.p_avg_mw, reading.p_inst_mw) == expected
    assert meter.devices[0].p_avg_window_ms == (1000 if is_average else None)


def test_no_power_at_all_gives_no_reading(clock: VirtualClock) -> None:
    broken = ["field 185", "field 186", "nvmlDeviceGetPowerUsage"]
    meter = open_meter(Board(uuid="GPU-a", curve=FLAT, unsupported=broken))
    meter.read_power()
    assert meter.read_power() == []


def test_counter_without_field_83(clock: VirtualClock) -> None:
    meter = open_meter(Board(uuid="GPU-a", curve=FLAT, unsupported=["field 83"]))
    clock.t_ns = 10**9
    (reading,) = [r for r in meter.read_counters() if isinstance(r, CounterReading)]
    assert reading.e_mj == 123_456_789 + 300_000
    board = Board(
        uuid="GPU-b", curve=FLAT, unsupported=["field 83", "nvmlDeviceGetTotalEnergyConsumption"]
    )
    meter = open_meter(board)
    assert [type(r) for r in meter.read_counters()] == [Fault] * 2
    assert meter.read_counters() == []


def test_a_lost_gpu_costs_only_its_own_readings_and_may_come_back(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ekd_nemo.meter.nvml.RETRY_LOST_NS", 0)
    meter = open_meter(
        Board(uuid="GPU-a", curve=FLAT, lost=[(1.0, 2.0)]), Board(uuid="GPU-b", curve=FLAT)
    )
    clock.t_ns = 1_500_000_000
    lost = meter.read_power()
    assert [r.uuid for r in lost if isinstance(r, PowerReading)] == ["GPU-b"]
    assert faults(lost) == [("device_lost", "GPU is lost")]
    assert faults(meter.read_power()) == []
    clock.t_ns = 3_000_000_000
    back = meter.read_power()
    assert [r.uuid for r in back if isinstance(r, PowerReading)] == ["GPU-a", "GPU-b"]
    assert faults(back) == [("device_back", None)]


def test_a_gpu_that_is_lost_from_the_beginning_is_told(clock: VirtualClock) -> None:
    with pytest.raises(MeterUnavailableError, match="nvml: GPU is lost"):
        open_meter(Board(uuid="GPU-a", curve=FLAT, lost=[(0.0, 9.0)]))


def test_mig_is_said_and_not_split(clock: VirtualClock) -> None:
    meter = open_meter(Board(uuid="GPU-a", curve=FLAT, mig=True), uuids=["MIG-a"])
    (device,) = meter.devices
    assert (device.uuid, device.mig) == ("GPU-a", True)
    assert "all MIG instances" in device.covers
    assert ("mig", "split into MIG instances; all figures are the whole board's") in faults(
        meter.read_power()
    )


def test_gpus_are_chosen_by_uuid(clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    boards = [Board(uuid=f"GPU-{n}", curve=FLAT) for n in "abc"]
    assert [d.uuid for d in open_meter(*boards).devices] == ["GPU-a", "GPU-b", "GPU-c"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-c,GPU-a")
    assert [d.uuid for d in open_meter(*boards).devices] == ["GPU-c", "GPU-a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0,1")  # all of them, in whatever order
    assert len(open_meter(*boards).devices) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")  # CUDA's numbers are not NVML's
    monkeypatch.setattr(nvml, "visible_to_cuda", lambda: ["b", "c"])
    assert [d.uuid for d in open_meter(*boards).devices] == ["GPU-b", "GPU-c"]
    monkeypatch.setattr(nvml, "visible_to_cuda", lambda: None)
    with pytest.raises(UserError, match="CUDA_DEVICE_ORDER=PCI_BUS_ID") as refused:
        open_meter(*boards)
    assert not isinstance(refused.value, MeterUnavailableError)  # or `auto` would pass over it
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # now they are
    assert [d.uuid for d in open_meter(*boards).devices] == ["GPU-c", "GPU-a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(MeterUnavailableError, match="nvml: "):
        open_meter(*boards)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        with pytest.raises(MeterUnavailableError, match="no GPU that this process may use"):
            open_meter(*boards)
    with pytest.raises(MeterUnavailableError, match="GPU GPU-x: Not Found"):
        open_meter(*boards, uuids=["GPU-x"])


def test_no_gpu_and_no_library_say_so(clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MeterUnavailableError, match="no GPU that this process may use"):
        open_meter()
    simulated.MACHINE = None
    monkeypatch.delenv("SIMULATED_NVML", raising=False)
    with pytest.raises(MeterUnavailableError, match="Library Not Found"):
        NvmlMeter(driver=simulated)


class CudaDriver:
    """libcuda with two devices, its calls as ctypes makes them."""

    UUIDS = (bytes(range(16)), bytes(range(16, 32)))

    def __init__(self, broken: str = "") -> None:
        self.broken = broken

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu") or name == "cuDeviceGetUuid_v2":
            raise AttributeError(name)
        return lambda *arguments: (
            3 if name == self.broken else getattr(self, f"_{name}")(*arguments)
        )

    def _cuInit(self, flags: int) -> int:  # noqa: N802
        return flags

    def _cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 2
        return 0

    def _cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = ordinal
        return 0

    def _cuDeviceGetUuid(self, raw: Any, device: Any) -> int:  # noqa: N802
        raw._obj[:] = self.UUIDS[device.value]
        return 0


def test_the_cuda_driver_tells_its_order_by_uuid() -> None:
    assert cuda_order.uuids_of(CudaDriver()) == [
        "00010203-0405-0607-0809-0a0b0c0d0e0f",
        "10111213-1415-1617-1819-1a1b1c1d1e1f",
    ]
    with pytest.raises(cuda_order.CudaDriverError, match="cuDeviceGetUuid: error 3"):
        cuda_order.uuids_of(CudaDriver("cuDeviceGetUuid"))


def test_without_a_cuda_driver_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_order, "LIBRARY", "libno-such-library.so")
    assert cuda_order.main() == 1
