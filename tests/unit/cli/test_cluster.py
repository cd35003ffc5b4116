"""`ekd recipe launch --cluster`, `status`, `cancel` and `resume` as typed, where no Slurm is needed."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ekd_nemo.cli.recipe import app
from ekd_nemo.errors import EkdError, UserError


def call(*words: str) -> str:
    """What a command prints; errors come through as they are raised."""
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in no job."""
    monkeypatch.chdir(tmp_path)
    for name in ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--local", "--cluster", "h100"), "--local and --cluster exclude each other"),
        (("--local", "--repeats", "2"), "--repeats goes with --cluster"),
        ((), "launch needs --local, or --cluster FILE"),
        (("--cluster", "nowhere"), "cluster nowhere is not known; accepted: a100, h100"),
        (("--cluster", "local"), "this cluster has no section slurm; launch with --local"),
        (("--cluster", "h100", "--nproc", "12"), "--nproc 12"),
    ],
)
def test_what_does_not_go_together(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as error:
        call("launch", "sft_8b", *words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert list(Path.cwd().iterdir()) == []


def test_a_dry_run_writes_nothing_and_shows_every_text() -> None:
    said = call("launch", "sft_8b", "--cluster", "h100", "--repeats", "2", "--dry-run")
    assert said.count("#!/bin/bash") == 5
    assert "#SBATCH --array=0-1" in said
    assert "would be refused here: " in said  # there is no image on this machine
    assert list(Path.cwd().iterdir()) == []


def test_a_step_with_another_number_of_tasks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("STEP_ID", "0"), ("PROCID", "0"), ("NTASKS", "4")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(UserError, match="this srun step has 4 tasks and --nproc is 8"):
        call("launch", "sft_8b", "--nproc", "8")


@pytest.mark.parametrize("command", ["status", "cancel", "resume"])
def test_a_run_without_jobs_is_one_line(command: str, outside: Path) -> None:
    (outside / "x").mkdir()
    with pytest.raises(EkdError, match=r"x: no jobs\.json: this is no run that was launched"):
        call(command, "x")
