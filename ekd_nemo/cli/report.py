"""`ekd report`: runs as one page with tables and pictures."""

from pathlib import Path
from typing import Annotated

import typer

from ekd_nemo.cli.common import require_extra
from ekd_nemo.errors import UserError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Runs as one page.")


@app.callback()
def _group() -> None:
    """Runs as one page with tables and pictures."""


@app.command()
def build(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or folders of them.")],
    out: Annotated[Path, typer.Option(help="The HTML file; replaced if it exists.")] = Path(
        "report.html"
    ),
    figures: Annotated[
        Path | None,
        typer.Option(
            help="A folder for each figure as PNG and PDF; those of its name are replaced."
        ),
    ] = None,
) -> None:
    """Build a self-contained HTML report."""
    require_extra("ekd report build", "report", "matplotlib")
    _check_targets(out, figures)
    from ekd_nemo.report.content import gather
    from ekd_nemo.report.drawn import Absent
    from ekd_nemo.report.page import build as build_page

    drawn = build_page(gather(runs), out, figures)
    absent = {name: part.reason for name, part in drawn.items() if isinstance(part, Absent)}
    typer.echo(f"{out}: {len(drawn) - len(absent)} of {len(drawn)} figures")
    for name, reason in absent.items():
        typer.echo(f"  {name}: n/a: {reason}")
    if figures is not None:
        typer.echo(f"{figures}: each of them as PNG and PDF")


def _check_targets(out: Path, figures: Path | None) -> None:
    """Refuse places that cannot be written to before minutes are spent on reading."""
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; expected the name of an HTML file")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.absolute().parent} is not there")
    if figures is not None and figures.exists() and not figures.is_dir():
        raise UserError(f"--figures {figures}: is a file; expected a folder")
