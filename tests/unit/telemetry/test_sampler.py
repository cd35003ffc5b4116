"""The sampler as a real process, on simulated GPUs and on this machine's processor."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from ekd_nemo.errors import UserError
from ekd_nemo.meter.choose import MeterSettings
from ekd_nemo.records.jsonl import JsonlStore
from ekd_nemo.records.lines import (
    CounterLine,
    DeviceLine,
    EventLine,
    HostLine,
    PowerLine,
    StartLine,
    StateLine,
    StopLine,
)
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.marks import Marks
from ekd_nemo.telemetry.process import Sampler
from ekd_nemo.telemetry.sampler import main
from ekd_nemo.telemetry.settings import SamplerSettings
from tests.unit.meter.simulated_nvml.board import Board, Machine
from tests.unit.telemetry.conftest import Record, read_record, wait_for

Install = Callable[..., Machine]
ESTIMATE = SamplerSettings(meters=MeterSettings(meter="estimate"), linger_s=0.3)


def power_lines(run: RunDir) -> int:
    return len(read_record(run).of(PowerLine)) if run.power_files() else 0


def events(record: Record, uuid: str | None = None) -> list[str]:
    return [line.event for line in record.of(EventLine, uuid)]


def test_energy_and_faults_of_simulated_gpus(
    run: RunDir, install_gpus: Install, gpu_uuid: str
) -> None:
    ramp = Board(
        uuid=f"{gpu_uuid}-ramp",
        curve=[(0.0, 200.0), (3.0, 200.0), (4.0, 650.0), (6.0, 650.0), (7.0, 200.0)],
        gain=1.04,
    )
    reset = Board(uuid=f"{gpu_uuid}-reset", curve=[(0.0, 300.0)], resets=[4.0])
    lost = Board(uuid=f"{gpu_uuid}-lost", curve=[(0.0, 300.0)], lost=[(3.0, 99.0)])
    poor = Board(uuid=f"{gpu_uuid}-poor", curve=[(0.0, 300.0)], unsupported=["field 186"], mig=True)
    machine = install_gpus(ramp, reset, lost, poor)
    with Sampler(run, SamplerSettings()) as sampler:
        assert sampler.uuids() == [b.uuid for b in machine.boards]
        machine.begin()
        time.sleep(7.5)
    origin_ns = machine.origin_mono_ns
    assert origin_ns is not None
    record = read_record(run)
    assert (record.report.torn, record.report.bad) == (0, 0)

    power = record.of(PowerLine, ramp.uuid)
    points = [(line.t_mono_ns, line.p_avg_mw) for line in power if line.p_avg_mw is not None]
    integral_j = sum((t1 - t0) * (p0 + p1) / 2e12 for (t0, p0), (t1, p1) in pairwise(points))
    window = [(t - origin_ns) / 1e9 for t in (points[0][0], points[-1][0])]
    truth_j = 1.04 * ramp.energy_j(*window)
    # 1 %: the averaging sensor is late by half a second, but the curve ends as it began
    assert integral_j == pytest.approx(truth_j, rel=0.01)
    counters = record.of(CounterLine, ramp.uuid)
    window = [(line.t_mono_ns - origin_ns) / 1e9 for line in (counters[0], counters[-1])]
    counted_j = (counters[-1].e_mj - counters[0].e_mj) / 1000
    assert counted_j == pytest.approx(1.04 * ramp.energy_j(*window), rel=0.001)
    assert [counters[0].cause, counters[-1].cause] == ["start", "stop"]
    assert 6 <= len(counters) <= 11  # about one a second
    assert len({line.t_driver_us for line in power}) == len(power)  # repeats are dropped

    assert "counter_reset" in events(record, reset.uuid)
    assert "device_lost" in events(record, lost.uuid)
    last_seen_s = (record.of(PowerLine, lost.uuid)[-1].t_mono_ns - origin_ns) / 1e9
    assert last_seen_s < 3.01
    assert {"mig", "not_supported"} <= set(events(record, poor.uuid))
    assert all(line.p_inst_mw is None for line in record.of(PowerLine, poor.uuid))
    assert all(line.util_pct is None for line in record.of(StateLine, poor.uuid))
    assert record.of(StateLine, ramp.uuid)[0].temperature_c == 55
    assert len(record.of(HostLine)) >= 6
    (stop,) = record.of(StopLine)
    assert stop.reason == "SIGTERM"
    assert record.lines[-1] is stop


@pytest.mark.slow
def test_a_minute_of_eight_gpus_is_right_and_cheap(
    run: RunDir, install_gpus: Install, gpu_uuid: str
) -> None:
    swings = [(float(t), 150.0 + 500.0 * (t // 3 % 2)) for t in range(1, 61)]
    boards = [
        Board(uuid=f"{gpu_uuid}-{n}", curve=[(0.0, 150.0), *swings], gain=0.95 + 0.02 * n)
        for n in range(8)
    ]
    machine = install_gpus(*boards)
    with Sampler(run, SamplerSettings()):
        machine.begin()
        time.sleep(62.0)
    assert machine.origin_mono_ns is not None
    record = read_record(run)
    for board in boards:
        power = record.of(PowerLine, board.uuid)
        points = [(x.t_mono_ns, x.p_avg_mw) for x in power if x.p_avg_mw is not None]
        integral_j = sum((t1 - t0) * (p0 + p1) / 2e12 for (t0, p0), (t1, p1) in pairwise(points))
        window = [(t - machine.origin_mono_ns) / 1e9 for t in (points[0][0], points[-1][0])]
        # the error budget: 1 % at 60 s; the board's gain is its own and stays in both
        assert integral_j == pytest.approx(board.gain * board.energy_j(*window), rel=0.01)
    (stop,) = record.of(StopLine)
    own_us = stop.cpu_user_us + stop.cpu_system_us - stop.startup_cpu_us - stop.driver_cpu_us
    assert own_us < 0.01 * 62e6  # below 1 % of a core, by the kernel's account


def test_a_stall_is_a_gap_with_an_event(run: RunDir, install_gpus: Install, gpu_uuid: str) -> None:
    hang_file = run.path.with_name("hang")
    install_gpus(Board(uuid=gpu_uuid, curve=[(0.0, 300.0)], hang_file=str(hang_file)))
    with Sampler(run, SamplerSettings()):
        time.sleep(0.5)
        hang_file.touch()
        time.sleep(2.2)
        hang_file.unlink()
        time.sleep(0.5)
    record = read_record(run)
    (stall,) = [line for line in record.of(EventLine) if line.event == "stall"]
    assert stall.duration_ns is not None
    assert 2.0e9 < stall.duration_ns < 3.5e9
    times = [line.t_mono_ns for line in record.of(PowerLine)]
    gaps = [b - a for a, b in pairwise(times) if b - a > 1e9]
    assert len(gaps) == 1
    assert "late" not in events(record)
    assert record.of(StopLine)[0].ticks_missed >= 19


def test_a_driver_that_never_answers_does_not_keep_the_sampler(
    run: RunDir, install_gpus: Install, gpu_uuid: str
) -> None:
    hang_file = run.path.with_name("hang")
    install_gpus(Board(uuid=gpu_uuid, curve=[(0.0, 300.0)], hang_file=str(hang_file)))
    sampler = Sampler(run, SamplerSettings())
    sampler.start()
    hang_file.touch()
    time.sleep(1.2)
    begin_s = time.monotonic()
    assert sampler.stop() == 0
    assert time.monotonic() - begin_s < 10
    record = read_record(run)
    assert [line.event for line in record.of(EventLine) if line.event == "stall"] == ["stall"]
    assert record.of(StopLine)[0].reason == "SIGTERM"


def test_a_sampler_may_outlive_what_ends_all_others(
    run: RunDir, install_gpus: Install, gpu_uuid: str
) -> None:
    """A preemption's SIGTERM reaches every process of a job; the launcher ends the sampler, by another signal."""
    install_gpus(Board(uuid=gpu_uuid, curve=[(0.0, 300.0)]))
    sampler = Sampler(run, SamplerSettings(ignores_sigterm=True))
    ready = sampler.start()
    os.kill(ready.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert not [line for line in read_record(run).of(StopLine)]
    assert sampler.stop() == 0
    assert read_record(run).of(StopLine)[0].reason == "SIGUSR2"


def test_a_gpu_has_one_owner(tmp_path: Path, install_gpus: Install, gpu_uuid: str) -> None:
    install_gpus(Board(uuid=gpu_uuid, curve=[(0.0, 300.0)]))
    first, second = RunDir(tmp_path / "first"), RunDir(tmp_path / "second")
    with Sampler(first):
        with pytest.raises(UserError, match=f"{gpu_uuid} is already measured by another") as told:
            Sampler(second).start()
        assert "\n" not in str(told.value)
        assert not second.power_files()
    with Sampler(second) as sampler:  # free again
        assert sampler.uuids() == [gpu_uuid]


def test_a_host_device_may_be_shared_and_says_so(tmp_path: Path) -> None:
    first, second = RunDir(tmp_path / "first"), RunDir(tmp_path / "second")
    with Sampler(first, ESTIMATE), Sampler(second, ESTIMATE):
        pass
    assert "shared" in events(read_record(second))


def test_estimate_is_labelled_and_stated(run: RunDir) -> None:
    with Sampler(run, ESTIMATE) as sampler:
        time.sleep(0.5)
        uuids = sampler.uuids()
    record = read_record(run)
    (start,) = record.of(StartLine)
    assert (start.meters, start.why) == (["estimate"], "estimate was asked for")
    devices = record.of(DeviceLine)
    assert [device.uuid for device in devices] == uuids
    assert devices[0].parameters is not None
    assert devices[0].parameters["tdp_from"] == "default"
    measured = [*record.of(PowerLine), *record.of(CounterLine), *devices]
    assert {line.source for line in measured} == {"estimated"}


RANK = """
import sys, time
from pathlib import Path
from ekd_nemo.telemetry.marks import Marks
marks = Marks(Path(sys.argv[1]), rank=0, uuids=[], parallel={"data": 0})
marks.begin("student_train")
print("marked", flush=True)
time.sleep(60)
"""
LAUNCHER = """
import subprocess, sys
from pathlib import Path
from ekd_nemo.meter.choose import MeterSettings
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.process import Sampler
from ekd_nemo.telemetry.settings import SamplerSettings
run = RunDir(Path(sys.argv[1]))
meters = MeterSettings(meter="estimate")
sampler = Sampler(run, SamplerSettings(meters=meters, linger_s=float(sys.argv[2])))
print(sampler.start().pid, flush=True)
rank = subprocess.Popen([sys.executable, "-c", sys.argv[3], str(run.marks(0))])
print(rank.pid, flush=True)
rank.wait()
"""


def launch(run: RunDir, linger_s: float) -> tuple[subprocess.Popen[str], int, int]:
    """A launcher with a sampler and one rank; their process ids."""
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(run.path), str(linger_s), RANK],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    sampler_pid, rank_pid = int(launcher.stdout.readline()), int(launcher.stdout.readline())
    assert launcher.stdout.readline() == "marked\n"
    return launcher, sampler_pid, rank_pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_the_sampler_outlives_its_launcher_but_not_its_run(run: RunDir) -> None:
    launcher, sampler_pid, rank_pid = launch(run, linger_s=0.3)
    launcher.kill()
    launcher.wait()
    try:
        before = power_lines(run)
        time.sleep(1.0)
        assert power_lines(run) >= before + 5  # the rank still runs, so it still samples
    finally:
        kill(rank_pid)
    wait_for(lambda: not psutil.pid_exists(sampler_pid))
    record = read_record(run)
    assert record.of(StopLine)[0].reason == "watched processes gone"
    assert record.report.torn == 0
    assert "mark" in {line.cause for line in record.of(CounterLine)}


