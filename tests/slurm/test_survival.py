"""A job at its time limit on a real Slurm: saved, requeued, resumed to the same curve; both attempts' energy kept."""

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from ekd_nemo.launch.silence import process_state
from ekd_nemo.records.rundir import RunDir
from tests.e2e.training import curve, lines
from tests.slurm.conftest import Project, show_job, until, until_over

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def rank_pids(run: Path, job_id: str) -> list[int]:
    """The processes of the ranks of a job's first attempt, as they have noted themselves."""
    files = sorted((run / "logs" / "slurm").glob(f"rank-{job_id}-0-*"))
    return [int(json.loads(path.read_text())["pid"]) for path in files]


def minutes(text: str) -> float:
    """Slurm's RunTime, H:M:S."""
    hours, mins, seconds = (int(part) for part in text.split(":"))
    return hours * 60 + mins + seconds / 60


def test_a_job_at_its_time_limit_goes_on_to_the_same_curve(project: Project, whole: Path) -> None:
    """The ranks are held still until Slurm's signal has come, so that a few fast steps are enough."""
    project.cluster("grace_s: 30", "grace_s: 90")
    project.ekd("recipe", "launch", "tiny", "--cluster", "here", "--set", "evaluation.lm=null")
    (run,) = (path.parent for path in (project.folder / "runs").glob("*/run.json"))
    job_id = project.jobs(run)["train"]
    until(lambda: bool(curve(lines(run), "loss")), 200, lambda: project.said(run))
    pids = rank_pids(run, job_id)
    assert len(pids) == 2
    with held(pids):
        assert max(curve(lines(run), "loss")) < 30, "the ranks were too fast to be held"
        limit = int(
            minutes(show_job(job_id)["RunTime"]) + 1.5
        )  # ends in 30 to 90 s: the signal is due
        update = ["scontrol", "update", f"JobId={job_id}", f"TimeLimit={limit}"]
        subprocess.run(update, check=True)
        # Slurm continues what is stopped when it signals it.
        until(
            lambda: all(process_state(pid) != "stopped" for pid in pids),
            90,
            lambda: project.said(run),
        )
    until(lambda: show_job(job_id)["Restarts"] == "1", 60, lambda: project.said(run))
    # The limit is below the grace now: every later attempt would be signalled as it starts.
    subprocess.run(["scontrol", "update", f"JobId={job_id}", "TimeLimit=30"], check=True)
    states = until_over(project, run, 500)
    assert set(states.values()) == {"COMPLETED"}, project.said(run)

    found = lines(run)
    assert {line["attempt"] for line in found} == {1, 2}
    first = [line["step"] for line in found if line["attempt"] == 1 and "loss" in line]
    second = [line["step"] for line in found if line["attempt"] == 2 and "loss" in line]
    assert second[0] == first[-1] + 1, "it went on where it had saved"
    for key in ("loss", "grad_norm", "lr"):
        # Ranks of gloo add in the same order on each start: bit for bit.
        assert curve(found, key) == curve(lines(whole), key), key
    attempts = json.loads((run / "run.json").read_text())["attempts"]
    assert [attempt["attempt"] for attempt in attempts] == [1, 2]
    assert len({attempt["slurm"]["job_id"] for attempt in attempts}) == 1
    check_energy(project, run)
    assert f"{run.name}: step 30 of 30, 2 attempt(s)" in project.ekd("recipe", "status", str(run))


@contextlib.contextmanager
def held(pids: list[int]):
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def check_energy(project: Project, run: Path) -> None:
    """Both attempts are in the record of each node, and in the run's energy."""
    for node in ("n1", "n2"):
        kinds = [
            json.loads(text)["kind"] for text in RunDir(run).power(node).read_text().splitlines()
        ]
        assert (kinds.count("start"), kinds.count("stop")) == (2, 2)
    (summary,) = json.loads(project.ekd("metrics", "summarise", str(run), "--format", "json"))[
        "runs"
    ]
    assert summary["attempts"] == 2
    assert summary["figures"]["e_run"]["value"] > 0
