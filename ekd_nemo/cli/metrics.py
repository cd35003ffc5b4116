"""`ekd metrics`: what runs have cost and what came of it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Energy, losses and scores of runs."
)


class Format(StrEnum):
    """How a summary is written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MD = "md"
    LATEX = "latex"


@app.callback()
def _group() -> None:
    """Energy, losses and scores of runs."""


@app.command()
def summarise(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or folders of them.")],
    format: Annotated[Format, typer.Option(help="How to write it.")] = Format.TABLE,
    site: Annotated[
        Path | None,
        typer.Option(
            help="YAML with pue, grid_carbon and price, each with value, unit and source; "
            "a cluster file will do. Default: what each run.json states."
        ),
    ] = None,
) -> None:
    """Show runs and methods: losses, energy, scores, each with its source; n/a with the reason."""
    from ekd_nemo.metrics import render
    from ekd_nemo.metrics.site import read_site
    from ekd_nemo.metrics.summary import summarise as summary_of

    summary = summary_of(runs, read_site(site) if site is not None else None)
    if format is Format.TABLE:
        render.print_tables(summary)
        return
    write = {
        Format.JSON: render.as_json,
        Format.CSV: render.as_csv,
        Format.MD: render.as_markdown,
        Format.LATEX: render.as_latex,
    }[format]
    typer.echo(write(summary), nl=False)


@app.command()
def ledger(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or folders of them.")],
) -> None:
    """Rebuild each run's ledger.parquet and summary.json from its records."""
    from ekd_nemo.metrics.derive import derive
    from ekd_nemo.records.rundir import find_runs

    for folder in runs:
        for run in find_runs(folder):
            typer.echo(derive(run))


@app.command("import")
def import_(
    path: Annotated[
        Path,
        typer.Argument(help="A folder with CATEGORY/MODEL/telemetry.jsonl, or a CSV power log."),
    ],
    runs: Annotated[Path, typer.Option(help="Where the run directories go.")] = Path("runs"),
    without_scores: Annotated[
        bool, typer.Option("--without-scores", help="Leave eval.json out.")
    ] = False,
) -> None:
    """Make run directories from the earlier framework's folders or from a CSV power log."""
    from ekd_nemo.metrics.imports.folders import import_path

    for made in import_path(path, runs, scores=not without_scores):
        left_out = f"; left out: {made.dropped}" if made.dropped else ""
        typer.echo(f"{made.run.path}: {', '.join(made.flags)}{left_out}")
