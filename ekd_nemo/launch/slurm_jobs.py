"""`jobs.json` of a run directory: which jobs a launch has submitted, by part, with the graph between them."""

import json
import os
import socket
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ekd_nemo.config.cluster import Cluster
from ekd_nemo.errors import RunDirError
from ekd_nemo.records.atomic import write_text
from ekd_nemo.records.rundir import RunDir

JOBS: Final = "jobs.json"
SUBMITTING: Final = ".submitting"
JobId = Annotated[str, Field(pattern=r"^\d+$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Job(_Record):
    """One submitted job, or array of jobs.

    Attributes:
        part: data, cache, train, export, eval, ept or summarise.
        job_id: as sbatch told it.
        tasks: of the array; None for a plain job.
        after: job ids that must have succeeded.
        script: the sbatch text that was submitted.
    """

    part: str
    job_id: JobId
    tasks: Annotated[int, Field(ge=1)] | None
    after: tuple[JobId, ...]
    script: str


class Submission(_Record):
    """What one launch or resumption has submitted."""

    t_wall_ns: Annotated[int, Field(ge=0)]
    jobs: tuple[Job, ...]


class JobsFile(_Record):
    """The content of jobs.json, the same in the directory of every repeat.

    Attributes:
        name: of the launch.
        workdir: where the recipe's relative paths begin.
        runs: directories of the repeats, in the order of their array tasks.
        ranks: of each repeat.
        cluster: as it was read.
        submissions: oldest first; the last one is what counts.
    """

    schema_version: Literal[1] = 1
    name: str
    workdir: str
    runs: tuple[str, ...]
    ranks: Annotated[int, Field(ge=1)]
    cluster: Cluster
    submissions: tuple[Submission, ...] = ()

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs of the last submission."""
        return self.submissions[-1].jobs if self.submissions else ()

    def with_submission(self, jobs: Sequence[Job], first: bool) -> "JobsFile":
        """The same with a new submission, or with the last one replaced by what it has grown to."""
        stamp = time.time_ns() if first else self.submissions[-1].t_wall_ns
        kept = self.submissions if first else self.submissions[:-1]
        new = Submission(t_wall_ns=stamp, jobs=tuple(jobs))
        return self.model_copy(update={"submissions": (*kept, new)})


def jobs_file(run: RunDir) -> Path:
    """Where a run keeps its jobs."""
    return run.path / JOBS


def read_jobs(run: RunDir) -> JobsFile:
    """The jobs of a run.

    Raises: RunDirError in one line where there are none, or the file is not one of ours.
    """
    path = jobs_file(run)
    if not path.is_file():
        raise RunDirError(
            f"{run.path}: no {JOBS}: this is no run that was launched on a cluster (ekd recipe launch --cluster)"
        )
    try:
        return JobsFile.model_validate(json.loads(path.read_text()))
    except (ValidationError, ValueError) as error:
        raise RunDirError(
            f"{path}: not what a launch writes: {str(error).splitlines()[0]}"
        ) from None


def write_jobs(jobs: JobsFile) -> None:
    """Write it into every repeat's directory, each in one rename."""
    text = jobs.model_dump_json(indent=2) + "\n"
    for path in jobs.runs:
        write_text(jobs_file(RunDir(Path(path))), text)


@contextmanager
def submitting(run: RunDir) -> Generator[None]:
    """Keep two launches from submitting jobs for one run at once.

    By a file that is there or not: some file systems of clusters are mounted without locks.
    Raises: RunDirError naming who is at it, and the file.
    """
    path = run.path / SUBMITTING
    try:
        with path.open("x") as file:
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
    except FileExistsError:
        raise RunDirError(
            f"{run.path}: another launch ({path.read_text() or 'unknown'}) is submitting its jobs; wait, "
            f"or remove {path} if that one is gone"
        ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
