"""`ekd data`: shards from documents. The building is done by a worker process.

What a command needs is imported when it runs, so that help is fast.
"""

from pathlib import Path
from typing import Annotated

import typer

from ekd_nemo.cli.common import run_worker

app = typer.Typer(
    help="Build packed shards from documents.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SOURCE_HELP = (
    "python-docs, jsonl:FILE or hub:NAME, then ,key=value as in hub:NAME,split=train,weight=0.5"
)


@app.callback()
def _group() -> None:
    """Build packed shards from documents."""


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder of the shards; must not hold others.")],
    config: Annotated[Path | None, typer.Option(help="YAML with the keys of a build.")] = None,
    source: Annotated[list[str] | None, typer.Option(help=SOURCE_HELP)] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub id.")] = None,
    sequence_length: Annotated[int | None, typer.Option(help="Tokens of a sample.")] = None,
    template: Annotated[str | None, typer.Option(help="none or chat.")] = None,
    loss_on: Annotated[str | None, typer.Option(help="all or answers.")] = None,
    validation_fraction: Annotated[float | None, typer.Option(help="Share held out.")] = None,
    max_documents: Annotated[int | None, typer.Option(help="Cap over all sources.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of split, mixture and samples.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value over all.")] = None,
) -> None:
    """Build shards from a configuration file, options, or both; options win.

    Shards that are there with the same settings are kept; with other settings they are refused.
    """
    from ekd_nemo.sources.manifest import shards_ready
    from ekd_nemo.sources.options import build_from_options

    options = {
        "tokenizer": tokenizer,
        "sequence_length": sequence_length,
        "template": template,
        "loss_on": loss_on,
        "validation_fraction": validation_fraction,
        "max_documents": max_documents,
        "seed": seed,
    }
    settings = build_from_options(config, source or [], options, set_ or [])
    if shards_ready(out, settings):
        typer.echo(f"{out}: kept, built with the same settings")
        return
    settings_json = settings.model_dump_json()
    run_worker(["data", "build", "--settings", settings_json, "--out", str(out)])
