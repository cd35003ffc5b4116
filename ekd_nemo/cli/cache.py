"""`ekd cache`: a teacher's outputs on disk; what a command needs is imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Keep a teacher's outputs on disk."
)

Folder = Annotated[Path, typer.Argument(help="The folder of the cache.")]


@app.command()
def build(
    name: Annotated[
        str, typer.Argument(help="A recipe with teacher.placement cached; as for launch.")
    ] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one value. Repeatable."),
    ] = None,
    nproc: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks; by default one copy of the teacher."),
    ] = None,
    json: Annotated[
        str | None, typer.Option(hidden=True, help="A resolved recipe, in place of a name.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="The folder of run directories.")] = Path("runs"),
) -> None:
    """Run the teacher of a recipe over its shards once, and keep what training needs of it.

    A cache that is whole is kept, one that was begun is finished, to the same bytes. The build is a
    run of its own, whose energy is charged to the trainings that read the cache.
    """
    from ekd_nemo.cli.common import require_extra
    from ekd_nemo.config.recipe import Recipe
    from ekd_nemo.config.resolve import resolve_recipe
    from ekd_nemo.errors import UserError
    from ekd_nemo.launch.cache import build_cache

    if json is None and not name:
        raise UserError("ekd cache build takes the name of a recipe")
    recipe = (
        resolve_recipe(name, overrides or ()).recipe
        if json is None
        else Recipe.model_validate_json(json)
    )
    require_extra("ekd cache build", "train", "torch")
    build_cache(recipe, runs=runs, nproc=nproc, say=typer.echo)


@app.command()
def inspect(folder: Folder) -> None:
    """Say whose outputs a cache holds, in which form, and what they cost."""
    from ekd_nemo.launch.cache import summary

    for line in summary(folder):
        typer.echo(line)


@app.command()
def verify(folder: Folder) -> None:
    """Read every byte of a cache; name the blocks that are damaged. Exit code 1 if there are any."""
    from ekd_nemo.cli.common import run_worker

    run_worker(["cache", "verify", str(folder)])
