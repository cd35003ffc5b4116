"""The driver of the study: what it passes on, and what a signal does."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.study import __main__ as driver

ROOT = Path(__file__).parents[3]
_CHILD = (
    "import signal, sys, time;"
    "signal.signal(signal.SIGTERM, lambda n, f: (print('saved', flush=True), sys.exit(75)));"
    "print('ready', flush=True); time.sleep(60)"
)
_DRIVER = (
    "import sys; from tools.study.__main__ import Stop;"
    f"stop = Stop(); code = stop.run((sys.executable, '-c', {_CHILD!r}));"
    "print(code, stop.asked, flush=True)"
)


def test_a_signal_lets_the_command_save_and_is_remembered() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _DRIVER], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=180)[0].splitlines() == ["saved", "75 True"]


def test_a_dry_run_prints_every_command_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tools").mkdir()
    monkeypatch.setattr(driver, "ROOT", tmp_path)
    before = time.time_ns()
    assert driver.main(["slice", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 5 * 3  # the cache; training, scores, energy per token of five methods
    assert not [path for path in tmp_path.rglob("*") if path.stat().st_mtime_ns > before]


def test_a_step_that_fails_ends_the_study_with_its_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "ROOT", tmp_path)
    monkeypatch.setattr("tools.study.records.RECORDS", tmp_path / "records")
    monkeypatch.setattr("tools.study.table.RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr("tools.study.table.RECORDS", tmp_path / "records")
    # Where no teacher is, the first launch refuses with a user's error.
    assert driver.main(["short"]) == 2
    assert "0 of 15 runs are finished" not in (tmp_path / "RESULTS.md").read_text()
    assert "No training of it has been finished." in (tmp_path / "RESULTS.md").read_text()


def test_an_unknown_plan_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert driver.main(["nothing"]) == 2
    assert capsys.readouterr().out.startswith("error: ")
