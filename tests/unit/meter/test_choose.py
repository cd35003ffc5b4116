"""Which meter is taken, and why."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ekd_nemo.errors import UserError
from ekd_nemo.meter import choose, nvml, rapl
from ekd_nemo.meter.choose import MeterSettings, open_meters
from ekd_nemo.meter.dcgm import DcgmMeter
from ekd_nemo.meter.estimate import EstimateMeter
from ekd_nemo.meter.hwmon import HwmonMeter
from ekd_nemo.meter.nvml import NvmlMeter
from ekd_nemo.meter.rapl import RaplMeter
from ekd_nemo.meter.replay import ReplayMeter
from tests.unit.meter.simulated_nvml import pynvml as simulated
from tests.unit.meter.test_hwmon import make_grace
from tests.unit.meter.test_rapl import make_zone


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine without GPU and RAPL; returns its empty powercap folder."""
    monkeypatch.setattr(nvml, "_import_driver", lambda: simulated)
    monkeypatch.delenv("SIMULATED_NVML", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert rapl.RaplMeter.__init__.__kwdefaults__["tree"] == rapl.POWERCAP
    for kind in (RaplMeter, HwmonMeter):
        monkeypatch.setitem(kind.__init__.__kwdefaults__, "tree", tmp_path)
    yield tmp_path
    simulated.MACHINE = None


def add_gpu() -> None:
    board = simulated.Board(uuid="GPU-a", curve=[(0.0, 100.0)])
    simulated.MACHINE = simulated.Machine([board], 0)


def names_and_roles(settings: MeterSettings) -> list[tuple[str, str]]:
    return [(m.name, d.role) for m in open_meters(settings).meters for d in m.devices]


def test_auto_takes_what_is_there(bare: Path) -> None:
    auto = MeterSettings(node="n")
    opened = open_meters(auto)
    assert [meter.name for meter in opened.meters] == ["estimate"]
    assert "Library Not Found" in opened.why
    assert "no package zone" in opened.why
    make_zone(bare, "intel-rapl:0", "package-0", 1)
    assert names_and_roles(auto) == [("rapl", "accelerator")]
    add_gpu()
    assert names_and_roles(auto) == [("nvml", "accelerator"), ("rapl", "host")]
    assert open_meters(auto).why == "auto took nvml and rapl"
    (bare / "intel-rapl:0" / "name").write_text("none")
    make_grace(bare, 0)
    assert names_and_roles(auto) == [("nvml", "accelerator"), ("hwmon", "host")]


def test_host_takes_the_processors_alone(bare: Path) -> None:
    host = MeterSettings(meter="host", node="n")
    add_gpu()
    assert names_and_roles(host) == [("estimate", "host")]
    make_grace(bare, 0)
    assert names_and_roles(host) == [("hwmon", "host")]
    make_zone(bare, "intel-rapl:0", "package-0", 1)
    assert names_and_roles(host) == [("rapl", "host")]
    assert open_meters(host).why == "host took rapl"


def test_a_meter_asked_for_is_not_replaced_by_another(bare: Path) -> None:
    for name in ("nvml", "rapl"):
        with pytest.raises(UserError, match=f"^{name}: "):
            open_meters(MeterSettings(meter=name))
    with pytest.raises(UserError, match="GPUs were asked for by UUID, but nvml: "):
        open_meters(MeterSettings(uuids=["GPU-a"]))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"meter": "dcmg"}, "meter 'dcmg' is unknown; one of auto, nvml, dcgm, rapl, hwmon, est"),
        ({"meter": "replay"}, "go together"),
        ({"replay_file": Path("x")}, "go together"),
        ({"cpu_tdp_w": 0.0}, "above 0 W"),
        ({"cpu_idle_fraction": 1.5}, r"in 0\.\.1"),
    ],
)
def test_settings_that_no_meter_accepts(settings: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        MeterSettings(**settings)  # type: ignore[arg-type]


def test_names_are_those_of_the_meters() -> None:
    classes = (NvmlMeter, DcgmMeter, RaplMeter, HwmonMeter, EstimateMeter, ReplayMeter)
    names = [kind.name for kind in classes]
    assert ("auto", *names[:-1], "host", names[-1]) == choose.METER_NAMES
