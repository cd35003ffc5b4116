"""What a sampler costs: 8 simulated GPUs at 10 Hz, and marks beside a training step.

    python tools/bench/sampler.py [--gpus 8] [--seconds 30]

CPU time is the kernel's account of the process (getrusage), as the sampler writes it into its stop line. The share
spent inside the meter's calls is shown apart: here it is the simulated driver, in Python; on a real GPU it is NVML.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

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
STEPS = 21
PAIRS = 100
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


def step() -> float:
    """Some work; the seconds it took."""
    begin_s = time.perf_counter()
    total = 0
    for number in range(STEP_WORK):
        total += number * number
    return time.perf_counter() - begin_s


def measure_step(run: RunDir, settings: SamplerSettings) -> None:
    """The same work with and without sampler and marks, in turns of a fraction of a second.

    Between its turns the sampler is frozen by SIGSTOP, so that drift of the machine hits both alike.
    """
    ratios: list[float] = []
    with Sampler(run, settings) as sampler:
        assert sampler.ready is not None
        with Marks(run.marks(0), rank=0, uuids=sampler.uuids(), parallel={"data": 0}) as marks:
            for _ in range(PAIRS):
                os.kill(sampler.ready.pid, signal.SIGSTOP)
                plain_s = statistics.median(step() for _ in range(STEPS))
                os.kill(sampler.ready.pid, signal.SIGCONT)
                ratios.append(statistics.median(marked_step(marks) for _ in range(STEPS)) / plain_s)
    mean, error = statistics.mean(ratios) - 1, statistics.stdev(ratios) / PAIRS**0.5
    print(
        f"  step             {100 * mean:+.2f} % longer with them (standard error {100 * error:.2f} %)"
    )


def marked_step(marks: Marks) -> float:
    """A step that ends with its mark; the seconds of both."""
    begin_s = time.perf_counter()
    step()
    marks.step(step=0, tokens=4096)
    return time.perf_counter() - begin_s


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
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install_gpus(folder, args.gpus).begin()
        print(f"load {' '.join(f'{x:.1f}' for x in os.getloadavg())}, {os.cpu_count()} cores")
        print(f"sampler with {args.gpus} simulated GPUs, {args.seconds:.0f} s:")
        nvml = SamplerSettings(meters=MeterSettings(meter="nvml"))
        measure_sampler(RunDir(folder / "gpus"), nvml, args.seconds)
        print("sampler with the estimate of this machine's processor:")
        estimate = SamplerSettings(meters=MeterSettings(meter="estimate"))
        measure_sampler(RunDir(folder / "cpu"), estimate, args.seconds)
        print("marks, by the rank's own account:")
        measure_marks(RunDir(folder / "marks"), nvml)
        print("a step of some milliseconds with sampler and marks, in turns:")
        measure_step(RunDir(folder / "step"), nvml)


if __name__ == "__main__":
    main()
