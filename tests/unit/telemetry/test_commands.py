"""`ekd telemetry` and `ekd doctor` as a user calls them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ekd_nemo.cli.app import main
from ekd_nemo.records.identity import read_identity
from ekd_nemo.records.lines import PowerLine, StopLine
from ekd_nemo.records.rundir import RunDir, find_runs
from tests.unit.telemetry.conftest import read_record, wait_for

RECORD = ["telemetry", "record", "--meter", "estimate", "--run-id", "x"]


def ekd(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ekd_nemo", *words]
    return subprocess.run(
        argv, cwd=folder, capture_output=True, text=True, timeout=180, check=False
    )


def code_of(script: str) -> list[str]:
    return ["--", sys.executable, "-c", script]


def test_record_passes_on_exit_code_and_output_and_leaves_a_whole_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = (
        "import os,sys,time; print(os.environ['EKD_DEVICE_UUIDS']); time.sleep(0.4); sys.exit(7)"
    )
    done = ekd(tmp_path, *RECORD, *code_of(script))
    assert done.returncode == 7
    run = RunDir(tmp_path / "runs" / "x")
    identity = read_identity(run)
    assert (identity.method, identity.recipe) == ("command", f"command {Path(sys.executable).name}")
    (attempt,) = identity.attempts
    assert [device.uuid for device in attempt.devices] == done.stdout.strip().split(",")
    assert len(read_record(run).of(PowerLine)) >= 3
    assert main(["telemetry", "verify", str(run.path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{run.path}: whole: ")
    run.power_files()[0].write_text("{\n")
    assert main(["telemetry", "verify", str(run.path)]) == 1
    assert "1 torn lines" in capsys.readouterr().out


def test_processors_recorded_as_host_are_a_whole_run_without_accelerators(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = ekd(tmp_path, *RECORD, "--meter", "host", *code_of("import time; time.sleep(0.4)"))
    assert done.returncode == 0
    run = tmp_path / "runs" / "x"
    assert main(["telemetry", "verify", str(run)]) == 0
    assert main(["metrics", "summarise", "--format", "json", str(run)]) == 0
    out = capsys.readouterr().out
    figures = json.loads(out[out.index("{\n") :])["runs"][0]["figures"]
    assert figures["e_host"]["value"] > 0
    assert figures["e_run"]["value"] is None
    assert figures["e_run"]["reason"].startswith("no accelerator was held")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*RECORD, "--", "no-such-command"], "error: no-such-command: no such command"),
        ([*RECORD, "--phase", "x", "--", "true"], "error: --phase: unknown phase 'x'; one of"),
        ([*RECORD, "--meter", "x", "--", "true"], "error: meter 'x' is unknown; one of auto"),
        (["telemetry", "record", "--uuid", "GPU-x", "--", "true"], "error: the sampler did not"),
        (["telemetry", "verify", "runs/x"], "error: runs/x: no such run directory"),
    ],
)
def test_refusals_leave_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: Sequence[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith(says)
    assert told.count("\n") == 1
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_another_command_under_the_same_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*RECORD, "--", "true"]) == 0
    assert main([*RECORD, "--", "false"]) == 2
    assert "recipe_hash is" in capsys.readouterr().err
    assert main([*RECORD, "--", "true"]) == 0
    (run,) = find_runs(Path("runs"))
    assert [a.attempt for a in read_identity(run).attempts] == [1, 2]


def test_a_signal_reaches_the_command_and_the_record_is_closed(tmp_path: Path) -> None:
    script = "import time; open('ready','w').close(); time.sleep(60)"
    argv = [sys.executable, "-m", "ekd_nemo", *RECORD, *code_of(script)]
    recorder = subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.DEVNULL)
    wait_for((tmp_path / "ready").exists)
    time.sleep(0.2)
    os.kill(recorder.pid, signal.SIGTERM)
    assert recorder.wait(20) == 128 + signal.SIGTERM
    record = read_record(RunDir(tmp_path / "runs" / "x"))
    assert record.of(StopLine)[0].reason == "SIGTERM"


def test_doctor_says_what_would_be_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["meters"]["estimate"].startswith("yes: ")
    devices = facts["what `auto` would measure"]
    assert devices
    assert all(device["source"] in ("measured", "estimated") for device in devices)
    sources = {device["source"] for device in devices if device["role"] == "accelerator"}
    assert facts["in short"]["energy"].startswith(
        "measured, by" if sources == {"measured"} else "an estimate"
    )
    poison = tmp_path / "torch.py"
    poison.write_text("raise ImportError('doctor imported torch')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    argv = [sys.executable, "-m", "ekd_nemo", "doctor", "--json"]
    done = subprocess.run(argv, env=environment, capture_output=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "what `auto` would measure" in shown
    assert devices[0]["device"] in shown
