"""Progress of a build: a Rich bar on a terminal, a plain line every few seconds elsewhere."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Report = Callable[[int, int], None]  # documents and tokens since the last call

_LINE_PERIOD_S = 5.0


def silent(documents: int, tokens: int) -> None:
    """Report nothing."""


@contextmanager
def reporting(console: Console, total_documents: int | None) -> Generator[Report]:
    """A reporter of packed documents and tokens, for as long as the context lasts."""
    if console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task("packing", total=total_documents, tokens=0)
            yield lambda documents, tokens: bar.update(
                task, advance=documents, tokens=bar.tasks[task].fields["tokens"] + tokens
            )
    else:
        yield _Lines(console, total_documents).report


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("documents, {task.fields[tokens]:,} tokens"),
        TimeElapsedColumn(),
        console=console,
    )


class _Lines:
    def __init__(self, console: Console, total_documents: int | None) -> None:
        self._console = console
        self._of = "" if total_documents is None else f" of {total_documents:,}"
        self._documents = self._tokens = 0
        self._next_s = time.monotonic() + _LINE_PERIOD_S

    def report(self, documents: int, tokens: int) -> None:
        self._documents += documents
        self._tokens += tokens
        if time.monotonic() >= self._next_s:
            self._console.print(
                f"packing: {self._documents:,}{self._of} documents, {self._tokens:,} tokens"
            )
            self._next_s = time.monotonic() + _LINE_PERIOD_S
