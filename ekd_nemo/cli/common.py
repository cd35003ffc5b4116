"""What the command groups share: starting the worker, and plain tables."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import typer

from ekd_nemo.errors import MissingExtraError


def require_extra(command: str, extra: str, module: str) -> None:
    """Raise MissingExtraError unless a module of the extra is installed; it is not imported."""
    if find_spec(module) is None:
        raise MissingExtraError(command, extra)


def run_worker(argv: Sequence[str]) -> None:
    """Run `python -m ekd_nemo.worker VERB ...` on this terminal and wait for it.

    Args:
        argv: the verb and its arguments.
    Raises: typer.Exit with the worker's exit code if that is not 0 (the worker has said why);
        MissingExtraError without torch.
    """
    require_extra(f"ekd {argv[0]}", "train", "torch")
    done = subprocess.run([sys.executable, "-m", "ekd_nemo.worker", *argv], check=False)
    if done.returncode:
        raise typer.Exit(done.returncode if done.returncode > 0 else 128 - done.returncode)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as columns of the widths they need, two spaces apart; the last column is left as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
