"""The job graph on a real Slurm: real NeMo on two nodes, from text to the summary table."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.slurm.conftest import Project, until_over

pytestmark = pytest.mark.timeout(420)


def test_the_graph_goes_from_text_to_the_summary(whole: Path, slurm: Path) -> None:
    run, project = whole, Project(whole.parent.parent)
    table = next((run / "logs" / "slurm").glob("summarise-*.log")).read_text()
    assert run.name in table
    assert "python_docs_" in table
    steps = [
        json.loads(line)["step"] for line in (run / "logs" / "steps.jsonl").read_text().splitlines()
    ]
    assert steps == ["data", "train", "export", "eval"]
    shards, attempt = json.loads((run / "run.json").read_text())["attempts"]
    assert (shards["world_size"], attempt["world_size"]) == (None, 2)
    assert [device["uuid"] for device in shards["devices"]] == ["CPU-n1-package-0"]
    built = json.loads(project.ekd("metrics", "summarise", str(run), "--format", "json"))
    assert built["runs"][0]["figures"]["phase:preprocess"]["value"] > 0
    assert [device["node"] for device in attempt["devices"]] == ["n1", "n2"]
    assert sorted(path.name for path in (run / "telemetry").glob("power-*.jsonl")) == [
        *("power-n1.jsonl", "power-n2.jsonl"),
    ]
    marks = [
        json.loads((run / "telemetry" / f"marks-{rank}.jsonl").read_text().splitlines()[0])
        for rank in (0, 1)
    ]
    assert [(mark["node"], mark["uuids"]) for mark in marks] == [
        ("n1", ["CPU-n1-package-0"]),
        ("n2", ["CPU-n2-package-0"]),
    ]
    status = project.ekd("recipe", "status", str(run))
    assert status.count("COMPLETED") == 5
    assert f"{run.name}: step 30 of 30, 1 attempt(s)" in status
    assert "everything is done already" in project.ekd("recipe", "resume", str(run))

    check_pyxis(project, slurm, project.jobs(run))
    found = subprocess.run(
        ["grep", "-rl", "hush-hush", run], capture_output=True, text=True, check=False
    )
    assert found.stdout == "", "a secret was written"
    assert not (project.folder / "nothing").exists(), "a value was taken for a command"


def check_pyxis(project: Project, slurm: Path, jobs: dict[str, str]) -> None:
    """The options of every step as pyxis would have got them, hostile path and all."""
    lines = (slurm / "options").read_text().splitlines()
    folder = project.folder
    for step in (f"{jobs['train']}.0", f"{jobs['train']}.1", f"{jobs['export']}.0"):
        options = dict(
            line.removeprefix(f"{step} ").split("=", 1)
            for line in lines
            if line.startswith(f"{step} ")
        )
        assert options["container-image"] == "./image it's.sqsh"
        assert options["container-mounts"] == f"{folder}:{folder}"
        assert options["container-workdir"] == str(folder)
        assert {"no-container-mount-home", "container-readonly"} <= set(options)
        assert "EKD_TEST_SECRET" in options["container-env"].split(",")


def test_a_failed_part_cancels_the_rest(project: Project) -> None:
    (project.folder / "text.jsonl").write_text('{"text": "fine"}\n{"text": broken}\n')
    project.ekd("recipe", "launch", "tiny", "--cluster", "here")
    (run,) = (path.parent for path in (project.folder / "runs").glob("*/run.json"))
    states = until_over(project, run, 60)
    assert states.pop("data") == "FAILED"
    assert set(states.values()) == {"CANCELLED"}
    log = next((run / "logs" / "slurm").glob("data-*.log")).read_text()
    assert "error: data failed: text.jsonl, line 2" in log
    assert "FAILED" in project.ekd("recipe", "status", str(run))


def test_cancel_ends_what_waits_and_resume_submits_it_again(project: Project) -> None:
    project.ekd("recipe", "launch", "tiny", "--cluster", "here", "--repeats", "2")
    first, second = sorted((project.folder / "runs").glob("tiny-*"))
    assert (first / "jobs.json").read_text() == (second / "jobs.json").read_text()
    before = project.jobs(first)
    said = project.ekd("recipe", "cancel", str(second))
    assert "cancelled job(s)" in said
    assert "1 other repeat(s)" in said
    assert set(until_over(project, first, 60).values()) == {"CANCELLED"}
    assert "no job waits or runs" in project.ekd("recipe", "cancel", str(first))
    project.ekd("recipe", "resume", str(first))
    after = project.jobs(second)
    assert set(after) == set(before)
    assert not set(after.values()) & set(before.values())
    assert len(json.loads((first / "jobs.json").read_text())["submissions"]) == 2
    project.ekd("recipe", "cancel", str(first))
    until_over(project, first, 60)
