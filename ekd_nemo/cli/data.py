"""`ekd data`: shards from documents. The building is done by a worker process."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ekd_nemo.cli.common import run_worker
from ekd_nemo.config.data import DataBuild
from ekd_nemo.config.loader import KeyPath, load_document, load_value
from ekd_nemo.config.overrides import apply_override, set_origins
from ekd_nemo.config.validation import validate
from ekd_nemo.errors import ConfigError
from ekd_nemo.sources.manifest import shards_ready

app = typer.Typer(
    help="Build packed shards from documents.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_KINDS = ("hub", "jsonl", "python-docs")
_SOURCE_HELP = (
    "python-docs, jsonl:FILE or hub:NAME, then ,key=value as in hub:NAME,split=train,weight=0.5"
)


@app.callback()
def _group() -> None:
    """Build packed shards from documents."""


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder of the shards; must not hold others.")],
    config: Annotated[Path | None, typer.Option(help="YAML with the keys of a build.")] = None,
    source: Annotated[list[str] | None, typer.Option(help=_SOURCE_HELP)] = None,
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
    options = {
        "tokenizer": tokenizer,
        "sequence_length": sequence_length,
        "template": template,
        "loss_on": loss_on,
        "validation_fraction": validation_fraction,
        "max_documents": max_documents,
        "seed": seed,
    }
    settings = _settings(config, source or [], options, set_ or [])
    if shards_ready(out, settings):
        typer.echo(f"{out}: kept, built with the same settings")
        return
    settings_json = settings.model_dump_json()
    run_worker(["data", "build", "--settings", settings_json, "--out", str(out)])


def _settings(
    config: Path | None, sources: list[str], options: dict[str, Any], overrides: list[str]
) -> DataBuild:
    data: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    if config is not None:
        document = load_document(config)
        data = document.data
        origins = {key: f"{config}:{line}" for key, line in document.lines.items()}
    given = {key: value for key, value in options.items() if value is not None}
    if sources:
        given["sources"] = [parse_source(text) for text in sources]
    for key, value in given.items():
        data[key] = value
        option = "source" if key == "sources" else key.replace("_", "-")
        set_origins(origins, (key,), value, f"--{option}")
    for text in overrides:
        apply_override(data, origins, text)

    def place(key: KeyPath) -> str:
        known = [key[:n] for n in range(len(key), 0, -1) if key[:n] in origins]
        return origins[known[0]] if known else str(config or "ekd data build")

    return validate(DataBuild, data, place, "the build")


def parse_source(text: str) -> dict[str, Any]:
    """A source as it is written on the command line: `KIND[:NAME][,key=value]...`.

    Raises:
        ConfigError: for an unknown kind, or a part that is not key=value.
    """
    head, *pairs = text.split(",")
    kind, _, name = head.partition(":")
    if kind not in _KINDS or (name == "") != (kind == "python-docs"):
        raise ConfigError(f"--source {text}: accepted: {_SOURCE_HELP}")
    source: dict[str, Any] = {"kind": kind}
    if name:
        source |= {"paths": [name]} if kind == "jsonl" else {"name": name}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--source {text}: '{pair}' is not key=value")
        source[key] = load_value(value, f"--source {text}")
    return source
