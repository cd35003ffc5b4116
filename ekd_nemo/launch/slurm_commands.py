"""Slurm's commands, called with argument lists and read strictly: what is not understood is an error, never a guess."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ekd_nemo.errors import RunError, UserError

TIMEOUT_S: Final = 60.0
# squeue's extended states, of `man squeue`, JOB STATE CODES.
ACTIVE: Final = frozenset(
    [
        "PENDING",
        "RUNNING",
        "SUSPENDED",
        "CONFIGURING",
        "COMPLETING",
        "EXPEDITING",
        "REQUEUED",
        "REQUEUE_HOLD",
        "REQUEUE_FED",
        "RESIZING",
        "SIGNALING",
        "STAGE_OUT",
        "STOPPED",
        "RESV_DEL_HOLD",
        "SPECIAL_EXIT",
    ]
)
ENDED: Final = frozenset(
    [
        "COMPLETED",
        "FAILED",
        "CANCELLED",
        "TIMEOUT",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "BOOT_FAIL",
        "DEADLINE",
        "PREEMPTED",
        "REVOKED",
    ]
)
_SQUEUE_FORMAT: Final = "%F|%K|%T|%M|%N|%r"
_SACCT_FORMAT: Final = "JobID,State,Elapsed,NodeList"
_ARRAY_ID: Final = re.compile(r"(\d+)(?:_(\d+))?")
# Tasks that never were jobs of their own, as those cancelled while they waited: `10_[0-2,4]`, `10_[0-4%2]`.
_WAITED: Final = re.compile(r"(\d+)_\[([0-9,:-]+)(?:%\d+)?\]")
_TASKS: Final = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")


@dataclass(frozen=True)
class JobState:
    """How a job, or one task of an array, is doing.

    Attributes:
        job_id: of the job or array.
        task: of the array; None for a plain job.
        state: one of `ACTIVE` or `ENDED`.
        elapsed: as Slurm writes it.
        nodes: empty before it has any.
        reason: why it waits or has ended, in Slurm's word; empty where Slurm gives none.
    """

    job_id: str
    task: int | None
    state: str
    elapsed: str
    nodes: str
    reason: str = ""

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ACTIVE


def require_commands() -> None:
    """Refuse to submit where there is no Slurm.

    Raises: UserError.
    """
    for name in ("sbatch", "squeue", "scancel"):
        if shutil.which(name) is None:
            raise UserError(
                f"{name} is not on PATH; accepted: a login node of the cluster, "
                "or a container with Slurm and munge mounted"
            )


def call(argv: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """What a command prints.

    Raises: RunError with the last line of what it complained of.
    """
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=TIMEOUT_S, env=env
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"{argv[0]} has not answered for {TIMEOUT_S:.0f} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise RunError(f"{argv[0]}: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout


def sbatch_argv(script: Path, after: Sequence[str]) -> list[str]:
    """The command that submits a script after other jobs have succeeded."""
    argv = ["sbatch", "--parsable"]
    if after:
        argv.append(f"--dependency=afterok:{':'.join(after)}")
    text = str(script)
    return [*argv, text if text.startswith("/") else f"./{text}"]


def submit(script: Path, after: Sequence[str]) -> str:
    """Submit a script; gives the job's id.

    Options of sbatch in the caller's environment are left out: the text says all.
    Raises: RunError with what sbatch said.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SBATCH_", "SLURM_"))}
    if "SLURM_CONF" in os.environ:
        environment["SLURM_CONF"] = os.environ["SLURM_CONF"]
    text = call(sbatch_argv(script, after), environment).strip()
    job_id = text.split(";")[0]  # JOB or JOB;CLUSTER
    if not job_id.isdigit():
        raise RunError(f"sbatch answered {text!r}; accepted: a job's number")
    return job_id


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel jobs; those that have ended already are passed over by Slurm.

    Raises: RunError with what scancel said.
    """
    call(["scancel", "--quiet", *job_ids])


def job_states(job_ids: Sequence[str]) -> list[JobState]:
    """How jobs are doing: squeue for what Slurm's controller remembers, sacct for the rest where there is one.

    Raises: RunError for output that is not understood.
    """
    found = parse_squeue(_squeue(job_ids))
    missing = sorted(set(job_ids) - {state.job_id for state in found})
    if missing and shutil.which("sacct") is not None:
        found += parse_sacct(_sacct(missing))
    return found


def _squeue(job_ids: Sequence[str]) -> str:
    argv = ["squeue", "--noheader", "--array", "--states=all", f"--format={_SQUEUE_FORMAT}"]
    try:
        return call([*argv, f"--jobs={','.join(job_ids)}"])
    except RunError as error:
        if "Invalid job id" in str(error):
            return ""  # a single id that the controller has forgotten
        raise


def _sacct(job_ids: Sequence[str]) -> str:
    argv = ["sacct", "--noheader", "--parsable2", "--allocations", f"--format={_SACCT_FORMAT}"]
    try:
        return call([*argv, f"--jobs={','.join(job_ids)}"])
    except RunError as error:
        if "accounting storage is disabled" in str(error).lower():
            return ""
        raise


def parse_squeue(text: str) -> list[JobState]:
    """Lines of `squeue --format=%F|%K|%T|%M|%N|%r`.

    Raises: RunError naming the line.
    """
    found: list[JobState] = []
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) != 6 or not fields[0].isdigit():
            raise RunError(f"squeue wrote {line!r}; expected {_SQUEUE_FORMAT}")
        job_id, task, state, elapsed, nodes, reason = fields
        found.append(
            JobState(
                job_id=job_id,
                task=_array_task(task, line),
                state=_known(state, line),
                elapsed=elapsed,
                nodes=nodes,
                reason="" if reason == "None" else reason,
            )
        )
    return found


def _array_task(text: str, line: str) -> int | None:
    if text == "N/A":
        return None
    if not text.isdigit():
        raise RunError(f"squeue wrote {line!r}; expected a number or N/A for the array's task")
    return int(text)


def _known(state: str, line: str) -> str:
    if state not in ACTIVE | ENDED:
        raise RunError(f"Slurm wrote {line!r}; {state!r} is no state of a job that is known here")
    return state


def parse_sacct(text: str) -> list[JobState]:
    """Lines of `sacct --parsable2 --format=JobID,State,Elapsed,NodeList`.

    Raises: RunError naming the line.
    """
    found: list[JobState] = []
    for line in text.splitlines():
        fields = line.strip().split("|")
        jobs = _accounted(fields[0])
        if len(fields) != 4 or not jobs:
            raise RunError(f"sacct wrote {line!r}; expected {_SACCT_FORMAT}")
        state = _known(fields[1].split(" ")[0], line)  # "CANCELLED by 1000"
        nodes = "" if fields[3] == "None assigned" else fields[3]
        found += [JobState(job_id, task, state, fields[2], nodes) for job_id, task in jobs]
    return found


def _accounted(text: str) -> list[tuple[str, int | None]]:
    """The job and the array's tasks of a JobID of sacct; nothing for what is none."""
    match = _ARRAY_ID.fullmatch(text)
    if match is not None:
        return [(match[1], None if match[2] is None else int(match[2]))]
    match = _WAITED.fullmatch(text)
    ranges = [] if match is None else [_TASKS.fullmatch(each) for each in match[2].split(",")]
    if match is None or None in ranges:
        return []
    return [
        (match[1], task)
        for each in ranges
        if each is not None
        for task in range(int(each[1]), int(each[2] or each[1]) + 1, int(each[3] or 1))
    ]
