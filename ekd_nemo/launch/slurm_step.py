"""`srun --container-image=... ekd recipe launch NAME`: each task of the step becomes the worker of its rank.

Tasks of one step share it, so the first task of each node keeps the sampler beside its rank; a job submitted with
`--cluster` gives the samplers a step of their own instead, which is safer for the last joules.
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ekd_nemo.config.resolve import ResolvedRecipe
from ekd_nemo.errors import UserError
from ekd_nemo.launch.checks import check_plan, check_settings
from ekd_nemo.launch.identity import choose_run
from ekd_nemo.launch.plan import plan_launch
from ekd_nemo.launch.slurm_env import Task, in_step, read_task
from ekd_nemo.launch.slurm_node import NodeStep
from ekd_nemo.launch.slurm_rank import become_worker, note_process, rank_environment, worker_argv
from ekd_nemo.launch.slurm_ready import wait_for
from ekd_nemo.launch.slurm_run import make_run
from ekd_nemo.records.identity import make_run_id
from ekd_nemo.records.rundir import RunDir

SILENT_S = 1800.0


def is_worker(environ: Mapping[str, str], world_size: int | None) -> bool:
    """Whether a launch is to be a rank of the step that it is called in.

    Args:
        environ: of this process.
        world_size: ranks that were asked for; None: as many as the step has tasks.
    """
    if not in_step(environ):
        return False
    return world_size is None or environ.get("SLURM_NTASKS") == str(world_size)


def launch_in_step(resolved: ResolvedRecipe, runs: Path, run_id: str | None) -> int:
    """Be the rank of this task; gives the rank's exit code, or never returns.

    Raises: UserError of some kind, in one line; RunError if the node's sampler fails.
    """
    task = read_task(os.environ)
    recipe = resolved.recipe
    name = run_id or make_run_id(recipe.name, recipe.model_dump(mode="json"), recipe.seed)
    run = RunDir(runs / name)
    plan = plan_launch(resolved, run, task.world_size)
    if plan.preparation:
        raise UserError(
            f"{recipe.data.path}: the shards are not there, and a step of ranks does not build them; accepted: "
            "`ekd data build` first, or a launch with --cluster, which makes a job of it"
        )
    if task.local_rank:
        become_worker(run, task)
    if task.rank == 0:
        check_settings(resolved)
        run = choose_run(recipe, runs, run_id)
        check_plan(plan, ask_hub=True)
        make_run(run, recipe)
    else:  # a sampler that came first would make the folder, and the first rank would take it for somebody else's
        wait_for(run.run_json, "the run directory that the first rank makes")
    node = NodeStep(run, recipe, task, task.world_size, SILENT_S)
    return node(lambda: _start(run, task))


def _start(run: RunDir, task: Task) -> subprocess.Popen[bytes]:
    """The worker of this task as a child; Slurm's signals reach it through this process, or both."""
    environment = {**os.environ, **rank_environment(run, task, os.environ)}
    process = subprocess.Popen(worker_argv(run), env=environment)
    note_process(run, task, process.pid)
    return process
