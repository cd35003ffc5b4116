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
def reporting(
    console: Console, total: int | None, doing: str = "packing", what: str = "documents"
) -> Generator[Report]:
    """A reporter of finished documents (or `what` it is) and tokens, for as long as the context lasts."""
    if console.is_terminal:
        with _bar(console, what) as bar:
            task = bar.add_task(doing, total=total, tokens=0)
            yield lambda documents, tokens: bar.update(
                task, advance=documents, tokens=bar.tasks[task].fields["tokens"] + tokens
            )
    else:
        yield _Lines(console, total, doing, what).report


def _bar(console: Console, what: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(what + ", {task.fields[tokens]:,} tokens"),
        TimeElapsedColumn(),
        console=console,
    )


class _Lines:
    def __init__(self, console: Console, total: int | None, doing: str, what: str) -> None:
        self._console, self._doing, self._what = console, doing, what
        self._of = "" if total is None else f" of {total:,}"
        self._documents = self._tokens = 0
        self._next_s = time.monotonic() + _LINE_PERIOD_S

    def report(self, documents: int, tokens: int) -> None:
        self._documents += documents
        self._tokens += tokens
        if time.monotonic() >= self._next_s:
            self._console.print(
                f"{self._doing}: {self._documents:,}{self._of} {self._what}, {self._tokens:,} tokens"
            )
            self._next_s = time.monotonic() + _LINE_PERIOD_S
