"""How long `ekd metrics summarise` takes on the records of a big run, and what a plain reading of them would take.

The records are those that the samplers of 64 nodes with 8 GPUs each leave: power at 10 Hz, counters and device state
at 1 Hz, packed into Parquet segments as they grew, the rest as JSON lines; and the marks of 512 ranks, a step every
ten seconds with the teacher's forward pass inside it. The plain reading is json and pandas over 1 M of the same
power samples as JSON lines, scaled by count.

    python tools/bench/summarise.py --samples 100e6 --sizes 6.25e6 25e6 --folder /tmp/bench
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from ekd_nemo.records.identity import Attempt, CodeVersion, RunIdentity, write_identity
from ekd_nemo.records.lines import DeviceLine, PowerLine, StartLine
from ekd_nemo.records.parse import encode
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.records.segments import SegmentSeries, write_segment

NODES, GPUS = 64, 8
POWER_HZ = 10
STEP_S = 10
SEGMENT_S = 7200  # what one segment holds
S = 1_000_000_000
WALL_NS = 1_790_000_000 * S


def make_run(run: RunDir, samples: int, seed: int = 7) -> dict[str, float]:
    """Write a run of so many power samples; returns seconds of run time and bytes written."""
    seconds = max(60, samples // (NODES * GPUS * POWER_HZ))
    attempt = Attempt(
        attempt=1,
        t_wall_ns=WALL_NS,
        node="n00",
        boot_id="0" * 12,
        argv=("bench",),
        code=CodeVersion(version="0"),
        python="3",
        platform="bench",
        packages={},
        environment={},
    )
    identity = RunIdentity(
        run_id=run.run_id, recipe="bench", recipe_hash="0" * 12, method="response", seed=1
    )
    write_identity(run, identity.model_copy(update={"attempts": (attempt,)}))
    run.telemetry.mkdir()
    for node in range(NODES):
        _node(run, node, seconds, np.random.default_rng([seed, node]))
        for gpu in range(GPUS):
            _marks(run, node, gpu, seconds)
    size = sum(path.stat().st_size for path in run.telemetry.iterdir())
    return {"seconds": seconds, "bytes": size}


def made_or_found(run: RunDir, samples: int) -> dict[str, float]:
    """The run's seconds and bytes; made where it is not there yet."""
    facts = run.path / "made.json"
    if not facts.is_file():
        shutil.rmtree(run.path, ignore_errors=True)
        facts.write_text(json.dumps(make_run(run, samples)))
    return json.loads(facts.read_text())


def _uuid(node: int, gpu: int) -> str:
    return f"GPU-{node:08x}-0000-0000-0000-{gpu:012x}"


def _node(run: RunDir, node: int, seconds: int, random: np.random.Generator) -> None:
    """One sampler's files."""
    name, boot = f"n{node:02d}", f"{node:012x}"
    origin = (node + 1) * 1_000_000 * S
    where = {
        "node": name,
        "boot_id": boot,
        "t_mono_ns": origin,
        "t_wall_ns": WALL_NS,
        "sampler": f"{node:08x}",
    }
    lines = [
        StartLine(
            **where,
            pid=1,
            power_period_ms=100,
            counter_period_ms=1000,
            code_version="0",
            meters=["nvml"],
            why="bench",
        )
    ]
    for gpu in range(GPUS):
        lines.append(
            DeviceLine(
                **where,
                uuid=_uuid(node, gpu),
                meter="nvml",
                source="measured",
                name="GPU",
                device_kind="gpu",
                role="accelerator",
                covers="board",
                p_avg_window_ms=1000,
                power_limit_mw=700_000,
                idle_power_mw=70_000,
            )
        )
    run.power(name).write_text("".join(encode(line) + "\n" for line in lines))
    state = dict.fromkeys(range(GPUS), 0.0)
    for part, start in enumerate(range(0, seconds, SEGMENT_S)):
        tables = {}
        for gpu in range(GPUS):
            length = min(SEGMENT_S, seconds - start)
            power, counter, slow, state[gpu] = _series(
                origin + start * S, length, state[gpu], random
            )
            key = {
                "node": name,
                "boot_id": boot,
                "sampler": where["sampler"],
                "uuid": _uuid(node, gpu),
                "meter": "nvml",
                "source": "measured",
            }
            tables |= {
                SegmentSeries(kind, **key): t
                for kind, t in (("power", power), ("counter", counter), ("state", slow))
            }
        write_segment(run.telemetry / f"power-{name}.{part:04d}.parquet", tables)


