"""Runs as a node with four simulated H100s would leave them: three methods with repeats, and the maker of a cache.

    python -m tests.simulated_runs FOLDER        # to look at a report of them

Every board has a scripted power curve, a gain, a one-second sensor and a counter that integrates the same curve;
temperature follows power with a lag. The lines go through the real record classes.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ekd_nemo.evals.eval_dir import EvalDir
from ekd_nemo.metrics.phase_stack import PHASE_NUMBER
from ekd_nemo.records.ept import (
    EptDevice,
    EptEngine,
    EptFile,
    EptModel,
    EptRepeat,
    EptWorkload,
    ept_entry,
    write_ept,
)
from ekd_nemo.records.identity import Input, write_identity
from ekd_nemo.records.lines import StateLine
from ekd_nemo.records.rundir import RunDir
from tests.unit.evals.sidecars import sidecar
from tests.unit.metrics.synthetic import Recorder, identity, write_log

Floats = npt.NDArray[np.float64]

BOARDS: Final = 4
GAINS: Final = (1.0, 0.975, 1.03, 0.99)
TICK_S: Final = 0.5
_WATTS: Final = {"prerun": 118, "teacher_forward": 655, "teacher_cache": 668, "student_train": 590,
                 "checkpoint": 142, "eval": 380, "idle": 74}  # fmt: skip
_BUSY_PCT: Final = {"prerun": 6, "teacher_forward": 99, "teacher_cache": 99, "student_train": 96, "checkpoint": 3,
                    "eval": 71, "idle": 0}  # fmt: skip
_GB: Final = {"prerun": 18, "teacher_forward": 71, "teacher_cache": 58, "student_train": 64, "checkpoint": 64,
              "eval": 31, "idle": 1}  # fmt: skip
_TASKS: Final = {"arc_challenge": 0.25, "hellaswag": 0.25, "mmlu": 0.25}
_TEACHER: Final = {"arc_challenge": 0.634, "hellaswag": 0.861, "mmlu": 0.823}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A recipe of the simulated node.

    Attributes:
        step_s: length of a step; `teacher_s` of it runs the teacher.
        scores: of the student, by task.
    """

    recipe: str
    name: str
    steps: int
    step_s: float
    teacher_s: float = 0.0
    watts: float = 1.0
    val_kl: float | None = None
    scores: dict[str, float] | None = None
    inputs: tuple[Input, ...] = ()
    baseline: str | None = None


CACHE: Final = "cache_70b-5ca1ab1e-s1"
METHODS: Final = (
    Method(recipe="sft_8b", name="sft", steps=90, step_s=5.0, watts=0.96, val_kl=0.412,
           scores={"arc_challenge": 0.553, "hellaswag": 0.792, "mmlu": 0.684}),
    Method(recipe="response_70b_to_8b", name="response", steps=90, step_s=11.0, teacher_s=6.5, val_kl=0.187,
           scores={"arc_challenge": 0.588, "hellaswag": 0.811, "mmlu": 0.703}, baseline="sft_8b"),
    Method(recipe="feature_70b_to_8b", name="feature", steps=90, step_s=6.1, watts=1.03, val_kl=0.296,
           scores={"arc_challenge": 0.571, "hellaswag": 0.806, "mmlu": 0.697}, baseline="sft_8b",
           inputs=(Input(kind="cache", path="caches/70b", run_id=CACHE),)),
)  # fmt: skip


def timeline(
    method: Method, scale: float, *, evaluated: bool = True
) -> list[tuple[str, float, float]]:
    """Phases as name, start and end in s, without holes; the teacher's part of a step comes first."""
    at, found = 0.0, []

    def add(phase: str, length_s: float) -> None:
        nonlocal at
        found.append((phase, at, at + length_s))
        at += length_s

    add("idle", 3.0)
    add("prerun", 34.0)
    for step in range(1, method.steps + 1):
        if method.teacher_s:
            add("teacher_forward", method.teacher_s * scale)
        add("student_train", (method.step_s - method.teacher_s) * scale)
        if step % 45 == 0:
            add("checkpoint", 14.0)
    if evaluated:
        add("eval", 45.0)
    add("idle", 3.0)
    return found


def power_curve(phases: Sequence[tuple[str, float, float]], watts: float, rng: Any) -> Floats:
    """True power of one board at ticks of half a second: phases with noise and an all-reduce's dip."""
    ticks = np.arange(0.0, phases[-1][2], TICK_S)
    power = np.full(len(ticks), np.nan)  # a tick that no phase holds is an error, not a number
    for phase, start_s, end_s in phases:
        inside = (ticks >= start_s) & (ticks < end_s)
        power[inside] = _WATTS[phase] * (watts if _WATTS[phase] > 300 else 1.0)
    dips = (ticks % 5.0 < 0.5) & (power > 300)
    noise = rng.normal(0.0, 0.025, len(ticks))
    return np.clip(power * (1 + noise) * np.where(dips, 0.82, 1.0), 60.0, 715.0)


