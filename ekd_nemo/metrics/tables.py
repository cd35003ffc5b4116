"""The tables of a summary: rows of text, the same for the terminal, Markdown and LaTeX."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ekd_nemo.metrics import format as fmt
from ekd_nemo.metrics.glossary import FLAGS
from ekd_nemo.metrics.summary import PHASE, SCORE, Comparison, Figures, Summary
from ekd_nemo.records.phases import PHASES

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


_TRAINING: Final = (
    Column("steps", "steps", fmt.count),
    Column("tokens", "tokens", fmt.count),
    Column("final_loss", "final\nloss", fmt.decimals(4)),
    Column("val_ce", "held-out\nCE", fmt.decimals(4)),
    Column("val_kl", "KL to\nteacher", fmt.decimals(4)),
    Column("duration", "time", fmt.duration),
)
_ENERGY: Final = (
    Column("e_run", "E_run\n(own)", fmt.energy),
    Column("e_charged", "E_run\n(charged)", fmt.energy),
    Column("e_amortised", "E_run\n(amortised)", fmt.energy),
    Column("mean_power", "mean\npower", fmt.power),
    Column("energy_per_token", "per\ntoken", fmt.energy),
)
_BESIDE: Final = (
    Column("e_eval", "eval", fmt.energy),
    Column("e_ept", "ept", fmt.energy),
    Column("e_host", "host", fmt.energy),
    Column("e_unattributed", "unattributed", fmt.energy),
)
_COMPARISON: Final = (
    Column("val_kl_difference", "KL to\nteacher", fmt.signed(4)),
    Column("val_ce_difference", "held-out\nCE", fmt.signed(4)),
    Column("om_perf_difference", "OM_perf", fmt.signed(4)),
    Column("tokens_ratio", "tokens", fmt.decimals(3)),
    Column("e_run_ratio", "E_run", fmt.decimals(3)),
    Column("e_charged_ratio", "E_charged", fmt.decimals(3)),
)


_LABELS: Final = {
    **{column.name: column.heading.replace("\n", " ") for column in (*_TRAINING, *_ENERGY)},
    "om_perf": "OM_perf",
    "retention": "above chance",
}
_EXPLAINED: Final = frozenset(_LABELS)
_OF_METHODS: Final = frozenset(("few_repeats", "missing_repeats"))
_HEADING_WIDTH: Final = 14
_LISTED: Final = 6
_INTERVALS: Final = (
    "±: 95 % interval, of the mean over repeats in rows of methods, from the harness's standard errors "
    "in rows of runs; a..b: bounds of an energy with gaps"
)


def tables_of(summary: Summary) -> list[Table]:
    """Every table that has something to show, in a fixed order."""
    tables = [training_table(summary), energy_table(summary)]
    if any(name.startswith(PHASE) for run in summary.runs for name in run.figures):
        tables.append(phase_table(summary))
    tables.append(quality_table(summary))
    if summary.comparisons:
        tables.append(comparison_table(summary.comparisons))
    return tables


def training_table(summary: Summary) -> Table:
    """Steps, tokens and losses."""
    return Table(
        "Training",
        "tokens: non-padding tokens of the steps that are in the weights. Losses in nats per token; "
        "final loss is the recipe's objective at the last step. Held-out: last validation. "
        "time: what E_run spans.",
        ("run", *(column.heading for column in _TRAINING)),
        _sections(summary, lambda figures: _cells(figures, _TRAINING)),
    )


def energy_table(summary: Summary) -> Table:
    """E_run in its three views, power and energy per token."""
    return Table(
        "Energy",
        "E_run: accelerators, all attempts, from prerun through checkpoint; evaluation and host apart. "
        "Charged: with the making of what was read; amortised: with its share over the uses. "
        "per token: E_run / tokens.",
        ("run", *(column.heading for column in _ENERGY), "covered", "source"),
        _sections(summary, _energy_cells),
    )


def _energy_cells(figures: Figures) -> Row:
    e_run = figures["e_run"]
    covered = fmt.MISSING if e_run.coverage is None else fmt.percent(e_run.coverage)
    return (*_cells(figures, _ENERGY), covered, e_run.source or fmt.MISSING)


def phase_table(summary: Summary) -> Table:
    """E_run by phase, and the energies that are lines of their own."""
    columns = _phase_columns([run.figures for run in summary.runs])
    return Table(
        "Energy by phase",
        "The phases and idle add up to E_run; eval, ept, host (CPU, RAM) and unattributed "
        "(sampled, used by no rank) stand beside it.",
        ("run", *(column.heading for column in columns)),
        _sections(summary, lambda figures: _cells(figures, columns, absent="-")),
    )


def _phase_columns(runs: Iterable[Figures]) -> list[Column]:
    """A column for each phase that occurs and for each other energy that any run has."""
    figures = list(runs)
    names = [name for run in figures for name in run if name.startswith(PHASE)]
    columns = [
        Column(PHASE + phase, phase.replace("_", "\n"), fmt.energy)
        for phase in PHASES
        if PHASE + phase in names
    ]
    beside = [c for c in _BESIDE if any(run[c.name].value is not None for run in figures)]
    return columns + beside


def quality_table(summary: Summary) -> Table:
    """Task scores of teacher, base and students, and OM_perf."""
    others = _others(summary)
    everything = [*others.values(), *(run.figures for run in summary.runs)]
    names = sorted({name for figures in everything for name in figures if name.startswith(SCORE)})
    columns = [Column(name, _heading(name), fmt.decimals(4)) for name in names]
    columns += [
        Column("om_perf", "OM_perf", fmt.decimals(4)),
        Column("retention", "above\nchance", fmt.decimals(4)),
    ]
    rows = tuple((name, *_cells(figures, columns, "-")) for name, figures in others.items())
    sections = _sections(summary, lambda figures: _cells(figures, columns))
    return Table(
        "Quality",
        "OM_perf: mean over tasks of student / teacher, higher-is-better metrics only, a suite once. "
        "above chance: mean of (s - c) / (t - c). bits_per_byte: lower is better, never in OM_perf.",
        ("model", *(column.heading for column in columns)),
        ((rows, *sections) if rows else sections),
    )


def _others(summary: Summary) -> dict[str, Figures]:
    """Scores of teacher and base by row name: one row where all runs agree, else one a run."""
    rows: dict[str, Figures] = {}
    for role in ("teacher", "base"):
        found = {run.run_id: scores for run in summary.runs if (scores := getattr(run, role))}
        distinct = {
            tuple(sorted((n, q.value) for n, q in scores.items())) for scores in found.values()
        }
        if len(distinct) == 1:
            rows[role] = next(iter(found.values()))
        else:
            rows.update({f"{role} of {run_id}": scores for run_id, scores in found.items()})
    return rows


def _heading(name: str) -> str:
    """The task and metric of a score in lines of at most 14 characters, broken at underscores."""
    lines: list[str] = []
    for word in name.removeprefix(SCORE).split(" "):
        lines.append("")
        for part in re.findall(r"[^_]+_*|_+", word):
            if lines[-1] and len(lines[-1]) + len(part) > _HEADING_WIDTH:
                lines.append("")
            lines[-1] += part
    return "\n".join(lines)


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Methods against their baselines."""
    rows = tuple((f"{c.name} - {c.baseline}", *_cells(c.figures, _COMPARISON)) for c in comparisons)
    return Table(
        "Against the baseline",
        "KL, CE and OM_perf: method minus baseline (KL and CE: negative is better). "
        "tokens, E_run and E_charged: method over baseline.",
        ("method", *(column.heading for column in _COMPARISON)),
        (rows,),
    )


