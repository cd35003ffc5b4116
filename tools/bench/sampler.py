"""What a sampler costs: 8 simulated GPUs at 10 Hz, and marks beside a training step.

    python tools/bench/sampler.py [--gpus 8] [--seconds 30] [--rounds 400] [--only-step]

CPU time is the kernel's account of the process (getrusage), as the sampler writes it into its stop line. The share
spent inside the meter's calls is shown apart: here it is the simulated driver, in Python; on a real GPU it is NVML.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ekd_nemo.meter.choose import MeterSettings
from ekd_nemo.records.jsonl import ReadReport, read_lines
from ekd_nemo.records.lines import PowerLine, StopLine
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.marks import Marks
from ekd_nemo.telemetry.process import Sampler
from ekd_nemo.telemetry.settings import SamplerSettings

SIMULATED = Path(__file__).parents[2] / "tests" / "unit" / "meter" / "simulated_nvml"
sys.path.insert(0, str(SIMULATED))
from board import Board, Machine  # noqa: E402  # the tests' simulated boards, which no package holds

PERCENT_PER_US_PER_S = 1e-4
STEP_WORK = 60_000
STEPS = 15
BOOTSTRAPS = 2000
MARKS, MARK_BATCHES = 500, 9


def install_gpus(folder: Path, num_gpus: int) -> Machine:
    """Give this process's children a machine with so many boards."""
    curve = [(0.0, 150.0), (5.0, 600.0), (3600.0, 500.0)]
    boards = [Board(uuid=f"GPU-bench-{os.getpid()}-{n}", curve=curve) for n in range(num_gpus)]
    machine = Machine(boards, None, 0, folder)
    os.environ["SIMULATED_NVML"] = str(machine.save())
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(SIMULATED), os.environ.get("PYTHONPATH")])
    )
    return machine


def measure_sampler(run: RunDir, settings: SamplerSettings, duration_s: float) -> None:
    """Sample for a while and print the account."""
    with Sampler(run, settings):
        time.sleep(duration_s)
    lines = list(read_lines(run.power_files()[0], ReadReport()))
    (stop,) = (line for line in lines if isinstance(line, StopLine))
    power = [line for line in lines if isinstance(line, PowerLine)]
    total_us = stop.cpu_user_us + stop.cpu_system_us - stop.startup_cpu_us
    own_us = total_us - stop.driver_cpu_us
    first = power[0].uuid
    periods_ms = [
        (b.t_mono_ns - a.t_mono_ns) / 1e6
        for a, b in pairwise(line for line in power if line.uuid == first)
    ]
    print(f"  devices          {len({line.uuid for line in power})}")
    print(
        f"  samples          {len(power)} ({stop.repeats_dropped} repeats dropped, {stop.ticks_missed} ticks missed)"
    )
    print(f"  mean period      {sum(periods_ms) / len(periods_ms):.1f} ms")
    print(
        f"  own CPU          {own_us * PERCENT_PER_US_PER_S / duration_s:.3f} % of a core, "
        f"{own_us * 60e-3 / duration_s:.0f} ms/min"
    )
    print(
        f"  meter's calls    {stop.driver_cpu_us * PERCENT_PER_US_PER_S / duration_s:.3f} % of a core"
    )
    print(f"  start-up         {stop.startup_cpu_us / 1e3:.0f} ms of CPU, once")
    print(f"  memory           {stop.max_rss_kib / 1024:.0f} MiB")
    print(
        f"  file             {run.power_files()[0].stat().st_size * 3600e-6 / duration_s:.1f} MB/h"
    )


def step() -> None:
    """Some work, of three milliseconds or so."""
    total = 0
    for number in range(STEP_WORK):
        total += number * number


