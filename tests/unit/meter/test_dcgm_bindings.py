"""The DCGM meter on its bindings, against a host engine of simulated boards."""

import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from ekd_nemo.meter import dcgm_bindings
from ekd_nemo.meter.choose import MeterSettings, open_meters
from ekd_nemo.meter.dcgm_bindings import DcgmBindingsMeter
from ekd_nemo.meter.protocol import (
    CounterReading,
    Fault,
    MeterUnavailableError,
    PowerReading,
    StateReading,
)
from tests.unit.meter.simulated_nvml import board as boards

SIMULATED = Path(__file__).parent / "simulated_dcgm"
RAMP = ((0.0, 100.0), (5.0, 100.0), (15.0, 600.0), (20.0, 150.0))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module behind `import pydcgm`; its modules and paths are gone afterwards."""
    before, path = set(sys.modules), list(sys.path)
    monkeypatch.setenv(dcgm_bindings.PATH_VARIABLE, str(SIMULATED))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    pydcgm, _ = dcgm_bindings._import_bindings()
    pydcgm.BOARDS = [
        boards.Board(uuid="GPU-a", curve=RAMP, gain=1.03),
        boards.Board(uuid="GPU-b", curve=RAMP),
    ]
    yield pydcgm
    for name in set(sys.modules) - before:
        del sys.modules[name]
    sys.path[:] = path


def at(engine: ModuleType, t_s: float) -> None:
    engine.clock = lambda: t_s


def test_power_and_counters_are_the_boards(engine: ModuleType) -> None:
    meter = DcgmBindingsMeter()
    assert [(d.uuid, d.name) for d in meter.devices] == [(b.uuid, b.name) for b in engine.BOARDS]
    points: list[tuple[float, int]] = []
    counters: list[tuple[float, int]] = []
    for tick in range(301):
        at(engine, tick * 0.1 + 0.05)
        for reading in meter.read_power():
            if isinstance(reading, PowerReading) and reading.uuid == "GPU-a":
                assert reading.p_avg_mw is not None and reading.t_driver_us is not None
                points.append((reading.t_driver_us / 1e6 - 1_700_000_000, reading.p_avg_mw))
        if tick % 10 == 0:
            for reading in meter.read_counters():
                if isinstance(reading, CounterReading) and reading.uuid == "GPU-a":
                    counters.append((tick * 0.1, reading.e_mj))
    integral_j = sum((t1 - t0) * (p0 + p1) / 2e3 for (t0, p0), (t1, p1) in pairwise(points))
    truth_j = 1.03 * engine.BOARDS[0].energy_j(points[0][0], points[-1][0])
    # 1 %: the average lags half a second, by which 50 W between begin and end are seen too late
    assert integral_j == pytest.approx(truth_j, rel=0.01)
    assert (counters[-1][1] - counters[0][1]) / 1000 == pytest.approx(
        1.03 * engine.BOARDS[0].energy_j(0, 30), rel=0.01
    )


def test_a_value_that_is_not_there_is_none_and_said_once(engine: ModuleType) -> None:
    engine.BOARDS[1].unsupported = ["field 155", "field 156"]
    meter = DcgmBindingsMeter(uuids=["GPU-b"])
    at(engine, 1.0)
    power = meter.read_power()
    (reading,) = (r for r in power if isinstance(r, PowerReading))
    assert (reading.uuid, reading.p_avg_mw) == ("GPU-b", None) and reading.p_inst_mw == 100_000
    assert [f.detail for f in power if isinstance(f, Fault)] == ["field 155"]
    assert [f.detail for f in meter.read_counters() if isinstance(f, Fault)] == ["field 156"]
    assert not [f for f in (*meter.read_power(), *meter.read_counters()) if isinstance(f, Fault)]
    (state,) = meter.read_state()
    assert isinstance(state, StateReading)
    assert (state.util_pct, state.memory_used_bytes, state.fan_pct) == (97, 1 << 30, None)


def test_a_host_engine_that_goes_away_is_a_fault_and_no_stale_sample(engine: ModuleType) -> None:
    meter = DcgmBindingsMeter()
    engine.is_down = True
    for read in (meter.read_power, meter.read_counters, meter.read_state):
        (fault,) = read()
        assert isinstance(fault, Fault) and fault.event == "read_error"
    engine.is_down = False
    assert len(meter.read_power()) == 2


def test_what_is_not_there_is_told_and_the_exporter_is_tried(
    engine: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert type(open_meters(MeterSettings(meter="dcgm")).meters[0]) is DcgmBindingsMeter
    with pytest.raises(MeterUnavailableError, match="does not know GPU GPU-x"):
        DcgmBindingsMeter(uuids=["GPU-x"])
    engine.is_down = True
    with pytest.raises(MeterUnavailableError, match="host engine on localhost: The connection"):
        DcgmBindingsMeter()
    monkeypatch.setenv(dcgm_bindings.PATH_VARIABLE, str(tmp_path))
    with pytest.raises(
        MeterUnavailableError, match=r"metrics: .*; no bindings in .*DCGM_BINDINGS_PATH"
    ):
        open_meters(MeterSettings(meter="dcgm", dcgm_url="http://127.0.0.1:9/metrics"))
