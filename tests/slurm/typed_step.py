"""`ekd recipe launch` behind srun, with ranks that only mark steps in place of the worker."""

import sys
from pathlib import Path

from ekd_nemo.config.resolve import resolve_recipe
from ekd_nemo.launch import slurm_rank, slurm_step
from ekd_nemo.records.rundir import RunDir

RANK = Path(__file__).with_name("stepping_rank.py")


def stepping(run: RunDir) -> list[str]:
    return [sys.executable, str(RANK), "--run", str(run.path), "--steps", "15"]


if __name__ == "__main__":
    slurm_rank.worker_argv = stepping
    slurm_step.worker_argv = stepping
    assert slurm_step.is_worker(slurm_step.os.environ, 4)
    sys.exit(
        slurm_step.launch_in_step(
            resolve_recipe("tiny", ["train.micro_batch_size=1"]), Path("runs"), None
        )
    )