def make_run(folder: Path, method: Method, seed: int, *, period_s: float = 1.0, gap: bool = False,
             reset: bool = False) -> RunDir:  # fmt: skip
    """One repeat of a method, with a gap of 12 s in its samples or a counter's reset where asked."""
    rng = np.random.default_rng([seed, sum(method.recipe.encode())])
    phases = timeline(method, float(rng.normal(1.0, 0.02)))
    recipe_hash = sha256(method.recipe.encode()).hexdigest()[:12]
    run = RunDir(folder / f"{method.recipe}-{recipe_hash[:8]}-s{seed}")
    return _write(run, method, seed, recipe_hash, phases, rng, period_s, gap, reset)


def _write(run: RunDir, method: Method, seed: int, recipe_hash: str, phases: list[tuple[str, float, float]],
           rng: Any, period_s: float, gap: bool, reset: bool) -> RunDir:  # fmt: skip
    write_identity(
        run,
        identity(run.run_id, recipe=method.recipe, method=method.name, seed=seed, recipe_hash=recipe_hash,
                 baseline=method.baseline, inputs=method.inputs),
    )  # fmt: skip
    recorder = Recorder()
    for board in range(BOARDS):
        curve = power_curve(phases, method.watts * GAINS[board], rng)
        _sample(
            recorder,
            f"GPU-{board}f3a1c77",
            board,
            phases,
            curve,
            period_s,
            gap,
            reset and board == 2,
        )
    _mark(recorder, method, phases)
    recorder.write(run)
    _log(run, method, rng)
    if method.scores is not None:
        for task, score in method.scores.items():
            _score(run, "student", task, score + float(rng.normal(0.0, 0.004)))
            _score(run, "teacher", task, _TEACHER[task])
        _benchmark(run, rng)
    return run


def _sample(recorder: Recorder, uuid: str, board: int, phases: Sequence[tuple[str, float, float]], curve: Floats,
            period_s: float, gap: bool, reset: bool) -> None:  # fmt: skip
    recorder.device(uuid, name="NVIDIA H100 80GB HBM3 (simulated)")
    energy_j = np.concatenate(([0.0], np.cumsum(curve) * TICK_S))
    edges_s = np.arange(len(energy_j)) * TICK_S

    def energy(at_s: float) -> float:
        return float(np.interp(at_s, edges_s, energy_j))

    celsius, names = 34.0 + board, [phase for phase, _, _ in phases]
    starts = np.array([start for _, start, _ in phases])
    for tick in range(1, math.floor(phases[-1][2] / period_s)):
        at_s = tick * period_s
        if gap and 200 < at_s < 212:
            continue
        begin_s = max(0.0, at_s - 1.0)
        watts = (energy(at_s) - energy(begin_s)) / (at_s - begin_s)
        recorder.power(uuid, at_s, watts)
        counted_j = energy(at_s) - (energy(300.0) if reset and at_s > 300 else 0.0)
        recorder.counter(uuid, at_s, 1e6 * (at_s <= 300 or not reset) + counted_j)
        celsius += (31.0 + board + 0.052 * watts - celsius) * (1 - math.exp(-period_s / 25))
        phase = names[int(np.searchsorted(starts, at_s, side="right")) - 1]
        recorder.telemetry.append(_state(recorder, uuid, at_s, phase, tick, celsius))


def _state(
    recorder: Recorder, uuid: str, at_s: float, phase: str, tick: int, celsius: float
) -> StateLine:
    busy = _BUSY_PCT[phase] - (tick % 5 == 0) * (_BUSY_PCT[phase] > 50) * 14
    return StateLine(
        **recorder.where(at_s), sampler=recorder.sampler, uuid=uuid, meter="nvml", source="measured",
        util_pct=busy, memory_util_pct=busy // 2, memory_used_bytes=_GB[phase] << 30, memory_total_bytes=80 << 30,
        temperature_c=round(celsius), clock_sm_mhz=1980, clock_memory_mhz=2619, throttle_mask=0,
    )  # fmt: skip


