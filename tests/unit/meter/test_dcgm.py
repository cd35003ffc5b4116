"""The DCGM meter against an HTTP server that shows an exporter's page."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ekd_nemo.meter import dcgm
from ekd_nemo.meter.dcgm import DcgmMeter
from ekd_nemo.meter.protocol import (
    CounterReading,
    Fault,
    MeterUnavailableError,
    PowerReading,
    StateReading,
)

PAGE = """# HELP DCGM_FI_DEV_POWER_USAGE Power draw (in W).
# TYPE DCGM_FI_DEV_POWER_USAGE gauge
DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-a",modelName="NVIDIA H100",Hostname="n"} %(power)s
DCGM_FI_DEV_POWER_USAGE{gpu="1",UUID="GPU-b",modelName="NVIDIA H100",GPU_I_ID="1"} 70.5
DCGM_FI_DEV_POWER_USAGE{gpu="1",UUID="GPU-b",modelName="NVIDIA H100",GPU_I_ID="2"} 70.5
# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0",UUID="GPU-a"} %(energy)s
# TYPE DCGM_FI_DEV_GPU_UTIL gauge
DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-a"} 97
DCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-a"} 1024
DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-a"} NaN
"""


class Exporter(ThreadingHTTPServer):
    """Shows `page`, or fails with `status`."""

    page = PAGE % {"power": 312.345, "energy": 98765432}
    status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/metrics"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Exporter)
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.page.encode())

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exporter]:
    monkeypatch.setattr(dcgm, "SCRAPE_PERIOD_S", 0.0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with Exporter(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_power_energy_and_state(exporter: Exporter) -> None:
    meter = DcgmMeter(url=exporter.url)
    assert [(d.uuid, d.name, d.mig) for d in meter.devices] == [
        ("GPU-a", "NVIDIA H100", False),
        ("GPU-b", "NVIDIA H100", True),
    ]
    powers = meter.read_power()
    assert [r.p_avg_mw for r in powers if isinstance(r, PowerReading)] == [312_345, 70_500]
    (counter,) = meter.read_counters()
    assert isinstance(counter, CounterReading)
    assert (counter.uuid, counter.e_mj) == ("GPU-a", 98_765_432)
    first, second = meter.read_state()
    assert isinstance(first, StateReading)
    assert (first.util_pct, first.memory_used_bytes, first.temperature_c) == (97, 1 << 30, None)
    assert isinstance(second, StateReading)
    assert second.util_pct is None


def test_a_page_without_news_gives_nothing(exporter: Exporter) -> None:
    meter = DcgmMeter(url=exporter.url, uuids=["GPU-a"])
    assert (len(meter.read_power()), len(meter.read_counters())) == (1, 1)
    assert (meter.read_power(), meter.read_counters()) == ([], [])
    exporter.page = PAGE % {"power": 312.345, "energy": 98765433}  # the same power, later
    assert len(meter.read_power()) == 1


def test_an_exporter_that_fails_is_a_fault_and_no_stale_sample(exporter: Exporter) -> None:
    meter = DcgmMeter(url=exporter.url)
    meter.read_power()
    exporter.status = 500
    (fault,) = meter.read_power()
    assert isinstance(fault, Fault)
    assert "500" in (fault.detail or "")
    exporter.status, exporter.page = 200, "not { a page"
    (fault,) = meter.read_power()
    assert isinstance(fault, Fault)


def test_what_is_not_there_is_told(exporter: Exporter) -> None:
    with pytest.raises(MeterUnavailableError, match="does not show the power of GPU GPU-x"):
        DcgmMeter(url=exporter.url, uuids=["GPU-x"])
    exporter.page = "up 1\n"
    with pytest.raises(MeterUnavailableError, match="does not show the power of any GPU"):
        DcgmMeter(url=exporter.url)
    with pytest.raises(MeterUnavailableError, match="an http or https address is needed"):
        DcgmMeter(url="file:///etc/passwd")
    with pytest.raises(MeterUnavailableError, match="Connection refused"):
        DcgmMeter(url="http://127.0.0.1:9/metrics")
