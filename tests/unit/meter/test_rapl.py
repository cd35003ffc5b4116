"""The RAPL meter against a powercap tree of files."""

from pathlib import Path

import pytest

from ekd_nemo.meter.protocol import CounterReading, Fault, MeterUnavailableError, PowerReading
from ekd_nemo.meter.rapl import RaplMeter

RANGE_UJ = 262_143_328_850


def make_zone(tree: Path, folder: str, name: str, energy_uj: int) -> Path:
    zone = tree / folder
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "energy_uj").write_text(f"{energy_uj}\n")
    (zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    if name.startswith("package"):
        (zone / "constraint_0_power_limit_uw").write_text("205000000\n")
    return zone


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    make_zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    make_zone(tmp_path, "intel-rapl:0:0", "core", 5)
    make_zone(tmp_path, "intel-rapl:0:1", "dram", 2_000_000)
    make_zone(tmp_path, "intel-rapl:1", "package-1", RANGE_UJ - 1_000_000)
    make_zone(tmp_path, "intel-rapl:2", "psys", 9)
    return tmp_path


def energies(meter: RaplMeter) -> dict[str, int]:
    found = meter.read_counters()
    return {r.uuid: r.e_mj for r in found if isinstance(r, CounterReading)}


def test_packages_and_memory_are_devices_and_their_parts_are_not(tree: Path) -> None:
    meter = RaplMeter(node="n", tree=tree)
    roles = {device.uuid: (device.device_kind, device.role) for device in meter.devices}
    assert roles == {
        "CPU-n-package-0": ("cpu", "accelerator"),
        "DRAM-n-package-0": ("dram", "host"),
        "CPU-n-package-1": ("cpu", "accelerator"),
    }
    assert meter.devices[0].power_limit_mw == 205_000
    beside_gpus = RaplMeter(node="n", tree=tree, role="host")
    assert {device.role for device in beside_gpus.devices} == {"host"}


def test_wraps_are_undone(tree: Path) -> None:
    meter = RaplMeter(node="n", tree=tree)
    before = energies(meter)
    counter = tree / "intel-rapl:1" / "energy_uj"
    counter.write_text("4000000")  # 1 J to the range's end and 4 J more
    assert energies(meter)["CPU-n-package-1"] - before["CPU-n-package-1"] == 5000
    counter.write_text(str(RANGE_UJ - 1))
    energies(meter)
    counter.write_text("0")
    after = energies(meter)
    gained_mj = after["CPU-n-package-1"] - before["CPU-n-package-1"]
    # 1 mJ: both ends are rounded down
    assert gained_mj == pytest.approx((1_000_000 + RANGE_UJ) / 1000, abs=1)
    assert after["CPU-n-package-0"] == before["CPU-n-package-0"] == 1000


def test_power_is_the_mean_since_the_read_before(tree: Path) -> None:
    meter = RaplMeter(node="n", tree=tree)
    first = {r.uuid: r for r in meter.read_power() if isinstance(r, PowerReading)}
    (tree / "intel-rapl:0" / "energy_uj").write_text("31000000")
    second = {r.uuid: r for r in meter.read_power() if isinstance(r, PowerReading)}
    uuid = "CPU-n-package-0"
    duration_s = (second[uuid].at.mono_ns - first[uuid].at.mono_ns) / 1e9
    assert second[uuid].p_avg_mw == pytest.approx(30_000 / duration_s, rel=1e-6)
    assert second["CPU-n-package-1"].p_avg_mw == 0  # measured: it gained nothing


def test_a_zone_that_vanishes_is_a_fault_and_the_others_go_on(tree: Path) -> None:
    meter = RaplMeter(node="n", tree=tree)
    (tree / "intel-rapl:1" / "energy_uj").unlink()
    readings = meter.read_counters()
    assert [type(r) for r in readings] == [CounterReading, CounterReading, Fault]
    (tree / "intel-rapl:1" / "energy_uj").write_text("not a number")
    assert isinstance(meter.read_power()[-1], Fault)


def test_unavailable_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MeterUnavailableError, match="no package zone under"):
        RaplMeter(tree=tmp_path)
    make_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    read_text = Path.read_text

    def as_a_user(path: Path) -> str:
        if path.name == "energy_uj":  # only root may read it since CVE-2020-8694
            raise PermissionError(13, "Permission denied")
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", as_a_user)
    with pytest.raises(MeterUnavailableError, match=r"may not be read; as root: chmod a\+r"):
        RaplMeter(tree=tmp_path)
