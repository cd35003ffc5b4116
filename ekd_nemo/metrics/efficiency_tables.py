"""The tables of inference, of overall efficiency and break-even, and of a site's factors."""

from typing import Final

from ekd_nemo.metrics import format as fmt
from ekd_nemo.metrics.summary import Figures, Summary
from ekd_nemo.metrics.table_parts import Column, Row, Table, cells, others, sections

INFERENCE: Final = (
    Column("ept_in", "EPT_in", fmt.energy),
    Column("ept_out", "EPT_out", fmt.energy),
    Column("ept_total", "EPT_total", fmt.energy),
    Column("ept_request", "per\nrequest", fmt.energy),
    Column("ept_prefill", "prefill", fmt.energy),
    Column("ept_decode", "decode", fmt.energy),
    Column("ept_natural", "natural\nend", fmt.energy),
    Column("ept_batch", "batch", fmt.count),
)
EFFICIENCY: Final = (
    Column("om_perf", "OM_perf", fmt.decimals(4)),
    Column("eff_overall", "Eff_overall", fmt.decimals(4)),
    Column("eff_overall_equal_batch", "Eff_overall\nequal batch", fmt.decimals(4)),
    Column("e_charged", "E_run\n(charged)", fmt.energy),
    Column("t_star", "T*\n[tokens]", fmt.rounded),
    Column("n_star", "N*\n[uses]", fmt.rounded),
)
_SITE: Final = (
    Column("e_run", "E_run\n(own)", fmt.energy),
    Column("facility_kwh", "site\n[kWh]", fmt.rounded),
    Column("carbon", "carbon\n[gCO2e]", fmt.rounded),
    Column("cost", "cost", fmt.rounded),
)


def inference_table(summary: Summary) -> Table:
    """Energy per token of teacher, base and students, each at its best batch."""
    models = others(summary, "ept_")
    first = tuple((name, *cells(figures, INFERENCE, "-")) for name, figures in models.items())
    students = sections(summary, lambda figures: cells(figures, INFERENCE))
    return Table(
        "Inference",
        "Energy of the whole benchmark over input, generated and all tokens, in J each (so EPT_in is not the cost of "
        "prefill, which is measured apart); fixed lengths, each model at its best batch. natural end: EPT_total where "
        "answers end by themselves.",
        ("model", *(column.heading for column in INFERENCE)),
        ((first, *students) if first else students),
    )


def efficiency_table(summary: Summary) -> Table:
    """Eff_overall and the two break-even counts, with OM_perf beside them."""
    return Table(
        "Efficiency",
        "Eff_overall: OM_perf * EPT_total(teacher) / EPT_total(student); it says nothing of training energy. T*: "
        "served tokens after which E_run (charged) is earned back by serving the student. N*: uses after which the "
        "teacher's cache has paid, at equal tokens. Neither compares with fine-tuning.",
        ("run", *(column.heading for column in EFFICIENCY)),
        sections(summary, lambda figures: cells(figures, EFFICIENCY, "-")),
    )


def site_table(summary: Summary) -> Table:
    """What the site's factors make of E_run; the joules stay as they are."""
    return Table(
        "Site",
        "site: E_run times PUE; carbon and cost: of the site's energy. "
        f"Given, not measured: {_factors(summary)}.",
        ("run", *(column.heading for column in _SITE)),
        sections(summary, _site_cells),
    )


def _site_cells(figures: Figures) -> Row:
    *first, cost = cells(figures, _SITE)
    currency = figures["cost"].unit
    return (*first, cost if cost == fmt.MISSING else cost.replace("\n", f" {currency}\n", 1))


def _factors(summary: Summary) -> str:
    """Each factor with its unit and source, once."""
    names = {"pue": "PUE", "grid_carbon": "grid carbon", "price": "price"}
    told = {
        f"{label} {factor.value:g} {factor.unit} ({factor.source})".replace(" 1 (", " (")
        for run in summary.runs
        for name, label in names.items()
        if (factor := getattr(run.factors, name)) is not None
    }
    return "; ".join(sorted(told))
