"""Command groups that are imported when they are asked for, so that `--help` costs next to nothing."""

import importlib
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

# name: (what the help says, "module:attribute" of a Typer app or of a function)
GROUPS: dict[str, tuple[str, str]] = {
    "recipe": ("List, show and launch recipes.", "ekd_nemo.cli.recipe:app"),
    "data": ("Build shards to train on.", "ekd_nemo.cli.data:app"),
    "cache": ("Keep a teacher's outputs on disk.", "ekd_nemo.cli.cache:app"),
    "convert": ("Import and export Hugging Face models.", "ekd_nemo.cli.convert:app"),
    "eval": ("Evaluate models.", "ekd_nemo.cli.evals:app"),
    "telemetry": ("Record the energy of a command.", "ekd_nemo.cli.telemetry:app"),
    "metrics": ("Turn runs into tables.", "ekd_nemo.cli.metrics:app"),
    "report": ("Turn runs into one page with pictures.", "ekd_nemo.cli.report:app"),
    "doctor": ("Say what this machine can run and measure.", "ekd_nemo.cli.doctor:doctor"),
}


class LazyGroup(TyperGroup):
    """The commands of `GROUPS`; listing them imports none of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of `GROUPS`."""
        return list(GROUPS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import one group; None for an unknown name."""
        if cmd_name not in GROUPS:
            return None
        module, attribute = GROUPS[cmd_name][1].split(":")
        return _as_command(cmd_name, getattr(importlib.import_module(module), attribute))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Refuse an unknown command without importing the known ones."""
        if args and not args[0].startswith("-") and args[0] not in GROUPS:
            ctx.fail(f"{args[0]} is not a command; accepted: {', '.join(GROUPS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (text, _) in GROUPS.items()])


def _as_command(name: str, target: typer.Typer | Callable[..., Any]) -> Any:
    if isinstance(target, typer.Typer):
        target.rich_markup_mode = None
        command = typer.main.get_group(target)
    else:
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name)(target)
        command = typer.main.get_command(single)
    command.name = name
    return command
