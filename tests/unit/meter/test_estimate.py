"""The estimate: its formula, whatever the sampling, and what it says of itself."""

from pathlib import Path

import pytest

from ekd_nemo.meter import estimate
from ekd_nemo.meter.estimate import TICKS_PER_S, EstimateMeter, busy_seconds
from ekd_nemo.meter.protocol import CounterReading, PowerReading, StateReading
from ekd_nemo.records.clock import Instant

STAT = """cpu  100 10 50 9000 40 5 3 700 20 0
cpu0 60 10 20 4000 30 5 1 300 10 0
cpu1 40 0 30 5000 10 0 2 400 10 0
intr 12345 0 0
"""


def test_busy_seconds_leave_out_idle_waiting_and_stolen_time(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text(STAT)
    assert busy_seconds([], stat) == (100 + 10 + 50 + 5 + 3) / TICKS_PER_S
    assert busy_seconds([1], stat) == (40 + 30 + 2) / TICKS_PER_S
    assert busy_seconds([0, 1], stat) == busy_seconds([], stat)


class Script:
    """A clock and a busy counter that move when told to."""

    def __init__(self) -> None:
        self.t_ns = 10**9
        self.busy_s = 5.0

    def pass_time(self, duration_s: float, busy_cpus: float) -> None:
        self.t_ns += round(duration_s * 1e9)
        self.busy_s += duration_s * busy_cpus

    def now(self) -> Instant:
        return Instant(self.t_ns, 0)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()
    monkeypatch.setattr(estimate, "now", script.now)
    monkeypatch.setattr(estimate.time, "monotonic_ns", lambda: script.t_ns)
    monkeypatch.setattr(estimate, "busy_seconds", lambda cpus: script.busy_s)
    monkeypatch.setattr(estimate, "packages", lambda: {0: [0, 1, 2, 3]})
    return script


def test_power_and_energy_follow_the_formula(script: Script) -> None:
    meter = EstimateMeter(tdp_w=100, idle_fraction=0.2, node="n")
    script.pass_time(2.0, busy_cpus=1.0)  # a quarter of four
    (power,) = meter.read_power()
    assert isinstance(power, PowerReading)
    assert power.p_avg_mw == 20_000 + 80_000 // 4
    script.pass_time(1.0, busy_cpus=4.0)
    (power,) = meter.read_power()
    assert isinstance(power, PowerReading)
    assert power.p_avg_mw == 100_000
    (counter,) = meter.read_counters()
    assert isinstance(counter, CounterReading)
    assert counter.e_mj == 2 * 40_000 + 100_000
    (state,) = meter.read_state()
    assert isinstance(state, StateReading)
    assert state.util_pct == 50  # 6 CPU seconds of 12


def test_what_was_assumed_is_in_the_record(script: Script) -> None:
    stated, default = EstimateMeter(tdp_w=100, node="n"), EstimateMeter(node="n")
    for meter, tdp_from in ((stated, "stated"), (default, "default")):
        (device,) = meter.devices
        assert device.uuid == "CPU-n-package-0"
        assert device.parameters is not None
        assert device.parameters["tdp_from"] == tdp_from
    assert (stated.devices[0].power_limit_mw, stated.devices[0].idle_power_mw) == (100_000, 30_000)
    assert default.devices[0].power_limit_mw == 65_000


def test_no_time_no_power(script: Script) -> None:
    assert EstimateMeter(node="n").read_power() == []
