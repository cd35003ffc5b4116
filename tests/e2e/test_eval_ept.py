"""`ekd eval ept` as a user calls it: a tiny model, the estimate of a CPU's power, real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ekd_nemo.records.ept import EptEntry, read_ept
from ekd_nemo.records.jsonl import ReadReport, read_lines
from ekd_nemo.records.lines import PhaseBegin
from ekd_nemo.records.rundir import RunDir, find_runs
from tests.tiny_model import make_tiny

QUICK = ("--requests", "4", "--warmup-s", "0", "--input-tokens", "8", "--new-tokens", "4")
ESTIMATE = ("--meter", "estimate", "--device", "cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", teacher_folder)


def ept(cwd: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ekd_nemo", "eval", "ept", *map(str, words)]
    return subprocess.run(
        argv,
        cwd=cwd,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def entries(cwd: Path) -> dict[tuple[str, int], EptEntry]:
    (run,) = find_runs(cwd / "runs")
    return {(e.workload.mode, e.batch_size): e for e in read_ept(run.ept_json).entries}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A folder in which a sweep of two batch sizes was measured, with prompts that are hard to count."""
    cwd = tmp_path_factory.mktemp("ept")
    prompts = ["A descriptor is", "", "word " * 500, "In general, a name"]
    (cwd / "p.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    words = (*QUICK, *ESTIMATE, "--repeats", "3", "--seconds", "1.7", "--batch-sizes", "2")
    done = ept(cwd, tiny, "--prompts", "p.jsonl", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best batch") == 2
    return cwd


def test_energies_per_token_follow_from_the_records(measured: Path) -> None:
    found = entries(measured)
    assert set(found) == {("fixed", 2), ("natural", 2)}
    for (mode, _), entry in found.items():
        assert entry.source == "estimated" and entry.meter == "estimate"
        assert entry.energy_j is not None and entry.duration_s >= 5
        assert entry.per_token_j == entry.energy_j / (entry.input_tokens + entry.output_tokens)
        # An estimate lies between idle and the stated TDP of every package: some W, below a kW.
        assert 1 < entry.energy_j / entry.duration_s < 1000
        assert (entry.engine.name, entry.engine.dtype) == ("transformers", "float32")
        if mode == "fixed":
            requests = sum(repeat.requests for repeat in entry.repeats)
            assert (entry.input_tokens, entry.output_tokens) == (8 * requests, 4 * requests)
    assert found["natural", 2].settings["empty_prompts"] == 1


def test_parts_below_five_seconds_are_flagged_and_left_out(measured: Path) -> None:
    entry = entries(measured)["fixed", 2]
    assert (entry.prefill, entry.decode) == (None, None)  # one block of 1.7 s each
    assert {"prefill_below_5_s", "decode_below_5_s"} <= set(entry.flags)


def test_the_time_is_marked_as_phase_ept_and_no_scratch_is_left(measured: Path) -> None:
    (run,) = find_runs(measured / "runs")
    lines = read_lines(run.marks(0), ReadReport())
    assert {line.phase for line in lines if isinstance(line, PhaseBegin)} == {"ept"}
    assert list(run.logs.glob(".ept-*")) == []


def test_what_is_stored_is_not_measured_again(measured: Path, tiny: Path) -> None:
    (run,) = find_runs(measured / "runs")
    before = run.ept_json.read_bytes()
    words = (*QUICK, *ESTIMATE, "--repeats", "3", "--seconds", "1.7", "--batch-sizes", "2")
    done = ept(measured, tiny, "--prompts", "p.jsonl", *words)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 points stored, not run again" in done.stdout
    assert run.ept_json.read_bytes() == before


def test_a_failure_half_way_keeps_what_was_measured(tmp_path: Path, tiny: Path) -> None:
    short = ("--repeats", "1", "--seconds", "0.2", "--batch-sizes", "1", "--warmup-s", "0")
    lengths = ("--input-tokens", "8,100000", "--new-tokens", "4", "--requests", "2")
    done = ept(tmp_path, tiny, *ESTIMATE, *short, *lengths, "--no-natural", "--no-apart")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "100000 in, 4 out" in line and "prompt and answer together" in line
    (run,) = find_runs(tmp_path / "runs")
    (entry,) = read_ept(run.ept_json).entries
    assert entry.workload.input_tokens == 8
    # 0.2 s of work: an energy, but no energy per token.
    assert entry.energy_j is not None
    assert (entry.per_token_j, entry.per_input_token_j, entry.per_output_token_j) == (None,) * 3
    assert entry.reason is not None and "5 s needed" in entry.reason


@pytest.mark.slow
def test_a_run_gets_student_and_teacher_and_shares_the_teachers(
    tmp_path: Path, tiny: Path, teacher_folder: Path
) -> None:
    from tests.e2e.evaluated_run import make_run

    teacher = make_tiny(tmp_path / "teacher", teacher_folder, num_key_value_heads=2)
    short = ("--repeats", "1", "--seconds", "0.2", "--batch-sizes", "1", *QUICK, *ESTIMATE)
    words: tuple[Any, ...] = (*short, "--no-natural", "--no-apart")
    for name in ("r1", "r2"):
        run = make_run(tmp_path, tiny, teacher, name)
        done = ept(tmp_path, run, *words)
        assert done.returncode == 0, done.stderr
        roles = [entry.role for entry in read_ept(RunDir(run).ept_json).entries]
        assert roles == ["student", "teacher"]
    assert "teacher: 1 of 1 points stored, not run again" in done.stdout
