"""The general table: one row a method with the figures that are compared most."""

from typing import Final

from ekd_nemo.metrics import format as fmt
from ekd_nemo.metrics.summary import Figures, Summary
from ekd_nemo.metrics.table_parts import Column, Row, Table, cells

_GENERAL: Final = (
    Column("tokens", "tokens", fmt.count),
    Column("duration", "time", fmt.duration),
    Column("e_run", "E_run\n(own)", fmt.energy),
    Column("e_charged", "E_run\n(charged)", fmt.energy),
    Column("e_amortised", "E_run\n(amortised)", fmt.energy),
    Column("energy_per_token", "per\ntoken", fmt.energy),
    Column("val_kl", "KL to\nteacher", fmt.decimals(4)),
    Column("om_perf", "OM_perf", fmt.decimals(4)),
    Column("ept_total", "EPT_total", fmt.energy),
    Column("eff_overall", "Eff_overall", fmt.decimals(3)),
)


def general_table(summary: Summary) -> Table:
    """Mean of each method's runs, from training through inference."""
    rows = tuple(
        (method.name, str(len(method.runs)), *_row(method.figures)) for method in summary.methods
    )
    return Table(
        "All methods",
        "Means over the runs of a method. E_run: accelerators, training only; charged: with the making of what was "
        "read; amortised: with its share over the uses; per token: E_run (own) / tokens. EPT_total: inference "
        "benchmark, J per input and output token. No single column ranks methods.",
        ("method", "runs", *(column.heading for column in _GENERAL), "covered", "source"),
        (rows,),
    )


def _row(figures: Figures) -> Row:
    e_run = figures["e_run"]
    covered = fmt.MISSING if e_run.coverage is None else fmt.percent(e_run.coverage)
    return (*cells(figures, _GENERAL), covered, e_run.source or fmt.MISSING)
