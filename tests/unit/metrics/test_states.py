"""Slow facts by bin: attempts, gaps, devices that no rank occupied, and the same out of segments."""

from pathlib import Path

import numpy as np
import pytest

from ekd_nemo.metrics.ledger import ledger_of_run
from ekd_nemo.metrics.states import States, peaks_of, states_of
from ekd_nemo.records.lines import HostLine, StateLine
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.records.segments import pack
from tests.unit.metrics.synthetic import Recorder


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Two attempts of 20 and 10 s; utilisation is the time, temperature never read in the second one."""
    run = RunDir(tmp_path)
    recorder = Recorder()
    for uuid in ("GPU-0", "GPU-9"):
        recorder.device(uuid)
        recorder.sample(uuid, 0, 100, lambda _: 200.0)
    for second in range(100):
        where = recorder.where(second) | {"sampler": recorder.sampler}
        for uuid in ("GPU-0", "GPU-9"):
            meter = {"uuid": uuid, "meter": "nvml", "source": "measured"}
            known = {"temperature_c": 50} if second < 50 else {}
            recorder.telemetry.append(StateLine(**where, **meter, util_pct=second, **known))
        recorder.telemetry.append(HostLine(**where, cpu_util_pct=12.5, ram_used_bytes=1 << 33))
    recorder.phase(0, "student_train", 10, 30)
    recorder.phase(0, "student_train", 60, 70, attempt=2)
    recorder.write(run)
    with run.power(recorder.node).open("a") as file:
        file.write('{"kind":"state","torn')
    return run


def check(states: States) -> None:
    assert set(states.devices["util_pct"]) == {"GPU-0"}  # no rank occupied the other one
    assert states.devices["util_pct"]["GPU-0"].tolist() == [12.0, 17.0, 22.0, 27.0, 62.0, 67.0]
    temperature = states.devices["temperature_c"]["GPU-0"]
    assert temperature[:4].tolist() == [50.0] * 4
    assert np.isnan(temperature[4:]).all()
    assert states.hosts["cpu_util_pct"]["n1"].tolist() == [12.5] * 6
    assert "memory_used_bytes" not in states.devices


def test_means_of_bins_in_the_time_of_the_run(run: RunDir) -> None:
    check(states_of(ledger_of_run(run), run.power_files(), np.arange(7) * 5.0))


def test_the_same_out_of_a_segment(run: RunDir) -> None:
    (path,) = run.power_files()
    pack(path, path.with_name("power-n1.1.parquet"))
    path.unlink()
    check(states_of(ledger_of_run(run), run.segment_files(), np.arange(7) * 5.0))


def test_peaks_are_of_the_time_of_the_run_and_of_its_devices(run: RunDir) -> None:
    ledger, files = ledger_of_run(run), run.power_files()
    assert peaks_of(ledger, files, "util_pct") == {"GPU-0": 69.0}
    assert peaks_of(ledger, files, "temperature_c") == {"GPU-0": 50.0}
    assert peaks_of(ledger, files, "memory_used_bytes") == {}
    (path,) = files
    pack(path, path.with_name("power-n1.1.parquet"))
    path.unlink()
    assert peaks_of(ledger, run.segment_files(), "util_pct") == {"GPU-0": 69.0}


def test_bins_finer_than_the_readings_are_joined_and_gaps_stay_open(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    recorder = Recorder()
    recorder.device("GPU-0")
    recorder.sample("GPU-0", 0, 60, lambda _: 200.0)
    for second in (2, 6, 10, 14, 40, 44):
        where = recorder.where(second) | {"sampler": recorder.sampler}
        meter = {"uuid": "GPU-0", "meter": "nvml", "source": "measured"}
        recorder.telemetry.append(StateLine(**where, **meter, util_pct=second))
    recorder.phase(0, "student_train", 0, 50)
    recorder.write(run)
    states = states_of(ledger_of_run(run), run.power_files(), np.arange(26) * 2.0)
    found = states.devices["util_pct"]["GPU-0"]
    assert found[1:8].tolist() == [2, 4, 6, 8, 10, 12, 14]
    assert found[20:23].tolist() == [40, 42, 44]
    assert np.isnan(np.delete(found, [*range(1, 8), *range(20, 23)])).all()
