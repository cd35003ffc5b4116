"""Answers of Slurm's commands, as 22.05 writes them, and what is no such answer."""

from pathlib import Path

import pytest

from ekd_nemo.errors import RunError, UserError
from ekd_nemo.launch import slurm_commands
from ekd_nemo.launch.slurm_commands import (
    JobState,
    parse_sacct,
    parse_squeue,
    require_commands,
    sbatch_argv,
)


def test_squeue_is_read() -> None:
    text = "9|N/A|RUNNING|1:32|n[1-2]|None\n10|3|PENDING|0:00||Dependency\n"
    assert parse_squeue(text) == [
        JobState("9", None, "RUNNING", "1:32", "n[1-2]"),
        JobState("10", 3, "PENDING", "0:00", "", "Dependency"),
    ]
    assert parse_squeue("") == []


@pytest.mark.parametrize(
    "line",
    [
        "9|N/A|RUNNING|1:32|n1",
        "x|N/A|RUNNING|1:32|n1|None",
        "9|1-3|PENDING|0:00||x",
        "9|N/A|DOING|0:00||x",
    ],
)
def test_what_squeue_does_not_write_is_refused(line: str) -> None:
    with pytest.raises(RunError, match="wrote"):
        parse_squeue(line)


def test_sacct_is_read() -> None:
    text = "9|COMPLETED|00:01:32|n[1-2]\n10_3|CANCELLED by 1000|00:00:00|None assigned\n"
    assert parse_sacct(text) == [
        JobState("9", None, "COMPLETED", "00:01:32", "n[1-2]"),
        JobState("10", 3, "CANCELLED", "00:00:00", ""),
    ]
    with pytest.raises(RunError, match="sacct wrote"):
        parse_sacct("9.batch|COMPLETED|00:01:32|n1")


def test_sacct_knows_the_tasks_of_an_array_that_was_cancelled_as_it_waited() -> None:
    """slurmdb_get_job_id_str (src/common/slurmdb_defs.c) writes them in brackets, in one line."""
    text = "10_[0,2-3]|CANCELLED by 1000|00:00:00|None assigned\n11_[1-5:2%1]|PENDING|00:00:00|\n"
    found = [(state.job_id, state.task, state.is_active) for state in parse_sacct(text)]
    assert found == [("10", task, False) for task in (0, 2, 3)] + [
        ("11", task, True) for task in (1, 3, 5)
    ]
    for wrong in ("10_[]", "10_[x]", "10_[1-]", "10+0"):
        with pytest.raises(RunError, match="sacct wrote"):
            parse_sacct(f"{wrong}|CANCELLED|00:00:00|None assigned")


def test_a_script_that_begins_with_a_dash_is_no_option() -> None:
    assert sbatch_argv(Path("-x"), ["1", "2"])[-2:] == ["--dependency=afterok:1:2", "./-x"]
    assert sbatch_argv(Path("/a b"), []) == ["sbatch", "--parsable", "/a b"]


def test_no_sbatch_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch is not on PATH; accepted: a login node"):
        require_commands()


def command(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)


def test_what_squeue_has_forgotten_sacct_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(tmp_path, "squeue", "echo '9|N/A|RUNNING|1:32|n1|None'")
    command(tmp_path, "sacct", "[[ $* == *--jobs=8* ]] && echo '8|COMPLETED|00:00:02|n1'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    found = {state.job_id: state.state for state in slurm_commands.job_states(["8", "9"])}
    assert found == {"8": "COMPLETED", "9": "RUNNING"}


def test_without_accounting_the_forgotten_stays_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(
        tmp_path, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    )
    command(tmp_path, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert slurm_commands.job_states(["8"]) == []


def test_sbatch_answers_with_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("SBATCH_PARTITION", "elsewhere")
    command(tmp_path, "sbatch", 'echo "12${SBATCH_PARTITION:+9};cluster"')
    assert slurm_commands.submit(Path("x"), []) == "12"
    command(tmp_path, "sbatch", "echo Submitted batch job 12")
    with pytest.raises(RunError, match="accepted: a job's number"):
        slurm_commands.submit(Path("x"), [])
    command(tmp_path, "sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    with pytest.raises(RunError, match="invalid partition specified"):
        slurm_commands.submit(Path("x"), [])
