"""What the tables of a summary are made of: columns, rows and sections."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ekd_nemo.metrics import format as fmt
from ekd_nemo.metrics.summary import Figures, Summary, mean_figures

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        caption: the definitions, in a line or two.
        columns: headings; the first column is text, the others are numbers.
        sections: groups of rows that a rule sets apart; never empty.
    """

    title: str
    caption: str
    columns: Row
    sections: tuple[tuple[Row, ...], ...]


@dataclass(frozen=True, slots=True)
class Column:
    """One figure as a column."""

    name: str
    heading: str
    show: fmt.Formatter


def cells(figures: Figures, columns: Iterable[Column], absent: str = fmt.MISSING) -> Row:
    """One cell a column: `n/a` for what is missing, `absent` for what the row cannot have."""
    return tuple(
        fmt.cell_with_bounds(figures[c.name], c.show) if c.name in figures else absent
        for c in columns
    )


def sections(summary: Summary, row: Callable[[Figures], Row]) -> tuple[tuple[Row, ...], ...]:
    """A row a run, then a row a method."""
    runs = tuple((run.run_id, *row(run.figures)) for run in summary.runs)
    methods = tuple(
        (f"{method.name}, {_mean_of(len(method.runs))}", *row(method.figures))
        for method in summary.methods
    )
    return runs, methods


def _mean_of(count: int) -> str:
    return f"mean of {count}" if count > 1 else "1 run"


def others(summary: Summary, prefix: str) -> dict[str, Figures]:
    """Figures of teacher and base whose names begin so, by row name.

    One row where all runs agree, else the mean and one a run.
    """
    rows: dict[str, Figures] = {}
    for role in ("teacher", "base"):
        found = {
            run.run_id: mine
            for run in summary.runs
            if (mine := {n: q for n, q in getattr(run, role).items() if n.startswith(prefix)})
        }
        distinct = {tuple((n, q.value) for n, q in sorted(mine.items())) for mine in found.values()}
        if len(distinct) == 1:
            rows[role] = next(iter(found.values()))
        elif found:
            rows[f"{role}, {_mean_of(len(found))}"] = mean_figures(list(found.values()))
            rows.update({f"{role} of {run_id}": mine for run_id, mine in found.items()})
    return rows
