"""The NVML meter on a real board: counter against the integral of average power, idle."""

import time
from itertools import pairwise

import pytest

from ekd_nemo.meter.nvml import NvmlMeter
from ekd_nemo.meter.protocol import CounterReading, MeterUnavailableError, PowerReading

pytestmark = pytest.mark.gpu

MEASURED_S = 30.0
# The counter refreshes each 100 ms (0.3 % of 30 s at either end); the average lags by up to 1 s.
BOUND = 0.03


@pytest.fixture
def meter() -> NvmlMeter:
    try:
        return NvmlMeter()
    except MeterUnavailableError as error:
        pytest.skip(str(error))


def _counter(meter: NvmlMeter, uuid: str) -> CounterReading:
    found = [r for r in meter.read_counters() if isinstance(r, CounterReading) and r.uuid == uuid]
    if not found:
        pytest.skip(f"{uuid} has no energy counter")
    return found[0]


def test_counter_and_integral_agree_when_idle(meter: NvmlMeter) -> None:
    uuid = meter.devices[0].uuid
    first, samples = _counter(meter, uuid), list[tuple[float, int]]()
    end_s = time.monotonic() + MEASURED_S
    while time.monotonic() < end_s:
        for reading in meter.read_power():
            if isinstance(reading, PowerReading) and reading.uuid == uuid and reading.p_avg_mw:
                samples.append((reading.at.mono_ns / 1e9, reading.p_avg_mw))
        time.sleep(0.1)
    last = _counter(meter, uuid)
    integral_mj = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(samples))
    share = (last.at.mono_ns - first.at.mono_ns) / 1e9 / (samples[-1][0] - samples[0][0])
    counted_mj = last.e_mj - first.e_mj
    assert counted_mj > 0
    assert abs(integral_mj * share - counted_mj) < BOUND * counted_mj
