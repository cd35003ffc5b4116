"""Tables of a summary as HTML."""

import re
from collections.abc import Iterable
from html import escape

from ekd_nemo.metrics.format import MISSING
from ekd_nemo.metrics.table_parts import Row, Table


def table_html(table: Table, runs: set[str], *, titled: bool = True) -> str:
    """The table; rows of runs are folded away under those of methods."""
    others = [tuple(r for r in rows if not _is_of_run(r, runs)) for rows in table.sections]
    told = [rows for rows in others if rows]
    single = [row for rows in table.sections for row in rows if _is_of_run(row, runs)]
    title = f'<h3 id="table-{slug(table.title)}">{escape(table.title)}</h3>\n' if titled else ""
    text = f'{title}<p class="caption">{escape(table.caption)}</p>\n{_rows_html(table, told)}'
    if single:
        folded = _rows_html(table, [tuple(single)])
        text += f"<details><summary>Each run ({len(single)})</summary>{folded}</details>"
    return text


def _is_of_run(row: Row, runs: set[str]) -> bool:
    """Whether a row is of one run, or of a teacher or base as one run saw it."""
    return row[0] in runs or row[0].partition(" of ")[2] in runs


def _rows_html(table: Table, sections: Iterable[tuple[Row, ...]]) -> str:
    heads = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    bodies = "".join(
        "<tbody>" + "".join(f"<tr>{_cells_html(row)}</tr>" for row in rows) + "</tbody>\n"
        for rows in sections
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead>\n{bodies}</table></div>\n'


def _cells_html(row: Row) -> str:
    first, *others = row
    cells = "".join(
        f'<td class="absent">{cell}</td>' if cell == MISSING else f"<td>{escape(cell)}</td>"
        for cell in others
    )
    return f'<th scope="row">{escape(first)}</th>{cells}'


def slug(title: str) -> str:
    """A title as a name in the page."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower())
