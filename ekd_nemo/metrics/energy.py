"""The energy figures of one run, from its ledger."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ekd_nemo.metrics.ledger import Ledger
from ekd_nemo.metrics.ledger_rows import LedgerRow
from ekd_nemo.metrics.quantity import Quantity, weakest
from ekd_nemo.records.phases import PHASES
from ekd_nemo.units import NS_PER_S

MIN_COVERAGE: Final = 0.99
_OPEN_S: Final = 1e-6


@dataclass(frozen=True, slots=True)
class RunEnergy:
    """Energy of one run in J.

    Attributes:
        e_run: accelerators that ranks occupied, all attempts, from prerun through checkpoint, idle in between too;
            evaluation and the inference benchmark left out.
        lost: the part of e_run whose work a crash undid.
        phases: e_run by phase, idle last; only phases that occurred.
        evaluation, ept: accelerators in those phases.
        host: CPU and RAM where they are not the accelerator, over the same time as e_run and while shards were built.
        unattributed: accelerators that were sampled and that no rank occupied.
        mean_power: of all accelerators together over the covered time, in W.
        duration: time that e_run spans, attempts added up, in s.
        discrepancy: integral over counter - 1.
    """

    e_run: Quantity
    lost: Quantity
    phases: Mapping[str, Quantity]
    evaluation: Quantity
    ept: Quantity
    host: Quantity
    unattributed: Quantity
    mean_power: Quantity
    duration: Quantity
    discrepancy: Quantity


def run_energy(ledger: Ledger) -> RunEnergy:
    """The figures of a ledger; where the records lack a part, the figure says why it is missing."""
    occupied = [row for row in ledger.rows if row.role != "host" and row.phase is not None]
    in_run = [row for row in occupied if row.in_run]
    why = _why_none(ledger)
    e_run = energy_of(in_run, why).flagged(*ledger.flags)
    duration = Quantity(ledger.duration_s, "s") if in_run else Quantity.missing("s", why)
    return RunEnergy(
        e_run,
        _lost(in_run, e_run),
        {
            phase: energy_of(rows, why)
            for phase in PHASES
            if (rows := [r for r in in_run if r.phase == phase])
        },
        energy_of([r for r in occupied if r.phase == "eval"], "no marks of phase eval"),
        energy_of([r for r in occupied if r.phase == "ept"], "no marks of phase ept"),
        _host(ledger),
        energy_of(
            [r for r in ledger.rows if r.phase is None],
            "none: ranks occupied every sampled accelerator",
        ),
        _mean_power(in_run, duration, e_run),
        duration,
        _discrepancy(ledger, in_run),
    )


def _lost(in_run: Sequence[LedgerRow], e_run: Quantity) -> Quantity:
    """What a crash undid; a real 0 where the records show that nothing was."""
    lost = [row for row in in_run if row.lost]
    if lost or e_run.value is None:
        return energy_of(lost, e_run.reason or "")
    return Quantity(0.0, "J", e_run.source, e_run.coverage)


def _host(ledger: Ledger) -> Quantity:
    """CPU and RAM; where some of the run's nodes or attempts had no such meter, a part with no upper bound.

    A job without GPUs that built the shards meters its processors; on a node of GPUs often nobody may read theirs.
    """
    rows = [row for row in ledger.rows if row.role == "host" and row.in_run]
    found = energy_of(rows, "no host meter")
    metered = {(row.boot_id, row.attempt) for row in rows}
    open_ns = sum(
        window.run_end_ns - window.run_start_ns
        for boot, windows in ledger.windows.items()
        for window in windows
        if (boot, window.attempt) not in metered
    )
    if found.value is None or found.coverage is None or not open_ns:
        return found
    time_s = math.fsum(row.duration_s for row in rows)
    return replace(
        found,
        coverage=found.coverage * time_s / (time_s + open_ns / NS_PER_S),
        low=found.value if found.low is None else found.low,
        high=None,
    ).flagged("hosts_not_metered")


def energy_of(rows: Sequence[LedgerRow], why_none: str) -> Quantity:
    """The sum of ledger rows, with source, coverage, bounds and flags; without rows, or samples, missing."""
    if not rows:
        return Quantity.missing("J", why_none)
    duration_s = math.fsum(row.duration_s for row in rows)
    covered_s = math.fsum(row.covered_s for row in rows)
    sampled_s = math.fsum(row.sampled_s for row in rows)
    if covered_s <= _OPEN_S:
        return Quantity.missing("J", "no power samples or counters in that time")
    low, high = math.fsum(row.low_j for row in rows), _sum_known(rows, lambda row: row.high_j)
    bounded = duration_s - covered_s > _OPEN_S
    return Quantity(
        math.fsum(row.energy_j for row in rows),
        "J",
        weakest(row.source for row in rows if row.covered_s > 0),
        1.0 if duration_s - sampled_s <= _OPEN_S else sampled_s / duration_s,
        low if bounded else None,
        high if bounded else None,
        tuple(_flags(rows, duration_s, covered_s, sampled_s)),
    )


def _flags(
    rows: Sequence[LedgerRow], duration_s: float, covered_s: float, sampled_s: float
) -> Iterable[str]:
    if sampled_s < MIN_COVERAGE * duration_s:
        yield "low_coverage"
        if covered_s >= MIN_COVERAGE * duration_s:
            yield "gaps_bridged_by_counter"
    if any(row.apportioned for row in rows) and len({row.phase for row in rows}) == 1:
        yield "apportioned"


def _sum_known(
    rows: Sequence[LedgerRow], value: Callable[[LedgerRow], float | None]
) -> float | None:
    values = [value(row) for row in rows]
    return None if None in values else math.fsum(v for v in values if v is not None)


def _why_none(ledger: Ledger) -> str:
    """Why there is no E_run."""
    if not ledger.ranks:
        return "no marks in telemetry/"
    if not ledger.rows:
        return "no power records in telemetry/ for the boots that the marks name"
    if any(row.in_run and row.role == "host" for row in ledger.rows):
        return "no accelerator was held, processors were metered as host"
    return "no marks of a phase from prerun through checkpoint"


def _mean_power(rows: Sequence[LedgerRow], duration: Quantity, e_run: Quantity) -> Quantity:
    """Mean power of all accelerators together: each device's mean over its covered time, weighted by its time."""
    if e_run.value is None:
        return Quantity.missing("W", e_run.reason or "")
    assert duration.value is not None
    parts: dict[tuple[str, str, int], list[LedgerRow]] = {}
    for row in rows:
        parts.setdefault((row.boot_id, row.uuid, row.attempt), []).append(row)
    whole_j = 0.0
    for group in parts.values():
        covered_s = math.fsum(row.covered_s for row in group)
        if covered_s <= _OPEN_S:
            return Quantity.missing(
                "W", f"no samples of {group[0].uuid} in attempt {group[0].attempt}"
            )
        energy_j = math.fsum(row.energy_j for row in group)
        whole_j += energy_j / covered_s * math.fsum(row.duration_s for row in group)
    return Quantity(whole_j / duration.value, "W", e_run.source, e_run.coverage)


def _discrepancy(ledger: Ledger, rows: Sequence[LedgerRow]) -> Quantity:
    used = {(row.boot_id, row.uuid) for row in rows}
    parts = [value for key, value in ledger.reconciliation.items() if key in used]
    counter_j = math.fsum(part.counter_j for part in parts)
    if counter_j <= 0:
        return Quantity.missing("", "power samples and energy counters do not cover a common time")
    return Quantity(math.fsum(part.integral_j for part in parts) / counter_j - 1, "")
