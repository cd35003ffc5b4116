"""A real Slurm for these tests: two nodes of four slots on this machine, with a stand-in for pyxis' options."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.project import make_project

SCRIPT = Path(__file__).parents[2] / "tools" / "slurm_local.sh"
PLUGIN = Path(__file__).with_name("pyxis_options.c")
NEEDED = {"slurmctld": "slurm-wlm", "munged": "munge", "gcc": "gcc"}
HEADER = Path("/usr/include/slurm/spank.h")


def missing() -> list[str]:
    """Debian packages that these tests need and this machine lacks."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    found = [package for name, package in NEEDED.items() if shutil.which(name, path=path) is None]
    return found + ([] if HEADER.is_file() else ["libslurm-dev"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a running Slurm; SLURM_CONF names it for as long as the tests run."""
    if missing():
        pytest.skip(f"no Slurm here; on Debian: apt-get install {' '.join(missing())}")
    folder = Path(
        tempfile.mkdtemp(prefix="ekd-slurm-", dir="/tmp")
    )  # a short path: sockets lie in it
    home = folder / "slurm"
    plugin = folder / "pyxis_options.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", plugin, PLUGIN], check=True
    )
    subprocess.run([SCRIPT, "start", home, "2"], check=True, timeout=60)
    line = f"required {plugin} record={folder}/options\n"
    (home / "plugstack.conf").write_text(line)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(home / "slurm.conf")
    try:
        yield folder
    finally:
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before
        subprocess.run([SCRIPT, "stop", home], check=True, timeout=120)
        shutil.rmtree(folder)


class Project:
    """A folder to launch from, and what Slurm makes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ekd(self, *words: str, code: int = 0, **env: str) -> str:
        """What `ekd` prints; fails the test on another exit code."""
        argv = [sys.executable, "-m", "ekd_nemo", *words]
        done = subprocess.run(
            argv,
            cwd=self.folder,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def cluster(self, text: str, instead: str) -> None:
        """Change the cluster file."""
        path = self.folder / "slurm" / "clusters" / "here.yaml"
        assert text in path.read_text()
        path.write_text(path.read_text().replace(text, instead))

    def jobs(self, run: Path) -> dict[str, str]:
        """Job ids of a run by part."""
        submissions = json.loads((run / "jobs.json").read_text())["submissions"]
        return {job["part"]: job["job_id"] for job in submissions[-1]["jobs"]}

    def said(self, run: Path) -> str:
        """What the jobs wrote, for a failed test."""
        logs = [
            *sorted((run / "logs" / "slurm").glob("*.log")),
            *sorted((run / "logs").glob("*.log")),
        ]
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in logs)


def show_job(job_id: str) -> dict[str, str]:
    """A job as the controller knows it."""
    done = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", job_id],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)


def until(condition: Callable[[], Any], limit_s: float, said: Callable[[], str]) -> None:
    """Wait for something; fails the test with what was said."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, said()
        time.sleep(0.3)


def until_over(project: Project, run: Path, limit_s: float) -> dict[str, str]:
    """Wait until no job of a run waits or runs; gives the states by part."""
    ids = project.jobs(run)
    ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
    states: dict[str, str] = {}

    def over() -> bool:
        states.update({part: show_job(each)["JobState"] for part, each in ids.items()})
        return set(states.values()) <= ended

    until(over, limit_s, lambda: f"{states}\n{project.said(run)}")
    return states


@pytest.fixture
def project(slurm: Path, tmp_path: Path, teacher_folder: Path) -> Project:
    """A folder with a name that needs quoting everywhere."""
    return Project(make_project(tmp_path / 'it\'s 50% "$(odd)" #1', teacher_folder))


@pytest.fixture(scope="session")
def whole(slurm: Path, tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    """The run directory of a launch that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / 'it\'s 50% "$(odd)" #1'
    project = Project(make_project(folder, teacher_folder))
    said = project.ekd("recipe", "launch", "tiny", "--cluster", "here", EKD_TEST_SECRET="hush-hush")
    parts = [line.split(":")[0] for line in said.splitlines()[:5]]
    assert parts == ["data", "train", "export", "eval", "summarise"]
    (run,) = (path.parent for path in (folder / "runs").glob("*/run.json"))
    refused = project.ekd("recipe", "launch", "tiny", "--cluster", "here", code=2)
    assert "are at work on it" in refused
    states = until_over(project, run, 300)
    assert set(states.values()) == {"COMPLETED"}, project.said(run)
    return run
