"""One rank of a run under srun: Slurm's variables become torch's, then this process becomes the worker.

`python -m ekd_nemo.launch.slurm_rank --run DIR`, beside `ekd_nemo.launch.slurm_node`.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ekd_nemo.errors import EkdError
from ekd_nemo.launch.plan import ATTEMPT_VARIABLE, UUIDS_VARIABLE
from ekd_nemo.launch.slurm_env import Task, read_task
from ekd_nemo.launch.slurm_ready import read_ready, ready_file, wait_for
from ekd_nemo.launch.slurm_text import LOGS
from ekd_nemo.records.atomic import write_text
from ekd_nemo.records.clock import node_name
from ekd_nemo.records.rundir import RunDir


def worker_argv(run: RunDir) -> list[str]:
    """The worker of one rank."""
    return [sys.executable, "-m", "ekd_nemo.worker", "train", "--run", str(run.path)]


def rank_environment(run: RunDir, task: Task, environ: Mapping[str, str]) -> dict[str, str]:
    """What the worker finds in its environment.

    Raises: RunError if the samplers do not come up.
    """
    path = ready_file(run, task.attempt)
    wait_for(path, "the samplers' word that they are ready")
    number, uuids = read_ready(path)
    return {
        **task.torch_environment(environ),
        ATTEMPT_VARIABLE: str(number),
        UUIDS_VARIABLE: ",".join(uuids.get(node_name(), ())),
    }


def rank_file(run: RunDir, attempt: str, rank: int) -> Path:
    """Where a rank says which process it is, for the watch on its node."""
    return run.path / LOGS / f"rank-{attempt}-{rank}"


def note_process(run: RunDir, task: Task, pid: int) -> None:
    """Say which process this rank is; the worker keeps the process id."""
    body = {"rank": task.rank, "node": node_name(), "pid": pid}
    write_text(rank_file(run, task.attempt, task.rank), json.dumps(body) + "\n")


def become_worker(run: RunDir, task: Task) -> None:
    """Replace this process by the worker of its rank; never returns."""
    environment = {**os.environ, **rank_environment(run, task, os.environ)}
    note_process(run, task, os.getpid())
    argv = worker_argv(run)
    os.execve(argv[0], argv, environment)


def main(argv: Sequence[str] | None = None) -> int:
    """Become the worker, or say in one line why not."""
    parser = argparse.ArgumentParser(prog="ekd-slurm-rank", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the run directory")
    arguments = parser.parse_args(argv)
    try:
        become_worker(RunDir(arguments.run), read_task(os.environ))
    except EkdError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