def _cells(figures: Figures, columns: Iterable[Column], absent: str = fmt.MISSING) -> Row:
    """One cell a column: `n/a` for what is missing, `absent` for what the row cannot have."""
    return tuple(
        fmt.cell_with_bounds(figures[c.name], c.show) if c.name in figures else absent
        for c in columns
    )


def _sections(summary: Summary, cells: Callable[[Figures], Row]) -> tuple[tuple[Row, ...], ...]:
    """A row a run, then a row a method."""
    runs = tuple((run.run_id, *cells(run.figures)) for run in summary.runs)
    methods = tuple(
        (f"{method.name}, {_mean_of(len(method.runs))}", *cells(method.figures))
        for method in summary.methods
    )
    return runs, methods


def _mean_of(count: int) -> str:
    return f"mean of {count}" if count > 1 else "1 run"


def notes_of(summary: Summary) -> list[str]:
    """Why figures are missing, and what flags mean, each with the rows that it concerns."""
    missing: dict[tuple[str, str], list[str]] = {}
    flags: dict[str, list[str]] = {}
    for run in summary.runs:
        for name, quantity in run.figures.items():
            if quantity.value is None and name in _EXPLAINED:
                missing.setdefault((quantity.reason or "", _LABELS[name]), []).append(run.run_id)
        # idle time between two marks is always short: that it is apportioned says nothing
        told = [quantity for name, quantity in run.figures.items() if name != f"{PHASE}idle"]
        for flag in sorted({*run.flags, *(f for q in told for f in q.flags)}):
            flags.setdefault(flag, []).append(run.run_id)
    for method in summary.methods:
        for flag in sorted({f for q in method.figures.values() for f in q.flags} & _OF_METHODS):
            flags.setdefault(flag, []).append(method.name)
    for comparison in summary.comparisons:
        if any("unequal_tokens" in q.flags for q in comparison.figures.values()):
            flags.setdefault("unequal_tokens", []).append(comparison.name)
    reasons: dict[tuple[str, str], list[str]] = {}
    for (reason, label), where in missing.items():
        reasons.setdefault((reason, _listed(where)), []).append(label)
    notes = [
        f"n/a: {', '.join(labels)}: {reason} ({where})"
        for (reason, where), labels in reasons.items()
    ]
    notes.insert(0, _INTERVALS)
    return notes + [
        f"{flag}: {FLAGS.get(flag, 'no explanation')} ({_listed(flags[flag])})"
        for flag in sorted(flags)
    ]


def _listed(names: Sequence[str]) -> str:
    """The names with commas; many of them shortened."""
    distinct = list(dict.fromkeys(names))
    more = len(distinct) - _LISTED
    return ", ".join(distinct[:_LISTED]) + (f" and {more} more" if more > 0 else "")
