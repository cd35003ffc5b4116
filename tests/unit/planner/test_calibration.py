"""Calibration: the factor of measured runs, what it changes, and what cannot be used."""

import json
from pathlib import Path
from typing import Any

import pytest

from ekd_nemo.cli.app import main
from ekd_nemo.config.cluster import PACKAGED_CLUSTERS, Cluster, load_cluster
from ekd_nemo.config.resolve import PACKAGED_RECIPES, resolve_recipe
from ekd_nemo.errors import RunDirError
from ekd_nemo.planner.alternatives import Machine, alternatives
from ekd_nemo.planner.assumptions import Assumptions
from ekd_nemo.planner.calibration import calibrate, measured_step_s
from ekd_nemo.planner.scenario import models
from ekd_nemo.records.lines import StateLine
from ekd_nemo.records.rundir import RunDir
from tests.unit.metrics.synthetic import Recorder

RANKS = 32


@pytest.fixture
def h100() -> Cluster:
    return load_cluster(str(PACKAGED_CLUSTERS / "h100.yaml")).cluster


def planned_s(on: Cluster) -> float:
    resolved = resolve_recipe("response_70b_to_8b", folders=[PACKAGED_RECIPES])
    machine = Machine(on, RANKS, Assumptions(), 1.0, resolved.place)
    found = alternatives(resolved.recipe, models(resolved.recipe, 8192, resolved.place), machine)[
        0
    ].found
    assert found is not None
    return found.step_s


def write_run(folder: Path, durations_s: list[float], world_size: int = RANKS) -> Path:
    """A run directory as training leaves it, cut short: its recipe, its attempt and its log with a torn end."""
    resolved = resolve_recipe("response_70b_to_8b", folders=[PACKAGED_RECIPES])
    (folder / "logs").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(resolved.text)
    (folder / "run.json").write_text(json.dumps({"attempts": [{"world_size": world_size}]}))
    lines = [
        json.dumps({"attempt": 1, "step": step, "loss": 1.0, "tokens": 1, "duration_s": duration_s})
        for step, duration_s in enumerate(durations_s, start=1)
    ]
    lines.insert(3, json.dumps({"attempt": 1, "step": 3, "val_ce": 2.0}))
    (folder / "logs" / "train.jsonl").write_text("\n".join(lines) + '\n{"attempt": 1, "st')
    return folder


def test_the_median_of_the_warm_steps(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [90.0, 60.0, 5.0, 6.0, 40.0])
    assert measured_step_s(RunDir(run)) == 6.0


def test_runs_scale_the_plan(tmp_path: Path, h100: Cluster) -> None:
    plan_s = planned_s(h100)
    slow = write_run(tmp_path / "slow", [99.0, 99.0, 2 * plan_s, 2 * plan_s])
    fast = write_run(tmp_path / "fast", [99.0, 99.0, plan_s / 2])
    assert calibrate([slow], h100, Assumptions()).factor == pytest.approx(2.0)
    both = calibrate([slow, fast], h100, Assumptions())
    assert both.factor == pytest.approx(1.0)  # the geometric mean
    assert "slow x2.00, fast x0.50" in both.sentence()
    assert calibrate([], h100, Assumptions()).factor == 1.0


def test_a_calibrated_plan_says_so(
    tmp_path: Path, h100: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_s = planned_s(h100)
    run = write_run(tmp_path / "measured", [9.0, 9.0, 1.5 * plan_s])
    argv = ["recipe", "plan", "response_70b_to_8b", "--cluster", "h100", "--format", "json"]
    assert main([*argv, "--calibrate", str(run)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["alternatives"][0]["step_s"] == pytest.approx(1.5 * plan_s)
    assert data["calibration"]["runs"] == [["measured", pytest.approx(1.5)]]


def planned_bytes(on: Cluster) -> int:
    resolved = resolve_recipe("response_70b_to_8b", folders=[PACKAGED_RECIPES])
    machine = Machine(on, RANKS, Assumptions(), 1.0, resolved.place)
    found = machine.estimate(resolved.recipe, models(resolved.recipe, 8192, resolved.place))
    return max(memory.total for memory in found.memory.values())


def test_boards_that_were_fuller_scale_memory(tmp_path: Path, h100: Cluster) -> None:
    plan_s, plan_bytes = planned_s(h100), planned_bytes(h100)
    runs = [write_run(tmp_path / name, [9.0, 9.0, plan_s]) for name in ("full", "bare", "silent")]
    peaks = {runs[0]: 1.21 * plan_bytes, runs[1]: float(plan_bytes)}
    found = calibrate(runs, h100, Assumptions(), peaks)
    assert found.memory_factor == pytest.approx(1.1)  # the geometric mean of the two that tell
    assert [one.run for one in found.memory] == ["full", "bare"]
    gib = plan_bytes / 2**30
    told = f"full x1.21 ({1.21 * gib:.1f} GiB in use on the fullest board"
    assert told in found.memory_sentence()
    assert found.factor == pytest.approx(1.0)


def record_memory(folder: Path, used_bytes: list[int]) -> None:
    """A sampler's record of one board while a rank trained, and of the evaluation after it, which used more."""
    run, recorder = RunDir(folder), Recorder()
    recorder.device("GPU-0")
    recorder.sample("GPU-0", 0, 100, lambda _: 500.0)
    for second in range(100):
        where: dict[str, Any] = recorder.where(second) | {
            "sampler": recorder.sampler,
            "uuid": "GPU-0",
        }
        used = used_bytes[second % len(used_bytes)] if second < 60 else 79 << 30
        line = StateLine(**where, meter="nvml", source="measured", memory_used_bytes=used)
        recorder.telemetry.append(line)
    recorder.phase(0, "student_train", 10, 60)
    recorder.phase(0, "eval", 60, 90)
    recorder.write(run)


def test_a_plan_says_what_the_boards_of_a_run_held(
    tmp_path: Path, h100: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_bytes = planned_bytes(h100)
    run = write_run(tmp_path / "measured", [9.0, 9.0, planned_s(h100)])
    argv = ["recipe", "plan", "response_70b_to_8b", "--cluster", "h100", "--calibrate", str(run)]
    assert main(argv) == 0
    assert "memory as planned, no run has a record" in capsys.readouterr().out
    record_memory(run, [20 << 30, round(0.8 * plan_bytes)])
    assert main(argv) == 0
    assert "memory x0.800, the mean of measured over planned: measured" in capsys.readouterr().out
    assert main([*argv, "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    planned = max(memory["total"] for memory in data["alternatives"][0]["memory_gib"].values())
    assert planned == pytest.approx(0.8 * plan_bytes / 2**30)
    assert data["calibration"]["memory_factor"] == pytest.approx(0.8)


def test_what_cannot_calibrate_is_named(tmp_path: Path, h100: Cluster) -> None:
    short = write_run(tmp_path / "short", [1.0, 1.0])
    with pytest.raises(RunDirError, match="no step after the first 2"):
        calibrate([short], h100, Assumptions())
    (short / "run.json").write_text("{}")
    with pytest.raises(RunDirError, match=r"run\.json: no attempt with a world_size"):
        calibrate([short], h100, Assumptions())
