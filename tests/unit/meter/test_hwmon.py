"""The Grace meter against a hwmon tree of files."""

from pathlib import Path

import pytest

from ekd_nemo.meter.hwmon import HwmonMeter
from ekd_nemo.meter.protocol import Fault, MeterUnavailableError, PowerReading


def make_grace(tree: Path, number: int, what: str = "Grace Power Socket") -> Path:
    device = tree / f"hwmon{len(list(tree.glob('hwmon*')))}" / "device"
    device.mkdir(parents=True)
    (device / "power1_oem_info").write_text(f"{what} {number}\n")
    (device / "power1_average").write_text("123456789\n")
    (device / "power1_average_interval").write_text("50\n")
    return device


def test_grace_sockets_are_devices_and_what_overlaps_is_not(tmp_path: Path) -> None:
    for what in ("Module Power Socket", "CPU Power Socket", "SysIO Power Socket"):
        make_grace(tmp_path, 0, what)
    make_grace(tmp_path, 0)
    broken = make_grace(tmp_path, 1)
    meter = HwmonMeter(node="n", tree=tmp_path, role="host")
    assert [device.uuid for device in meter.devices] == ["CPU-n-package-0", "CPU-n-package-1"]
    assert {(d.role, d.p_avg_window_ms) for d in meter.devices} == {("host", 50)}
    first, _ = meter.read_power()
    assert isinstance(first, PowerReading)
    assert first.p_avg_mw == 123_456
    (broken / "power1_average").unlink()
    assert [type(reading) for reading in meter.read_power()] == [PowerReading, Fault]
    assert meter.read_counters() == []


def test_elsewhere_it_says_so(tmp_path: Path) -> None:
    make_grace(tmp_path, 0, "Chassis")
    with pytest.raises(MeterUnavailableError, match="no Grace power meter under"):
        HwmonMeter(tree=tmp_path)