def test_a_relaunch_replaces_a_leftover_sampler(run: RunDir) -> None:
    launcher, sampler_pid, rank_pid = launch(run, linger_s=30)
    launcher.kill()
    launcher.wait()
    kill(rank_pid)
    assert psutil.pid_exists(sampler_pid)
    with Sampler(run, ESTIMATE):
        wait_for(lambda: not psutil.pid_exists(sampler_pid))
    record = read_record(run)
    reasons = [line.reason for line in record.of(StopLine)]
    assert reasons == ["replaced by a newer sampler of this run", "SIGTERM"]
    assert len({line.sampler for line in record.of(StartLine)}) == 2


def test_everything_before_a_kill_is_there(run: RunDir) -> None:
    sampler = Sampler(run, ESTIMATE)
    ready = sampler.start()
    time.sleep(1.5)
    killed_ns = time.monotonic_ns()
    kill(ready.pid)
    sampler.stop()
    record = read_record(run)
    assert (record.report.torn, record.report.bad, record.of(StopLine)) == (0, 0, [])
    power = record.of(PowerLine)
    assert len(power) >= 10
    # at most a jittered period (125 ms) and a busy machine's delay before the kill
    assert killed_ns - power[-1].t_mono_ns < 0.5e9
    with Sampler(run, ESTIMATE):  # and a relaunch appends to it
        pass
    assert len(read_record(run).of(StartLine)) == 2


