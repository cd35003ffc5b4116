"""The report as one HTML file that needs nothing else: tables, pictures as inline SVG, notes, no script."""

# matplotlib's types are partly unknown.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false

import io
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from ekd_nemo.metrics.tables import Table, notes_of, tables_of
from ekd_nemo.records.atomic import write_bytes, write_text
from ekd_nemo.report.content import Content
from ekd_nemo.report.figures import FIGURES

# Fixed, so that the same records give the same bytes.
_STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "ekd",
    "svg.fonttype": "path",
    "font.size": 9,
    "pdf.fonttype": 42,
}
_PNG_DPI: Final = 200

_CSS: Final = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin:2.2rem 0 .2rem}
p.caption{color:#666;font-size:.85rem;margin:.1rem 0 .6rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;text-align:right;vertical-align:top;white-space:pre-line}
th{border-bottom:2px solid #444;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;white-space:nowrap}
tbody+tbody tr:first-child td{border-top:1px solid #bbb}
figure{margin:0}figure svg{width:100%;height:auto}ul{font-size:.85rem;color:#444}
"""


def build(content: Content, out: Path, figures: Path | None = None) -> list[str]:
    """Write the report, and each figure as PNG and PDF where a folder for them is given.

    Returns:
        The names of the figures that were drawn.
    """
    drawn: dict[str, Figure] = {}
    with mpl.rc_context(_STYLE):
        for name, (_, draw) in FIGURES.items():
            figure = draw(content)
            if figure is not None:
                drawn[name] = figure
        parts = [_figure_html(FIGURES[name][0], figure) for name, figure in drawn.items()]
        if figures is not None:
            _save(drawn, figures)
    write_text(out, _page(content, parts))
    return list(drawn)


def _save(drawn: dict[str, Figure], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    undated = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    }
    for name, figure in drawn.items():
        for kind, metadata in undated.items():
            data = io.BytesIO()
            figure.savefig(data, format=kind, dpi=_PNG_DPI, metadata=metadata)
            write_bytes(folder / f"{name}.{kind}", data.getvalue())


def _figure_html(title: str, figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawing = text.getvalue()
    return f"<h2>{escape(title)}</h2>\n<figure>{drawing[drawing.index('<svg') :]}</figure>"


def _page(content: Content, figures: Iterable[str]) -> str:
    summary = content.summary
    tables = "\n".join(_table_html(table) for table in tables_of(summary))
    notes = "".join(f"<li>{escape(note)}</li>\n" for note in notes_of(summary))
    count = f"{len(summary.runs)} runs of {len(summary.methods)} methods"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>ekd: {count}</title><style>{_CSS}</style></head>\n<body>\n"
        f"<h1>Energy and quality of {count}</h1>\n{tables}\n{chr(10).join(figures)}\n"
        f"<h2>Notes</h2>\n<ul>\n{notes}</ul>\n</body></html>\n"
    )


def _table_html(table: Table) -> str:
    heads = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    bodies = "".join(
        "<tbody>"
        + "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in section
        )
        + "</tbody>\n"
        for section in table.sections
    )
    return (
        f'<h2>{escape(table.title)}</h2>\n<p class="caption">{escape(table.caption)}</p>\n'
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>\n{bodies}</table></div>'
    )