def _mark(recorder: Recorder, method: Method, phases: Sequence[tuple[str, float, float]]) -> None:
    for rank in range(BOARDS):
        where = {
            "uuids": [f"GPU-{rank}f3a1c77"],
            "parallel": {"tensor": rank, "pipeline": 0, "data": 0},
        }
        step = 0
        for phase, start_s, end_s in phases:
            if phase == "idle":
                continue
            assert phase in PHASE_NUMBER
            recorder.phase(rank, phase, start_s, end_s, **where)
            if phase in ("student_train", "teacher_cache"):
                step += 1
                recorder.step(rank, end_s, step, 65_536, **where)


def _log(run: RunDir, method: Method, rng: Any) -> None:
    steps = [
        {"attempt": 1, "step": step, "loss": 1.2 + 1.6 / step + float(rng.normal(0, 0.01)), "ce": 1.4 + 1.2 / step,
         "tokens": 65_536, "tokens_valid": 65_000}
        for step in range(1, method.steps + 1)
    ]  # fmt: skip
    if method.val_kl is None:
        write_log(run, steps)
        return
    kl = method.val_kl + float(rng.normal(0.0, 0.006))
    write_log(run, [*steps, {"attempt": 1, "step": method.steps, "val_ce": 1.31 + kl / 4, "val_kl_to_teacher": kl,
                             "val_tokens": 131_072}])  # fmt: skip


def _score(run: RunDir, role: str, task: str, value: float) -> None:
    """A result file as lm-eval writes it, and its settings."""
    items = 1000
    stderr = math.sqrt(value * (1 - value) / items)
    result = {
        "results": {task: {"alias": task, "acc,none": value, "acc_stderr,none": stderr}},
        "configs": {task: {"task": task, "metadata": {"version": 1.0, "primary_metric": "acc",
                                                      "chance": {"acc": _TASKS[task]}}}},
        "higher_is_better": {task: {"acc": True}},
        "n-samples": {task: {"original": items, "effective": items}},
        "versions": {task: 1.0},
        "n-shot": {task: 0},
        "lm_eval_version": "0.4.13",
        "group_subtasks": {},
        "config": {"model_dtype": "torch.bfloat16"},
    }  # fmt: skip
    folder = EvalDir(run.eval)
    folder.settings(role, task).parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(result).encode()
    folder.results(role, task).write_bytes(data)
    settings = sidecar(task, role, results_sha256=sha256(data).hexdigest(), num_items={task: items})
    folder.settings(role, task).write_text(settings.model_dump_json())


def _benchmark(run: RunDir, rng: Any) -> None:
    """`ept.json` of student and teacher: three repeats at two batch sizes, fixed lengths."""
    workload = EptWorkload(
        prompts="built-in", mode="fixed", input_tokens=512, new_tokens=128, requests=64
    )
    entries = [
        ept_entry(
            role=role,
            model=EptModel(path=f"models/{role}"),
            engine=EptEngine(name="vllm", version="0.11", dtype="bfloat16", tensor=boards),
            devices=tuple(EptDevice(uuid=f"GPU-{board}f3a1c77") for board in range(boards)),
            workload=workload,
            batch_size=batch,
            source="measured",
            meter="nvml",
            repeats=[
                EptRepeat(energy_j=joules * 64 * 640 * (1.5 if batch == 8 else 1) * float(rng.normal(1, 0.01)),
                          duration_s=20.0, input_tokens=64 * 512, output_tokens=64 * 128, requests=64, coverage=1.0)
                for _ in range(3)
            ],
        )
        for role, joules, boards in (("student", 0.14, 1), ("teacher", 1.21, 4))
        for batch in (8, 64)
    ]  # fmt: skip
    write_ept(run.ept_json, EptFile().with_entries(entries))


def make_cache_run(folder: Path, *, period_s: float = 1.0) -> RunDir:
    """The run that made the teacher's cache, which the feature runs read."""
    maker = Method(recipe="cache_70b", name="cache", steps=40, step_s=6.5)
    phases = [
        ("teacher_cache" if phase == "student_train" else phase, start, end)
        for phase, start, end in timeline(maker, 1.0, evaluated=False)
    ]
    run = RunDir(folder / CACHE)
    return _write(
        run, maker, 1, "5ca1ab1e0000", phases, np.random.default_rng(7), period_s, False, False
    )


def make_runs(folder: Path, repeats: int = 5, *, period_s: float = 1.0) -> Path:
    """The cache's maker and the repeats of each method; one repeat has a gap, one a counter's reset."""
    make_cache_run(folder, period_s=period_s)
    for method in METHODS:
        for seed in range(1, repeats + 1):
            make_run(folder, method, seed, period_s=period_s, gap=(method.name, seed) == ("response", 2),
                     reset=(method.name, seed) == ("sft", 3))  # fmt: skip
    return folder


if __name__ == "__main__":
    make_runs(Path(sys.argv[1]))