def measure_step(run: RunDir, settings: SamplerSettings, rounds: int) -> None:
    """The same work with and without sampler and marks, in turns of a few hundredths of a second, in drawn order.

    What is compared is the CPU time that the kernel counts for the training process: waiting for a core is not in it,
    so that other work on the machine is not taken for the sampler's; what other work does to caches and clock rates
    is, and hits the turns alike. Between its turns the sampler is frozen by SIGSTOP. Its own CPU time is told apart.
    A second turn without it, the control, shows what these turns can tell.
    """
    drawn = random.Random(0)
    with Sampler(run, settings) as sampler:
        assert sampler.ready is not None
        pid = sampler.ready.pid
        with Marks(run.marks(0), rank=0, uuids=sampler.uuids(), parallel={"data": 0}) as marks:
            turns: dict[str, Callable[[], Turn]] = {
                "plain": lambda: turn(pid, None),
                "control": lambda: turn(pid, None),
                "metered": lambda: turn(pid, marks),
            }
            found: list[dict[str, Turn]] = []
            for _ in range(rounds):
                order = drawn.sample(sorted(turns), len(turns))
                found.append({name: turns[name]() for name in order})
        os.kill(pid, signal.SIGCONT)  # so that it can be asked to end
    for name, told in (("control", "without it again"), ("metered", "with them")):
        ratios = [100 * (one[name].own_ns / one["plain"].own_ns - 1) for one in found]
        low, high = median_interval(ratios, drawn)
        print(
            f"  {told:16} {statistics.median(ratios):+.2f} % of CPU time (95 %: {low:+.2f} to {high:+.2f})"
        )
    plain_ns = statistics.median(one["plain"].own_ns for one in found) / STEPS
    apart = sum(one["metered"].sampler_ns for one in found) / sum(
        one["metered"].wall_ns for one in found
    )
    print(f"  a step           {plain_ns / 1e6:.2f} ms of CPU; {rounds} rounds of {STEPS} steps")
    print(f"  the sampler      {100 * apart:.2f} % of a core in its turns, driver included")


class Turn(NamedTuple):
    """What some steps took: of this process's CPU time, of the sampler's, and of time."""

    own_ns: int
    sampler_ns: int
    wall_ns: int


def turn(pid: int, marks: Marks | None) -> Turn:
    """Some steps, with marks while the sampler runs, or without them while it is frozen."""
    os.kill(pid, signal.SIGSTOP if marks is None else signal.SIGCONT)
    begun, sampler_ns, wall_ns = time.process_time_ns(), cpu_of(pid), time.perf_counter_ns()
    for number in range(STEPS):
        step()
        if marks is not None:
            marks.step(step=number, tokens=4096)
    own_ns = time.process_time_ns() - begun
    return Turn(own_ns, cpu_of(pid) - sampler_ns, time.perf_counter_ns() - wall_ns)


def cpu_of(pid: int) -> int:
    """CPU time of another process's threads so far in ns, by the scheduler's account."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def median_interval(values: Sequence[float], drawn: random.Random) -> tuple[float, float]:
    """The 95 % interval of the median, by drawing the values anew (bootstrap)."""
    again = sorted(
        statistics.median(drawn.choices(values, k=len(values))) for _ in range(BOOTSTRAPS)
    )
    return again[round(0.025 * BOOTSTRAPS)], again[round(0.975 * BOOTSTRAPS) - 1]


def measure_marks(run: RunDir, settings: SamplerSettings) -> None:
    """What marks cost a rank in its own CPU time, with a sampler that listens."""
    with (
        Sampler(run, settings) as sampler,
        Marks(run.marks(0), rank=0, uuids=sampler.uuids(), parallel={"data": 0}) as marks,
    ):
        step_us = _cpu_us(lambda: marks.step(step=1, tokens=4096, tokens_valid=4000))

        def phase() -> None:
            with marks.phase("teacher_forward"):
                pass

        phase_us = _cpu_us(phase)
    whole_us = step_us + 2 * phase_us
    print(f"  a step's mark    {step_us:.1f} us of CPU")
    print(f"  a phase          {phase_us:.1f} us of CPU, begin and end")
    print(
        f"  a training step  {whole_us:.0f} us with two phases: 0.5 % of {whole_us / 5e3 * 1e3:.0f} ms"
    )


def _cpu_us(work: Callable[[], None]) -> float:
    """CPU time of one call: the median of batches."""
    costs: list[float] = []
    for _ in range(MARK_BATCHES):
        begin_s = time.process_time()
        for _ in range(MARKS):
            work()
        costs.append((time.process_time() - begin_s) * 1e6 / MARKS)
    return statistics.median(costs)


def main() -> None:
    """Print both accounts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--only-step", action="store_true", help="the comparison of steps alone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install_gpus(folder, args.gpus).begin()
        print(f"load {' '.join(f'{x:.1f}' for x in os.getloadavg())}, {os.cpu_count()} cores")
        nvml = SamplerSettings(meters=MeterSettings(meter="nvml"))
        print("a step of some milliseconds with sampler and marks, in turns:")
        measure_step(RunDir(folder / "step"), nvml, args.rounds)
        if args.only_step:
            return
        print(f"sampler with {args.gpus} simulated GPUs, {args.seconds:.0f} s:")
        measure_sampler(RunDir(folder / "gpus"), nvml, args.seconds)
        print("sampler with the estimate of this machine's processor:")
        estimate = SamplerSettings(meters=MeterSettings(meter="estimate"))
        measure_sampler(RunDir(folder / "cpu"), estimate, args.seconds)
        print("marks, by the rank's own account:")
        measure_marks(RunDir(folder / "marks"), nvml)


if __name__ == "__main__":
    main()
