"""A growing file is set aside and packed; nothing is lost or counted twice on the way."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ekd_nemo.metrics.series import read_telemetry
from ekd_nemo.records.clock import node_name
from ekd_nemo.records.lines import StopLine
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry import rolling
from ekd_nemo.telemetry.live import LiveRun
from ekd_nemo.telemetry.process import Sampler
from ekd_nemo.telemetry.rolling import Packer, next_part, pack_part, parts_of
from ekd_nemo.telemetry.settings import SamplerSettings
from ekd_nemo.telemetry.verify import verify_run
from tests.unit.meter.simulated_nvml.board import Board, Machine
from tests.unit.telemetry.conftest import wait_for
from tests.unit.telemetry.test_exporter import device, powers, write


def test_a_sampler_rolls_and_the_record_stays_whole(
    run: RunDir, install_gpus: Callable[..., Machine], gpu_uuid: str
) -> None:
    boards = [Board(uuid=f"{gpu_uuid}-{n}", curve=[(0.0, 300.0)]) for n in range(4)]
    install_gpus(*boards).begin()
    with Sampler(run, SamplerSettings(roll_mib=0.02)) as sampler:
        wait_for(run.segment_files)
        time.sleep(0.5)
        uuids = sampler.uuids()
    run.run_json.write_text("{}")
    verdict = verify_run(run)
    assert verdict.problems == []
    assert sorted(device.uuid for device in verdict.devices) == sorted(uuids)
    assert all(device.gaps_s() == [] for device in verdict.devices)
    telemetry = read_telemetry([*run.power_files(), *run.segment_files()])
    assert sorted(key.uuid for key in telemetry.series) == sorted(uuids)
    assert telemetry.report.bad == 0
    assert f'"kind":"{StopLine.kind}"' in run.power(node_name()).read_text()  # in the last part
    assert not list(run.telemetry.glob(".*"))


def test_parts_are_numbered_on_and_other_files_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "power-n.jsonl"
    for name in ("power-n.jsonl", "power-n.2.jsonl", "power-n.9.parquet", "power-n.9.jsonl"):
        (tmp_path / name).touch()
    for name in ("power-n.a.jsonl", "power-nn.12.jsonl", "power-n.13.json", ".power-n.14.jsonl"):
        (tmp_path / name).touch()
    assert sorted(parts_of(path)) == [2, 9]
    assert next_part(path).name == "power-n.10.jsonl"
    assert next_part(tmp_path / "power-m.1.jsonl").name == "power-m.1.1.jsonl"  # a node with a dot


def test_a_part_is_packed_with_all_its_lines_and_counted_once(run: RunDir) -> None:
    part = run.power("n").with_suffix(".1.jsonl")
    lines = [device("GPU-a"), *powers(0, 5, 100)]
    write(part, lines)
    write(run.power("n"), powers(5.1, 9, 100))
    run.path.joinpath("run.json").write_text("{}")
    before = verify_run(run).devices[0]
    segment = pack_part(part)
    assert (part.exists(), segment.name) == (False, "power-n.1.parquet")
    after = verify_run(run).devices[0]
    assert (after.gaps_s(), len(after.times_ns)) == ([], len(before.times_ns))
    write(part, lines)  # as if the packing had been killed before it removed the part
    assert verify_run(run).devices[0].duration_s() == before.duration_s()


def test_what_cannot_be_packed_stays_and_is_not_tried_for_ever(tmp_path: Path) -> None:
    part = tmp_path / "power-n.1.jsonl"
    part.mkdir()
    packer = Packer(tmp_path / "power-n.jsonl")
    wait_for(lambda: packer.poke() or packer.failed)
    packer.poke()
    assert packer.failed == 1
    assert part.exists()


def test_packing_that_takes_too_long_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rolling, "PACK_TIMEOUT_S", 0.1)
    packer = Packer(tmp_path / "power-n.jsonl")
    packer.finish()
    half_made = tmp_path / ".power-n.1.parquet.tmp"
    half_made.touch()
    packer._process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    packer.finish()
    assert packer._process.returncode is not None
    assert not half_made.exists()


def test_the_exporter_follows_a_file_through_its_renaming(run: RunDir) -> None:
    live = LiveRun(run)
    write(run.power("n"), [device("GPU-a"), *powers(0, 5, 100)])
    live.refresh()
    write(run.power("n"), powers(5.1, 6, 100))
    part = next_part(run.power("n"))
    run.power("n").rename(part)
    write(run.power("n"), [device("GPU-a"), *powers(6.1, 7, 100)])
    live.refresh()
    pack_part(part)
    live.refresh()
    energy_j = live.devices["n", "GPU-a"].phase_energy_j["", "idle"]
    assert energy_j == pytest.approx(700)
