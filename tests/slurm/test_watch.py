"""The batch script of ranks on a real Slurm, with ranks that only mark steps: hung, told to save, failed."""

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from ekd_nemo.config.cluster import load_cluster
from ekd_nemo.config.resolve import resolve_recipe
from ekd_nemo.launch.identity import choose_run
from ekd_nemo.launch.slurm_commands import submit
from ekd_nemo.launch.slurm_graph import plan_cluster
from ekd_nemo.launch.slurm_run import make_run
from ekd_nemo.launch.slurm_text import LOGS, Part, Place, sbatch_text
from ekd_nemo.records.rundir import RunDir
from tests.slurm.conftest import Project, show_job, until

pytestmark = pytest.mark.timeout(240)
RANK = Path(__file__).with_name("stepping_rank.py")
TYPED = Path(__file__).with_name("typed_step.py")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}


@dataclass(frozen=True)
class Started:
    """A submitted train part."""

    run: RunDir
    job_id: str

    def until_over(self, project: Project) -> str:
        until(
            lambda: show_job(self.job_id)["JobState"] in ENDED,
            150,
            lambda: project.said(self.run.path),
        )
        return show_job(self.job_id)["JobState"]

    def log(self) -> str:
        return (self.run.path / LOGS / f"train-{self.job_id}.log").read_text()


def start(project: Project, monkeypatch: pytest.MonkeyPatch, *words: str) -> Started:
    """Submit the very train part of a launch, its ranks replaced."""
    monkeypatch.chdir(project.folder)
    project.cluster("heartbeat_s: 600", "heartbeat_s: 20")
    loaded = load_cluster("here")
    launch = plan_cluster(resolve_recipe("tiny"), loaded, workdir=project.folder)
    run, recipe = launch.runs[0], launch.plans[0].recipe
    make_run(run, recipe, loaded.cluster)
    (run.path / LOGS).mkdir(parents=True)
    arguments = (str(RANK), "--run", str(run.path), *words)
    part = Part("train", "marking steps", (arguments,), nodes=2, ranks=2)
    script = run.path / LOGS / "train.sbatch"
    script.write_text(sbatch_text(part, loaded.cluster, launch.place))
    return Started(run, submit(script, []))


