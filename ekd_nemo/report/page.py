"""The report as one HTML file that needs nothing else: tables, pictures as inline SVG, notes, no script."""

# matplotlib's types are partly unknown.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false

import io
import re
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

from ekd_nemo.metrics.format import MISSING
from ekd_nemo.metrics.general_table import general_table
from ekd_nemo.metrics.render import as_csv, as_json
from ekd_nemo.metrics.summary import Summary
from ekd_nemo.metrics.table_parts import Row
from ekd_nemo.metrics.tables import INTERVALS, absences_of, flags_of, listed, tables_of
from ekd_nemo.records.atomic import write_bytes, write_text
from ekd_nemo.report import style
from ekd_nemo.report.content import Content
from ekd_nemo.report.drawn import Absent, Plot
from ekd_nemo.report.figures import FIGURES, SECTIONS
from ekd_nemo.report.page_style import CSS
from ekd_nemo.report.tables import slug, table_html

_PNG_DPI: Final = 200
_UNDATED: Final = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}

Drawn = Mapping[str, Figure | Absent]


def build(content: Content, out: Path, figures: Path | None = None) -> Drawn:
    """Write the report, and each figure as PNG and PDF where a folder for them is given.

    Returns:
        Each figure by name, or why it is absent.
    """
    with mpl.rc_context(style.RC):
        drawn = {name: plot.draw(content) for name, plot in FIGURES.items()}
        page = _page(content, drawn)
        if figures is not None:
            _save(drawn, figures)
    write_text(out, page)
    return drawn


def _save(drawn: Drawn, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        if isinstance(figure, Absent):
            continue
        for kind, metadata in _UNDATED.items():
            data = io.BytesIO()
            figure.savefig(data, format=kind, dpi=_PNG_DPI, metadata=metadata)
            write_bytes(folder / f"{name}.{kind}", data.getvalue())


def _page(content: Content, drawn: Drawn) -> str:
    summary = content.summary
    runs = {run.run_id for run in summary.runs}
    count = f"{_count(len(summary.runs), 'run')} of {_count(len(summary.methods), 'method')}"
    figures = "\n".join(
        f'<section id="{slug(title)}"><h2>{escape(title)}</h2>\n'
        + "\n".join(_figure_html(plot, drawn[plot.name]) for plot in plots)
        + "</section>"
        for title, plots in SECTIONS.items()
    )
    tables = "\n".join(table_html(table, runs) for table in tables_of(summary))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>ekd: {count}</title><style>{CSS}</style></head>\n<body>\n{_contents()}\n<main>\n"
        f"<h1>Energy and quality of {count}</h1>\n{_lead(summary)}\n"
        f'<section id="all-methods"><h2>All methods</h2>\n'
        f"{table_html(general_table(summary), runs, titled=False)}</section>\n{figures}\n"
        f'<section id="tables"><h2>Tables</h2>\n{tables}</section>\n{_notes(summary)}\n'
        "</main></body></html>\n"
    )


def _contents() -> str:
    """Links to the sections and figures."""
    links = [_link("all-methods", "All methods")]
    for title, plots in SECTIONS.items():
        inner = "".join(f"<li>{_link(plot.name, plot.title)}</li>" for plot in plots)
        links.append(f"{_link(slug(title), title)}<ul>{inner}</ul>")
    links += [_link("tables", "Tables"), _link("flags", "Flags"), _link("missing", "Not available")]
    items = "".join(f"<li>{link}</li>" for link in links)
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>'


def _link(target: str, text: str) -> str:
    return f'<a href="#{target}">{escape(text)}</a>'


def _lead(summary: Summary) -> str:
    """What kind of claim the energies are, and the data behind the page."""
    sources = sorted({q.source for run in summary.runs if (q := run.figures["e_run"]).source})
    energies = (
        f"Energy is {' and '.join(sources)}." if sources else "No run has a record of energy."
    )
    return (
        f'<p class="lead">{energies} Not measured is {MISSING}, with the reason below, never 0. '
        f"The figures of this page: {_download('summary.json', 'application/json', as_json(summary))}, "
        f"{_download('summary.csv', 'text/csv', as_csv(summary))}.</p>"
    )


def _download(name: str, kind: str, text: str) -> str:
    data = b64encode(text.encode()).decode()
    return f'<a download="{name}" href="data:{kind};base64,{data}">{name}</a>'


def _figure_html(plot: Plot, figure: Figure | Absent) -> str:
    title = f'<h3 id="{plot.name}">{escape(plot.title)}</h3>\n'
    if isinstance(figure, Absent):
        return f'{title}<p class="absent">{MISSING}: {escape(figure.reason)}</p>'
    drawing = _svg(plot, figure)
    return (
        f'{title}<figure><div class="scroll" tabindex="0">{drawing}</div>'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
    )


def _svg(plot: Plot, figure: Figure) -> str:
    """The drawing with the page's colours, and ids of its own."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = text.getvalue()
    drawing = style.themed(drawing[drawing.index("<svg") :])
    drawing = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{plot.name}-", drawing)
    label = escape(f"{plot.title}. {plot.caption}")
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _notes(summary: Summary) -> str:
    """The flags with what they mean, and why figures are missing."""
    flags = [(note.flag, note.meaning, listed(note.where)) for note in flags_of(summary)]
    missing = [
        (", ".join(absence.figures), absence.reason, listed(absence.runs))
        for absence in absences_of(summary)
    ]
    return (
        f'<section id="flags"><h2>Flags</h2>\n<p class="caption">{escape(INTERVALS)}.</p>\n'
        f"{_told(('flag', 'what it means', 'where'), flags, 'No run carries a flag.')}</section>\n"
        f'<section id="missing"><h2>Not available</h2>\n'
        f"{_told(('figure', 'why', 'where'), missing, 'No figure of the tables is missing.')}</section>"
    )


def _told(columns: Row, rows: list[Row], none: str) -> str:
    """A table of sentences."""
    if not rows:
        return f"<p>{none}</p>"
    heads = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table class="told"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
