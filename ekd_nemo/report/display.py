"""Figures and tables of a report, one by one, as a notebook shows them."""

# matplotlib's types are partly unknown.
# pyright: reportUnknownMemberType=false

import io
from html import escape

import matplotlib as mpl
from matplotlib.figure import Figure

from ekd_nemo.metrics.format import MISSING
from ekd_nemo.metrics.table_parts import Table
from ekd_nemo.report import style
from ekd_nemo.report.content import Content
from ekd_nemo.report.drawn import Absent, Plot
from ekd_nemo.report.figures import FIGURES
from ekd_nemo.report.tables import table_html


class Shown:
    """A figure or table that a notebook displays when it is a cell's last value.

    Attributes:
        figure: the matplotlib figure, to be changed or saved; None for tables and where there is nothing to draw.
    """

    def __init__(self, html: str, figure: Figure | None = None) -> None:
        """Hold what is displayed."""
        self.figure = figure
        self._html = html

    def _repr_html_(self) -> str:
        return self._html


def figure(content: Content, name: str) -> Shown:
    """One figure of the report, by the name that its files have.

    Raises: KeyError naming the figures there are.
    """
    if name not in FIGURES:
        raise KeyError(f"no figure {name!r}; one of {', '.join(FIGURES)}")
    plot = FIGURES[name]
    with mpl.rc_context(style.RC):
        drawn = plot.draw(content)
        if isinstance(drawn, Absent):
            return Shown(f"<p>{escape(plot.title)}: {MISSING}: {escape(drawn.reason)}</p>")
        return Shown(_svg(plot, drawn), drawn)


def _svg(plot: Plot, drawn: Figure) -> str:
    text = io.StringIO()
    drawn.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawing = text.getvalue()
    return f"{drawing[drawing.index('<svg') :]}<p>{escape(plot.caption)}</p>"


def table(content: Content, one: Table) -> Shown:
    """One table of `ekd metrics summarise`, the rows of single runs folded away."""
    return Shown(table_html(one, {run.run_id for run in content.summary.runs}))
