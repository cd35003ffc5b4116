"""`ekd recipe ...`; what a command needs is imported when it runs, so that help is fast."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ekd_nemo.cli import cluster as on_cluster
from ekd_nemo.cli.common import table
from ekd_nemo.cli.plan import plan
from ekd_nemo.errors import ConfigError, UserError

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="List, show, plan and launch recipes."
)

Name = Annotated[
    str,
    typer.Argument(
        help="A recipe's name, or the path of a .yaml file; NAME+VARIANT puts a variant on it."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override one value: train.steps=20. Repeatable."
    ),
]


@app.command("list")
def list_command() -> None:
    """List the recipes of ./recipes and those that ship with ekd."""
    from ekd_nemo.config.resolve import list_recipes, resolve_recipe

    rows = [("NAME", "METHOD", "VARIANTS", "DESCRIPTION")]
    for name, path in list_recipes().items():
        try:
            resolved = resolve_recipe(str(path))
            recipe, variants = resolved.recipe, ",".join(resolved.variants) or "-"
            rows.append((name, recipe.method, variants, recipe.description))
        except ConfigError as error:
            rows.append((name, "?", "?", f"refused: {error}"))
    typer.echo(table(rows))


@app.command()
def show(name: Name, overrides: Overrides = None) -> None:
    """Print a recipe as it resolves, and where each value comes from."""
    from ekd_nemo.config.render import render
    from ekd_nemo.config.resolve import resolve_recipe
    from ekd_nemo.records.identity import make_run_id

    resolved = resolve_recipe(name, overrides or ())
    recipe = resolved.recipe
    typer.echo(f"# {resolved.source}")
    if resolved.variants:
        typer.echo(f"# variants: {', '.join(resolved.variants)}")
    typer.echo(f"# run id: {make_run_id(recipe.name, recipe.model_dump(mode='json'), recipe.seed)}")
    text = render(
        recipe.model_dump(mode="json"), lambda path: resolved.origins.get(path, "default")
    )
    typer.echo(text, nl=False)


@app.command()
def launch(
    name: Name,
    overrides: Overrides = None,
    local: Annotated[bool, typer.Option("--local", help="Run on this machine.")] = False,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Submit to this cluster: a cluster file, or its name."),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=1, help="On a cluster: as many runs, seeds counted up; by default the recipe's."
        ),
    ] = None,
    nproc: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Ranks to start; by default as one copy of the student needs, on a cluster all.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be run and written; do nothing.")
    ] = False,
    runs: Annotated[
        Path | None, typer.Option(help="The folder of run directories; runs, or the cluster's.")
    ] = None,
    run_id: Annotated[
        str | None, typer.Option(help="Take this run id instead of the recipe's own.")
    ] = None,
    new: Annotated[
        bool, typer.Option("--new", help="Start afresh beside what is there, as RUN_ID-2, -3, ...")
    ] = False,
) -> None:
    """Train, export and evaluate as a recipe says; the same call again goes on where it stopped."""
    if local and cluster is not None:
        raise UserError("--local and --cluster exclude each other")
    if repeats is not None and cluster is None:
        raise UserError("--repeats goes with --cluster")
    given = overrides or []
    if not (local or dry_run) and on_cluster.launch_as_rank(
        name, given, cluster, nproc=nproc, runs=runs, run_id=run_id
    ):
        return
    if cluster is not None:
        on_cluster.launch_on_cluster(
            name,
            given,
            cluster,
            nproc=nproc,
            repeats=repeats,
            runs=runs,
            run_id=run_id,
            new=new,
            dry_run=dry_run,
        )
        return
    if not (local or dry_run):
        raise UserError("launch needs --local, or --cluster FILE to submit it to Slurm")
    _launch_local(name, given, nproc, runs or Path("runs"), run_id, new=new, dry_run=dry_run)


def _launch_local(
    name: str,
    overrides: list[str],
    nproc: int | None,
    runs: Path,
    run_id: str | None,
    *,
    new: bool,
    dry_run: bool,
) -> None:
    from ekd_nemo.config.resolve import resolve_recipe
    from ekd_nemo.launch.local import check_local, launch_local, plan_local
    from ekd_nemo.launch.models import is_hub_id, model_paths

    plan = plan_local(
        resolve_recipe(name, overrides), runs=runs, run_id=run_id, new=new, nproc=nproc
    )
    if dry_run:
        typer.echo(plan.describe())
        check_local(plan, ask_hub=False)
        for key, path in model_paths(plan.resolved).items():
            if is_hub_id(path):
                typer.echo(
                    f"{key}: no folder {path} here, taken for a hub id; a launch asks the hub for it"
                )
        return
    words = [
        "ekd",
        "recipe",
        "launch",
        name,
        *(f"--set={text}" for text in overrides),
        "--local",
    ]
    words += ["--nproc", str(nproc)] if nproc else []
    words += ["--runs", str(runs), "--run-id", plan.run.run_id]
    code = launch_local(plan, typer.echo, resume=shlex.join(words))
    if code:
        raise typer.Exit(code)


app.command()(on_cluster.status)
app.command()(on_cluster.cancel)
app.command()(on_cluster.resume)
app.command("plan")(plan)
