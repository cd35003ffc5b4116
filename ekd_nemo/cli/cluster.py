"""`ekd recipe launch --cluster`, and `status`, `cancel` and `resume` of what it submitted."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ekd_nemo.cli.common import table
from ekd_nemo.errors import UserError

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


def launch_on_cluster(
    name: str,
    overrides: list[str],
    cluster: str,
    *,
    nproc: int | None,
    repeats: int | None,
    runs: Path | None,
    run_id: str | None,
    new: bool,
    dry_run: bool,
) -> None:
    """Submit a recipe's job graph, or print it."""
    from ekd_nemo.config.cluster import load_cluster
    from ekd_nemo.config.resolve import resolve_recipe
    from ekd_nemo.launch.slurm import check_launch, describe, launch_cluster
    from ekd_nemo.launch.slurm_graph import plan_cluster

    loaded = load_cluster(cluster)
    launch = plan_cluster(
        resolve_recipe(name, overrides),
        loaded,
        workdir=Path.cwd(),
        runs=runs,
        run_id=run_id,
        new=new,
        nproc=nproc,
        repeats=repeats,
    )
    if dry_run:
        typer.echo(describe(launch, loaded))
        check_launch(launch)
    else:
        launch_cluster(launch, loaded, typer.echo)


def launch_as_rank(
    name: str,
    overrides: list[str],
    cluster: str | None,
    *,
    nproc: int | None,
    runs: Path | None,
    run_id: str | None,
) -> bool:
    """Be a rank of the srun step that this is called in, if it is one; False where it is not.

    Raises: typer.Exit with the rank's exit code.
    """
    from ekd_nemo.launch.slurm_step import is_worker

    if not is_worker(os.environ, None):
        return False
    from ekd_nemo.config.cluster import load_cluster
    from ekd_nemo.config.resolve import resolve_recipe
    from ekd_nemo.launch.slurm_step import launch_in_step

    loaded = None if cluster is None else load_cluster(cluster)
    wanted = nproc if nproc is not None or loaded is None else loaded.cluster.world_size
    if not is_worker(os.environ, wanted):
        if loaded is None:
            raise UserError(
                f"this srun step has {os.environ.get('SLURM_NTASKS')} tasks and --nproc is {nproc}; accepted: the same"
            )
        return False
    folder = runs or Path("runs" if loaded is None else loaded.cluster.runs)
    raise typer.Exit(launch_in_step(resolve_recipe(name, overrides), folder, run_id))


def status(run: RunPath) -> None:
    """Show the jobs of a run's launch, and how far its runs are."""
    from ekd_nemo.launch.slurm import progress_lines, status_rows
    from ekd_nemo.records.rundir import RunDir

    typer.echo(table(status_rows(RunDir(run))))
    for line in progress_lines(RunDir(run)):
        typer.echo(line)


def cancel(run: RunPath) -> None:
    """Cancel the jobs of a run's launch; what is saved stays."""
    from ekd_nemo.launch.slurm import cancel_launch
    from ekd_nemo.records.rundir import RunDir

    cancel_launch(RunDir(run), typer.echo)


def resume(run: RunPath) -> None:
    """Submit again what a run's launch has not finished."""
    from ekd_nemo.launch.slurm import resume as resume_launch
    from ekd_nemo.records.rundir import RunDir

    resume_launch(RunDir(run), typer.echo)
