"""The tables of a summary: rows of text, the same for the terminal, Markdown and LaTeX."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ekd_nemo.metrics import format as fmt
from ekd_nemo.metrics.efficiency_tables import (
    EFFICIENCY,
    INFERENCE,
    efficiency_table,
    inference_table,
    site_table,
)
from ekd_nemo.metrics.glossary import FLAGS
from ekd_nemo.metrics.inference import has_benchmark
from ekd_nemo.metrics.summary import PHASE, SCORE, Comparison, Figures, Summary
from ekd_nemo.metrics.table_parts import Column, Row, Table, cells, others, sections
from ekd_nemo.records.phases import PHASES

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
    Column("e_lost", "of E_run\nlost", fmt.energy),
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
    Column("e_amortised_ratio", "E_amortised", fmt.decimals(3)),
    Column("ept_total_ratio", "EPT_total", fmt.decimals(3)),
)


_LABELS: Final = {
    **{column.name: column.heading.replace("\n", " ") for column in (*_TRAINING, *_ENERGY)},
    "om_perf": "OM_perf",
    "retention": "above chance",
}
_EFFICIENCY_LABELS: Final = {  # explained where their tables are shown
    c.name: c.heading.replace("\n", " ") for c in (*INFERENCE, *EFFICIENCY) if c.name not in _LABELS
}
_OF_METHODS: Final = frozenset(("few_repeats", "missing_repeats"))
_HEADING_WIDTH: Final = 14
_LISTED: Final = 6
INTERVALS: Final = (
    "±: 95 % interval, of the mean over repeats in rows of methods, from the harness's standard errors "
    "or the benchmark's repeats in rows of runs; a..b: bounds of an energy with gaps"
)


def tables_of(summary: Summary) -> list[Table]:
    """Every table that has something to show, in a fixed order."""
    tables = [training_table(summary), energy_table(summary)]
    if any(name.startswith(PHASE) for run in summary.runs for name in run.figures):
        tables.append(phase_table(summary))
    tables.append(quality_table(summary))
    if any(has_benchmark(run.figures) for run in summary.runs):
        tables.append(inference_table(summary))
    if _shows_efficiency(summary):
        tables.append(efficiency_table(summary))
    if any(f is not None for run in summary.runs for f in vars(run.factors).values()):
        tables.append(site_table(summary))
    if summary.comparisons:
        tables.append(comparison_table(summary.comparisons))
    return tables


def _shows_efficiency(summary: Summary) -> bool:
    """Whether there is a benchmark of inference or a break-even count."""
    return any(has_benchmark(run.figures) for run in summary.runs) or any(
        method.figures["n_star"].value is not None for method in summary.methods
    )


def training_table(summary: Summary) -> Table:
    """Steps, tokens and losses."""
    return Table(
        "Training",
        "tokens: non-padding tokens of the steps that are in the weights. Losses in nats per token; "
        "final loss is the recipe's objective at the last step. Held-out: last validation. "
        "time: what E_run spans.",
        ("run", *(column.heading for column in _TRAINING)),
        sections(summary, lambda figures: cells(figures, _TRAINING)),
    )


def energy_table(summary: Summary) -> Table:
    """E_run in its three views, power and energy per token."""
    return Table(
        "Energy",
        "E_run: accelerators, all attempts, from prerun through checkpoint; evaluation and host apart. "
        "Charged: with the making of what was read; amortised: with its share over the uses. "
        "per token: E_run / tokens.",
        ("run", *(column.heading for column in _ENERGY), "covered", "source"),
        sections(summary, _energy_cells),
    )


def _energy_cells(figures: Figures) -> Row:
    e_run = figures["e_run"]
    covered = fmt.MISSING if e_run.coverage is None else fmt.percent(e_run.coverage)
    return (*cells(figures, _ENERGY), covered, e_run.source or fmt.MISSING)


def phase_table(summary: Summary) -> Table:
    """E_run by phase, and the energies that are lines of their own."""
    columns = _phase_columns([run.figures for run in summary.runs])
    return Table(
        "Energy by phase",
        "The phases and idle add up to E_run; lost is the part of it whose work a crash undid. "
        "eval, ept, host (CPU, RAM) and unattributed (sampled, used by no rank) stand beside it.",
        ("run", *(column.heading for column in columns)),
        sections(summary, lambda figures: cells(figures, columns, absent="-")),
    )


def _phase_columns(runs: Iterable[Figures]) -> list[Column]:
    """A column for each phase that occurs and for each other energy, unless no run has any of it."""
    figures = list(runs)
    names = [name for run in figures for name in run if name.startswith(PHASE)]
    columns = [
        Column(PHASE + phase, phase.replace("_", "\n"), fmt.energy)
        for phase in PHASES
        if PHASE + phase in names
    ]
    beside = [c for c in _BESIDE if any(run[c.name].value for run in figures)]
    return columns + beside


def quality_table(summary: Summary) -> Table:
    """Task scores of teacher, base and students, and OM_perf."""
    models = others(summary, SCORE)
    everything = [*models.values(), *(run.figures for run in summary.runs)]
    names = sorted({name for figures in everything for name in figures if name.startswith(SCORE)})
    columns = [Column(name, _heading(name), fmt.decimals(4)) for name in names]
    columns += [
        Column("om_perf", "OM_perf", fmt.decimals(4)),
        Column("retention", "above\nchance", fmt.decimals(4)),
    ]
    rows = tuple((name, *cells(figures, columns, "-")) for name, figures in models.items())
    students = sections(summary, lambda figures: cells(figures, columns))
    return Table(
        "Quality",
        "OM_perf: mean over tasks of student / teacher, higher-is-better metrics only, a suite once. "
        "above chance: mean of (s - c) / (t - c). bits_per_byte: lower is better, never in OM_perf.",
        ("model", *(column.heading for column in columns)),
        ((rows, *students) if rows else students),
    )


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
    rows = tuple((f"{c.name} - {c.baseline}", *cells(c.figures, _COMPARISON)) for c in comparisons)
    return Table(
        "Against the baseline",
        "KL, CE and OM_perf: method minus baseline (KL and CE: negative is better). "
        "tokens, E_run in its three views and EPT_total: method over baseline.",
        ("method", *(column.heading for column in _COMPARISON)),
        (rows,),
    )


@dataclass(frozen=True, slots=True)
class Absence:
    """Figures that are `n/a` for one reason.

    Attributes:
        figures: as the tables call them.
        runs: the runs, or methods, that lack them.
    """

    figures: tuple[str, ...]
    reason: str
    runs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FlagNote:
    """A flag, what it means, and the runs, methods or comparisons that carry it."""

    flag: str
    meaning: str
    where: tuple[str, ...]


def absences_of(summary: Summary) -> list[Absence]:
    """Why figures of the tables are missing, in the order of the runs."""
    missing: dict[tuple[str, str], list[str]] = {}
    labels = _LABELS | (_EFFICIENCY_LABELS if _shows_efficiency(summary) else {})
    rows = [(run.run_id, run.figures) for run in summary.runs]
    rows += [(method.name, {"n_star": method.figures["n_star"]}) for method in summary.methods]
    for row, figures in rows:
        for name, quantity in figures.items():
            if quantity.value is None and name in labels:
                missing.setdefault((quantity.reason or "", labels[name]), []).append(row)
    reasons: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (reason, label), where in missing.items():
        reasons.setdefault((reason, tuple(where)), []).append(label)
    return [Absence(tuple(names), reason, runs) for (reason, runs), names in reasons.items()]


def flags_of(summary: Summary) -> list[FlagNote]:
    """What the flags mean, sorted, each with the rows that it concerns."""
    flags: dict[str, list[str]] = {}
    for run in summary.runs:
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
    return [
        FlagNote(flag, FLAGS.get(flag, "no explanation"), tuple(flags[flag]))
        for flag in sorted(flags)
    ]


def notes_of(summary: Summary) -> list[str]:
    """What intervals are, why figures are missing, and what flags mean, each with the rows that it concerns."""
    return [
        INTERVALS,
        *(
            f"n/a: {', '.join(absence.figures)}: {absence.reason} ({listed(absence.runs)})"
            for absence in absences_of(summary)
        ),
        *(f"{note.flag}: {note.meaning} ({listed(note.where)})" for note in flags_of(summary)),
    ]


def listed(names: Sequence[str]) -> str:
    """The names with commas; many of them shortened."""
    distinct = list(dict.fromkeys(names))
    more = len(distinct) - _LISTED
    return ", ".join(distinct[:_LISTED]) + (f" and {more} more" if more > 0 else "")
