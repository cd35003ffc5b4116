"""A summary as JSON, CSV, Markdown, LaTeX or tables on a terminal; the same summary, the same bytes."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from ekd_nemo.metrics.inference import figures_of
from ekd_nemo.metrics.summary import Comparison, Figures, MethodSummary, RunSummary, Summary
from ekd_nemo.metrics.tables import Table, notes_of, tables_of
from ekd_nemo.records.ept import EptEntry

SCHEMA_VERSION: Final = 1
PLAIN_WIDTH: Final = 110  # columns where the output is not a terminal
_SIGNIFICANT: Final = 12  # digits: what is left of float64 after sums in another order


def as_json(summary: Summary) -> str:
    """Every figure with unit, source, coverage, bounds, flags and reason."""
    body = {
        "schema_version": SCHEMA_VERSION,
        "runs": [_run(run) for run in summary.runs],
        "methods": [_method(method) for method in summary.methods],
        "comparisons": [_comparison(comparison) for comparison in summary.comparisons],
    }
    return json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _run(run: RunSummary) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "recipe": run.identity.recipe,
        "recipe_hash": run.identity.recipe_hash,
        "method": run.identity.method,
        "seed": run.identity.seed,
        "attempts": len(run.identity.attempts),
        "factors": run.factors.model_dump(mode="json"),
        "flags": list(run.flags),
        "figures": _figures(run.figures),
        "teacher": _figures(run.teacher),
        "base": _figures(run.base),
        "inference": [_inference(entry) for entry in run.benchmark.entries],
    }


def _inference(entry: EptEntry) -> dict[str, Any]:
    """One model on one workload at one batch size."""
    return {
        "role": entry.role,
        "engine": entry.engine.model_dump(mode="json"),
        "devices": [device.uuid for device in entry.devices],
        "workload": entry.workload.model_dump(mode="json"),
        "workload_hash": entry.workload_hash,
        "batch_size": entry.batch_size,
        "uncertainty_pct": entry.uncertainty_pct,
        "figures": _figures(figures_of(entry)),
    }


def _method(method: MethodSummary) -> dict[str, Any]:
    return {
        "name": method.name,
        "recipe": method.recipe,
        "recipe_hash": method.recipe_hash,
        "method": method.method,
        "baseline": method.baseline,
        "runs": list(method.runs),
        "figures": _figures(method.figures),
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "name": comparison.name,
        "baseline": comparison.baseline,
        "figures": _figures(comparison.figures),
    }


def _figures(figures: Figures) -> dict[str, Any]:
    return {name: {k: _rounded(v) for k, v in asdict(q).items()} for name, q in figures.items()}


def _rounded(value: object) -> object:
    """A float without the digits that the order of a sum decides."""
    return float(f"{value:.{_SIGNIFICANT}g}") if isinstance(value, float) else value


def as_csv(summary: Summary) -> str:
    """One row a run and one a method; a column a figure, others for what qualifies it.

    Columns: kind, name, recipe, method, seed, runs; for each figure its value under `name [unit]`,
    and, where any row has them, `name source`, `name coverage`, `name low`, `name high`; then
    `flags` and `missing` (figure: reason).
    """
    rows = [("run", r.run_id, r.identity.recipe, r.identity.method, r.identity.seed, 1, r.figures)
            for r in summary.runs]  # fmt: skip
    rows += [
        ("method", m.name, m.recipe, m.method, None, len(m.runs), m.figures)
        for m in summary.methods
    ]
    columns = _csv_columns([row[-1] for row in rows])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [_csv_head(name, part, [row[-1] for row in rows]) for name, part in columns]
    writer.writerow(
        ["kind", "name", "recipe", "method", "seed", "runs", *heads, "flags", "missing"]
    )
    for *identity, figures in rows:
        flags = sorted({flag for quantity in figures.values() for flag in quantity.flags})
        missing = [f"{n}: {q.reason}" for n, q in figures.items() if q.value is None]
        cells = [getattr(figures[n], p) if n in figures else None for n, p in columns]
        writer.writerow([*identity, *map(_rounded, cells), " ".join(flags), "; ".join(missing)])
    return text.getvalue()


def _csv_columns(rows: Sequence[Figures]) -> list[tuple[str, str]]:
    """Figure and part of it, for every part that any row has."""
    names = list(dict.fromkeys(name for figures in rows for name in figures))
    return [
        (name, part)
        for name in names
        for part in ("value", "source", "coverage", "low", "high")
        if part == "value"
        or any(getattr(figures[name], part) is not None for figures in rows if name in figures)
    ]


def _csv_head(name: str, part: str, rows: Iterable[Figures]) -> str:
    if part != "value":
        return f"{name} {part}"
    unit = next((figures[name].unit for figures in rows if name in figures), "")
    return f"{name} [{unit}]" if unit else name


def as_markdown(summary: Summary) -> str:
    """The tables in GitHub's Markdown."""
    parts = [_markdown_table(table) for table in tables_of(summary)]
    notes = "".join(f"- {_escaped(note)}\n" for note in notes_of(summary))
    return "\n".join([*parts, f"### Notes\n\n{notes}" if notes else ""]).rstrip("\n") + "\n"


