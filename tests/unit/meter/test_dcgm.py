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

# As dcgm-exporter's template for the CPU entity writes it; a core has both labels, a processor only `cpu`.
GRACE = """# TYPE %(power)s gauge
%(power)s{cpu="0",Hostname="n"} %(watts)s
%(power)s{cpu="1",Hostname="n"} NaN
# TYPE %(limit)s gauge
%(limit)s{cpu="0",Hostname="n"} 250.000000
# TYPE DCGM_FI_DEV_CPU_UTIL_TOTAL gauge
DCGM_FI_DEV_CPU_UTIL_TOTAL{cpucore="3",cpu="0",Hostname="n"} 0.990000
DCGM_FI_DEV_CPU_UTIL_TOTAL{cpu="0",Hostname="n"} 0.125000
# TYPE %(temperature)s gauge
%(temperature)s{cpu="0",Hostname="n"} 61.500000
"""
OLD_NAMES = {
    "power": "DCGM_FI_DEV_CPU_POWER_UTIL_CURRENT", "limit": "DCGM_FI_DEV_CPU_POWER_LIMIT",
    "temperature": "DCGM_FI_DEV_CPU_TEMP_CURRENT",
}  # fmt: skip
NEW_NAMES = {
    "power": "DCGM_FI_DEV_CPU_POWER_WATTS", "limit": "DCGM_FI_DEV_CPU_POWER_LIMIT_WATTS",
    "temperature": "DCGM_FI_DEV_CPU_TEMP_CELSIUS",
}  # fmt: skip


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


@pytest.mark.parametrize("names", [OLD_NAMES, NEW_NAMES], ids=["DCGM 3", "DCGM 4"])
def test_a_grace_processor_is_a_host_device_beside_the_gpus(
    exporter: Exporter, names: dict[str, str]
) -> None:
    boards = exporter.page
    exporter.page = boards + GRACE % {**names, "watts": 113.1}
    meter = DcgmMeter(url=exporter.url, uuids=["GPU-a"], node="n7")
    gpu, cpu = meter.devices  # a processor without power is left out
    assert (gpu.uuid, gpu.role) == ("GPU-a", "accelerator")
    assert (cpu.uuid, cpu.device_kind, cpu.role) == ("CPU-n7-package-0", "cpu", "host")
    assert cpu.power_limit_mw == 250_000
    powers = {r.uuid: r.p_avg_mw for r in meter.read_power() if isinstance(r, PowerReading)}
    assert powers == {"GPU-a": 312_345, cpu.uuid: 113_100}
    assert [r.uuid for r in meter.read_counters() if isinstance(r, CounterReading)] == ["GPU-a"]
    state = meter.read_state()[1]
    assert isinstance(state, StateReading)
    assert (state.uuid, state.util_pct, state.temperature_c) == (cpu.uuid, 12, 62)
    assert meter.read_power() == []
    exporter.page = boards + GRACE % {**names, "watts": 114.0}
    assert [r.uuid for r in meter.read_power() if isinstance(r, PowerReading)] == [cpu.uuid]
    exporter.page = boards  # the processor is gone: no sample, and never a 0
    assert meter.read_power() == []


def test_processors_alone_are_no_accelerator(exporter: Exporter) -> None:
    exporter.page = GRACE % {**OLD_NAMES, "watts": 113.1}
    with pytest.raises(MeterUnavailableError, match="does not show the power of any GPU"):
        DcgmMeter(url=exporter.url)


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