def _series(
    origin: int, seconds: int, energy_mj: float, random: np.random.Generator
) -> tuple[pa.Table, pa.Table, pa.Table, float]:
    """Power, counter and state of one GPU: a noisy load between 500 and 700 W."""
    ticks = (
        origin
        + np.arange(seconds * POWER_HZ) * (S // POWER_HZ)
        + random.integers(0, 20_000_000, seconds * POWER_HZ)
    )
    power = (
        600_000 + 90_000 * np.sin(np.arange(len(ticks)) / 500) + random.normal(0, 5_000, len(ticks))
    )
    power = power.astype(np.int64)
    wall = ticks - origin + WALL_NS
    counted = energy_mj + np.cumsum(power.reshape(seconds, POWER_HZ).mean(axis=1))
    slow = ticks[POWER_HZ - 1 :: POWER_HZ]
    slow_wall = slow - origin + WALL_NS
    state = {
        "util_pct": 99,
        "memory_used_bytes": 70 << 30,
        "temperature_c": 60,
        "clock_sm_mhz": 1_900,
    }
    return (
        pa.table(
            {
                "t_mono_ns": ticks,
                "t_wall_ns": wall,
                "t_driver_us": wall // 1000,
                "p_avg_mw": power,
                "p_inst_mw": power + 1_000,
            }
        ),
        pa.table(
            {
                "t_mono_ns": slow,
                "t_wall_ns": slow_wall,
                "e_mj": counted.astype(np.int64),
                "cause": ["period"] * seconds,
            }
        ),
        pa.table(
            {
                "t_mono_ns": slow,
                "t_wall_ns": slow_wall,
                **{k: np.full(seconds, v, np.int64) for k, v in state.items()},
            }
        ),
        float(counted[-1]),
    )


def _marks(run: RunDir, node: int, gpu: int, seconds: int) -> None:
    """One rank's marks, as `telemetry.marks` writes them."""
    rank = node * GPUS + gpu
    origin = (node + 1) * 1_000_000 * S
    who = {
        "rank": rank,
        "attempt": 1,
        "node": f"n{node:02d}",
        "boot_id": f"{node:012x}",
        "uuids": [_uuid(node, gpu)],
        "parallel": {"tensor": gpu, "pipeline": 0, "data": node},
    }
    tail = json.dumps(who, separators=(",", ":"))[1:]

    def line(kind: str, at_ns: int, body: str) -> str:
        times = f'"t_mono_ns":{at_ns},"t_wall_ns":{WALL_NS + at_ns - origin}'
        return f'{{"schema_version":1,"kind":"{kind}",{times},{body},{tail}\n'

    rows = [line("phase_begin", origin + S, '"phase":"student_train"')]
    for step in range(1, (seconds - 20) // STEP_S + 1):
        end = origin + step * STEP_S * S
        rows.append(line("phase_begin", end - 9 * S, '"phase":"teacher_forward"'))
        rows.append(line("phase_end", end - 5 * S, '"phase":"teacher_forward"'))
        rows.append(line("step", end, f'"step":{step},"tokens":65536,"tokens_valid":60000'))
    end = origin + (seconds - 10) * S
    rows += [
        line("phase_end", end, '"phase":"student_train"'),
        line("phase_begin", end, '"phase":"checkpoint"'),
    ]
    rows.append(line("phase_end", end + 5 * S, '"phase":"checkpoint"'))
    run.marks(rank).write_text("".join(rows))


def summarise(run: RunDir) -> dict[str, float]:
    """Wall and CPU seconds and the peak memory of the command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    program = (
        "import sys; from ekd_nemo.cli.app import main; code = main(sys.argv[1:]); "
        "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')], "
        "file=sys.stderr); sys.exit(code)"
    )  # not ru_maxrss, which a child inherits
    command = [
        sys.executable,
        "-c",
        program,
        "metrics",
        "summarise",
        str(run.path),
        "--format",
        "csv",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall_s = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_gib": int(done.stderr.split()[-1]) / 2**20}


def plain_reading(folder: Path, count: int = 1_000_000) -> float:
    """Seconds of CPU that json and pandas take for so many power samples as JSON lines."""
    import pandas as pd

    path = folder / "plain.jsonl"
    per_gpu = count // GPUS
    random = np.random.default_rng(1)
    with path.open("w") as file:
        for gpu in range(GPUS):
            power, _, _, _ = _series(S, per_gpu // POWER_HZ, 0.0, random)
            for row in power.to_pylist():
                file.write(
                    encode(
                        PowerLine(
                            node="n00",
                            boot_id="0" * 12,
                            sampler="0" * 8,
                            uuid=_uuid(0, gpu),
                            meter="nvml",
                            source="measured",
                            **row,
                        )
                    )
                    + "\n"
                )
    start = time.process_time()
    with path.open() as file:
        frame = pd.DataFrame([json.loads(line) for line in file])
    energy = 0.0
    for _, part in frame[frame.kind == "power"].groupby("uuid"):
        ordered = part.sort_values("t_mono_ns")
        energy += (
            np.trapezoid(ordered.p_avg_mw, ordered.t_mono_ns)
            if hasattr(np, "trapezoid")
            else np.trapz(ordered.p_avg_mw, ordered.t_mono_ns)
        )
    spent = time.process_time() - start
    path.unlink()
    assert energy > 0
    return spent


def main() -> None:
    """Print a line a size, and the ratio to the plain reading."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=[6.25e6, 25e6, 100e6], help="power samples"
    )
    parser.add_argument("--folder", type=Path, required=True, help="emptied and left behind empty")
    parser.add_argument("--skip-plain", action="store_true")
    parser.add_argument(
        "--keep", action="store_true", help="leave the records there, and take those that are there"
    )
    parser.add_argument("--make-only", action="store_true", help="with --keep: measure nothing")
    options = parser.parse_args()
    if not options.keep:
        shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.make_only:
        for size in map(int, options.sizes):
            made_or_found(RunDir(options.folder / f"run-{size}"), size)
        return
    plain_s = None if options.skip_plain else plain_reading(options.folder)
    if plain_s is not None:
        print(f"json and pandas: {plain_s:.1f} s of CPU for 1 M samples")
    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}")
    print("power samples, run time, on disk: wall, CPU, peak memory")
    for size in map(int, options.sizes):
        run = RunDir(options.folder / f"run-{size}")
        made = made_or_found(run, size)
        count = int(made["seconds"]) * NODES * GPUS * POWER_HZ
        cost = summarise(run)
        ratio = (
            ""
            if plain_s is None
            else f", {plain_s * count / 1e6 / cost['cpu_s']:.0f} times the plain reading (CPU)"
        )
        print(
            f"{count / 1e6:.1f} M, {made['seconds'] / 3600:.2f} h, {made['bytes'] / 1e9:.2f} GB: "
            f"{cost['wall_s']:.1f} s, {cost['cpu_s']:.1f} s, {cost['peak_gib']:.2f} GiB{ratio}",
            flush=True,
        )
        if not options.keep:
            shutil.rmtree(run.path)
    if not options.keep:
        options.folder.rmdir()


if __name__ == "__main__":
    main()