def test_a_hung_rank_ends_the_job_and_is_named(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = start(project, monkeypatch, "--steps", "8", "--stops", "1")
    assert started.until_over(project) == "FAILED", project.said(started.run.path)
    assert show_job(started.job_id)["ExitCode"] == "76:0"
    line = next(line for line in started.log().splitlines() if "hung" in line)
    assert line.startswith("error: hung: no rank has written a mark for 2")
    assert "rank 1 on n2 (its process is stopped), its last mark: the end of step 4" in line
    (attempt,) = json.loads(started.run.run_json.read_text())["attempts"]
    assert len(attempt["devices"]) == 2
    kinds = [
        json.loads(text)["kind"]
        for node in ("n1", "n2")
        for text in started.run.power(node).read_text().splitlines()[-1:]
    ]
    assert kinds == ["stop", "stop"], "the samplers were ended properly"


def test_a_job_at_its_time_limit_is_requeued_and_goes_on(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's own signal, sent to the ranks of both nodes, and its own second start; the samplers live through it."""
    project.cluster("grace_s: 30", "grace_s: 100")
    started = start(project, monkeypatch, "--steps", "900")
    said = partial(project.said, started.run.path)
    until(lambda: started.run.marks(1).is_file(), 90, said)
    limit = ["scontrol", "update", f"JobId={started.job_id}", "TimeLimit=2"]
    subprocess.run(limit, check=True)
    until(lambda: show_job(started.job_id)["Restarts"] == "1", 120, said)
    # On a busy machine the second attempt may take longer than what the limit leaves before the signal.
    subprocess.run([*limit[:-1], "TimeLimit=30"], check=True)
    assert started.until_over(project) == "COMPLETED", said()
    assert show_job(started.job_id)["Restarts"] == "1"
    assert "attempt 1 of this run has ended, its state is kept: requeued" in started.log()
    check_attempts(started.run)


def test_a_preempted_job_is_saved_requeued_once_and_goes_on(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of a higher partition wants both nodes: training saves, another part begins anew, energy is kept."""
    started = start(project, monkeypatch, "--steps", "900")
    single = start_single(started.run)
    said = partial(project.said, started.run.path)
    until(lambda: started.run.marks(1).is_file() and running(single), 90, said)
    urgent = ["sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--ntasks-per-node=4"]
    urgent += ["--output=/dev/null", "--wrap=sleep 1"]
    done = subprocess.run(urgent, capture_output=True, text=True, check=True)
    assert started.until_over(project) == "COMPLETED", said()
    until(lambda: show_job(single)["JobState"] == "COMPLETED", 60, said)
    assert show_job(done.stdout.strip())["JobState"] == "COMPLETED"
    assert [show_job(each)["Restarts"] for each in (started.job_id, single)] == ["1", "1"]
    assert "attempt 1 of this run has ended, its state is kept: requeued" in started.log()
    log = started.run.path / LOGS / f"export-{single}.log"
    assert "this part was told to end, what is finished is kept: requeued" in log.read_text()
    check_attempts(started.run)
    for rank, node in enumerate(("n1", "n2")):
        marks = [json.loads(line) for line in started.run.marks(rank).read_text().splitlines()]
        ends = [each["t_mono_ns"] for each in marks if each["kind"] == "phase_end"]
        power = [json.loads(line) for line in started.run.power(node).read_text().splitlines()]
        stops = [each["t_mono_ns"] for each in power if each["kind"] == "stop"]
        assert all(stop > end for stop, end in zip(stops, ends, strict=True)), (
            "the sampler was there until the rank had saved"
        )


def start_single(run: RunDir) -> str:
    """A part that is one process, which SIGTERM ends, and which has nothing to do the second time."""
    script = "import os, time; time.sleep(0 if 'SLURM_RESTART_COUNT' in os.environ else 300)"
    loaded = load_cluster("here")
    place = Place(Path.cwd(), (run.path,), "single")
    text = sbatch_text(Part("export", "waiting", (("-c", script),)), loaded.cluster, place)
    path = run.path / LOGS / "export.sbatch"
    path.write_text(text)
    return submit(path, [])


def running(job_id: str) -> bool:
    """Whether a job has a step of its own, beside that of its script."""
    argv = ["squeue", "--noheader", "--steps", f"--jobs={job_id}", "--format=%i"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return f"{job_id}.0" in done.stdout.split()


def check_attempts(run: RunDir) -> None:
    """Two attempts, the second going on where the first had saved; the samplers lived through both."""
    attempts = json.loads(run.run_json.read_text())["attempts"]
    assert [attempt["attempt"] for attempt in attempts] == [1, 2]
    for rank, node in enumerate(("n1", "n2")):
        marks = [json.loads(line) for line in run.marks(rank).read_text().splitlines()]
        steps = {
            n: [m["step"] for m in marks if m["kind"] == "step" and m["attempt"] == n]
            for n in (1, 2)
        }
        assert steps[2] == list(range(steps[1][-1] + 1, steps[1][-1] + 6))
        kinds = [json.loads(line)["kind"] for line in run.power(node).read_text().splitlines()]
        assert (kinds.count("start"), kinds.count("stop")) == (2, 2)


def test_a_run_goes_on_after_a_nodes_failure(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = start(project, monkeypatch, "--steps", "40")
    marks = started.run.marks(1)
    until(
        lambda: marks.is_file() and marks.stat().st_size > 1500,
        60,
        lambda: project.said(started.run.path),
    )
    node = ["scontrol", "update", "NodeName=n2"]
    subprocess.run([*node, "State=DOWN", "Reason=test"], check=True)
    subprocess.run([*node, "State=RESUME"], check=True)
    assert started.until_over(project) == "COMPLETED", project.said(started.run.path)
    assert show_job(started.job_id)["Restarts"] == "1"
    attempts = json.loads(started.run.run_json.read_text())["attempts"]
    assert [attempt["attempt"] for attempt in attempts] == [1, 2]
    seen = {json.loads(line)["attempt"] for line in marks.read_text().splitlines()}
    assert seen == {1, 2}


def test_ranks_that_fail_fail_the_job_with_their_last_word(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = start(project, monkeypatch, "--steps", "x")
    assert started.until_over(project) == "FAILED"
    assert show_job(started.job_id)["ExitCode"] == "2:0"
    assert "error: training failed with exit code 2" in started.log()
    assert show_job(started.job_id)["Restarts"] == "0"


def test_a_launch_typed_behind_srun_is_each_tasks_rank(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks on each of two nodes; one sampler a node, kept by its first rank."""
    monkeypatch.chdir(project.folder)
    step = ["srun", "--nodes=2", "--ntasks-per-node=2", sys.executable, str(TYPED)]
    refused = subprocess.run(step, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "the shards are not there, and a step of ranks does not build them" in refused.stderr
    assert not Path("runs").exists()

    resolved = resolve_recipe("tiny", ["train.micro_batch_size=1"])
    run = choose_run(resolved.recipe, Path("elsewhere"))
    make_run(run, resolved.recipe)
    part = [sys.executable, "-m", "ekd_nemo.launch.slurm_part", "data", "--run", str(run.path)]
    subprocess.run(part, check=True)
    done = subprocess.run(step, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = choose_run(resolved.recipe, Path("runs"))
    (attempt,) = json.loads(run.run_json.read_text())["attempts"]
    assert (attempt["attempt"], attempt["world_size"]) == (1, 4)
    assert [device["node"] for device in attempt["devices"]] == ["n1", "n2"]
    last = [json.loads(run.marks(rank).read_text().splitlines()[-2]) for rank in range(4)]
    assert [mark["step"] for mark in last] == [15] * 4
    assert [mark["uuids"] for mark in last] == [["CPU-n1-package-0"]] * 2 + [
        ["CPU-n2-package-0"]
    ] * 2
    for node in ("n1", "n2"):
        assert json.loads(run.power(node).read_text().splitlines()[-1])["kind"] == "stop"