def test_marks_are_answered_with_counters_at_most_once_a_second(run: RunDir) -> None:
    run.telemetry.mkdir(parents=True)
    settings = SamplerSettings(
        meters=MeterSettings(meter="estimate"), counter_period_ms=60_000, linger_s=30
    )
    with Sampler(run, settings) as sampler:
        marks = Marks(run.marks(0), rank=0, uuids=sampler.uuids(), parallel={"data": 0})
        for _ in range(20):
            with marks.phase("student_train"):
                time.sleep(0.06)
        marks.close()
    causes = [line.cause for line in read_record(run).of(CounterLine)]
    assert causes[0] == "start"
    assert causes[-1] == "stop"
    assert causes.count("mark") == 2  # 1.2 s of marks
    assert "period" not in causes


def test_replay_plays_a_record_again_and_ends(tmp_path: Path, run: RunDir) -> None:
    recorded = tmp_path / "power-old.jsonl"
    common = {"node": "old", "boot_id": "b", "sampler": "s", "uuid": "GPU-r", "meter": "nvml"}
    stamps = [{"t_mono_ns": 7 * 10**9 + n * 10**8, "t_wall_ns": n} for n in range(21)]
    device = DeviceLine(
        **common, **stamps[0], source="measured", name="H100", device_kind="gpu",
        role="accelerator", covers="the board",
    )  # fmt: skip
    with JsonlStore(recorded) as store:
        store.append([device])
        for n, at in enumerate(stamps):
            counted = CounterLine(**common, **at, source="measured", e_mj=25_000 * n, cause="mark")
            store.append([PowerLine(**common, **at, source="measured", p_avg_mw=250_000), counted])
    meters = MeterSettings(meter="replay", replay_file=recorded, replay_speed=2)
    settings = SamplerSettings(meters=meters, linger_s=30, counter_period_ms=50)
    sampler = Sampler(run, settings)
    pid = sampler.start().pid
    wait_for(lambda: run.power_files() and '"kind":"stop"' in run.power_files()[0].read_text())
    assert sampler.stop() == 0
    assert not psutil.pid_exists(pid)
    record = read_record(run)
    assert record.of(StopLine)[0].reason == "end of replay"
    assert record.of(DeviceLine)[0].parameters == {
        "replayed_file": "power-old.jsonl",
        "replayed_meter": "nvml",
        "replayed_source": "measured",
        "speed": 2.0,
    }
    power = record.of(PowerLine, "GPU-r")
    assert {line.source for line in power} == {"replayed"}
    assert {line.p_avg_mw for line in power} == {250_000}
    counters = record.of(CounterLine, "GPU-r")
    counted_j = (counters[-1].e_mj - counters[0].e_mj) / 1000
    assert counted_j == pytest.approx(250.0, abs=25)  # 2 s in one, less what the first tick missed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--meter", "rapl"], "error: rapl: no package zone under /sys/class/powercap"),
        (["--power-period-ms", "1"], "error: power_period_ms must be in 10..60000, got 1"),
        (["--meter", "replay"], "error: meter replay and replay_file go together"),
        (["--meter=replay", "--replay-file=/x.jsonl"], "error: replay: /x.jsonl: no such file"),
        (["--cpu-tdp-w", "-3"], "error: cpu_tdp_w must be above 0 W, got -3.0"),
    ],
)
def test_refusals_are_one_line_and_exit_2(
    run: RunDir, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "rapl" in says and Path("/sys/class/powercap").exists():
        pytest.skip("this machine has RAPL")
    assert main(["--run", str(run.path), *options]) == 2
    told = capsys.readouterr().err
    assert told.startswith(says)
    assert told.count("\n") == 1
    assert not run.power_files()