def _markdown_table(table: Table) -> str:
    lines = [f"### {table.title}", "", _escaped(table.caption), ""]
    lines.append(_markdown_row(table.columns))
    lines.append("|" + " --- |" + " ---: |" * (len(table.columns) - 1))
    lines += [_markdown_row(row) for section in table.sections for row in section]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(_escaped(cell.replace("\n", " ")) for cell in cells) + " |"


def _escaped(text: str) -> str:
    """Markdown's own signs in names that a user chose."""
    return "".join(f"\\{sign}" if sign in "\\|*_`<>[]" else sign for sign in text)


_LATEX: Final = {
    "\\": r"\textbackslash{}", "_": r"\_", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "\n": " ", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip


def as_latex(summary: Summary) -> str:
    """The tables for a paper, with booktabs; notes as comments."""
    parts = [_latex_table(table) for table in tables_of(summary)]
    notes = "".join(f"% {note}\n" for note in notes_of(summary))
    return "\n".join(["% needs \\usepackage{booktabs}\n", *parts, notes]).rstrip("\n") + "\n"


def _latex_table(table: Table) -> str:
    rule = "\\midrule\n"
    body = rule.join("".join(_latex_row(row) for row in section) for section in table.sections)
    heads = _latex_row(table.columns)
    columns = "l" + "r" * (len(table.columns) - 1)
    return (
        f"\\begin{{table}}\n\\caption{{{_latex(table.title)}. {_latex(table.caption)}}}\n"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{heads}{rule}{body}\\bottomrule\n"
        "\\end{tabular}\n\\end{table}\n"
    )


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(_latex(cell) for cell in cells) + " \\\\\n"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def show(summary: Summary, console: Console) -> None:
    """Print the tables and notes on a terminal."""
    for table in tables_of(summary):
        console.print(_rich_table(table))
    notes = notes_of(summary)
    if notes:
        console.print(Text("Notes", style="bold"))
        for note in notes:
            console.print(Text(f"- {note}", style="dim"))


def as_text(summary: Summary, width: int = PLAIN_WIDTH) -> str:
    """The tables as plain text of at most `width` columns."""
    text = io.StringIO()
    show(summary, Console(file=text, width=width, color_system=None, force_terminal=False))
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def _rich_table(table: Table) -> RenderableType:
    grid = RichTable(
        box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 0, 0, 1), header_style="bold"
    )
    lines = max(heading.count("\n") for heading in table.columns)
    heads = ["\n" * (lines - heading.count("\n")) + heading for heading in table.columns]
    grid.add_column(Text(heads[0]), overflow="fold")
    for heading in heads[1:]:
        grid.add_column(Text(heading), justify="right", no_wrap=True)
    for section in table.sections:
        for row in section:
            grid.add_row(*map(Text, row))
        grid.add_section()
    return Group(Text(table.title, style="bold"), Text(table.caption, style="dim"), grid, Text(""))


def print_tables(summary: Summary) -> None:
    """Print the tables on standard output: as wide as the terminal, or 110 columns elsewhere."""
    console = Console(highlight=False)
    if console.is_terminal:
        show(summary, console)
    else:
        console.file.write(as_text(summary))
