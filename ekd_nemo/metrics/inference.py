"""Figures of the energy-per-token benchmark: each model at its best batch, and at the batch that two models share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ekd_nemo.metrics.efficiency import energy_per_token, overall_efficiency
from ekd_nemo.metrics.quantity import Quantity, total
from ekd_nemo.metrics.repeats import FEW_REPEATS, mean_of_repeats
from ekd_nemo.records.ept import EptEntry, EptFile, EptPart, EptRepeat

NO_BENCHMARK: Final = "no ept.json: `ekd eval ept` measures it"
EPT_FIGURES: Final = (
    "ept_in",
    "ept_out",
    "ept_total",
    "ept_request",
    "ept_prefill",
    "ept_decode",
    "ept_natural",
    "ept_batch",
)
_UNITS: Final = {"ept_request": "J/request", "ept_batch": "requests"}


@dataclass(frozen=True, slots=True)
class Matched:
    """Two models on one workload and engine.

    Attributes:
        student, teacher: EPT_total in J/token, with what a reader has to know as flags.
    """

    student: Quantity
    teacher: Quantity


def inference_figures(
    file: EptFile, role: str, why_none: str = NO_BENCHMARK
) -> dict[str, Quantity]:
    """The figures of one model at its best batch of the longest fixed workload; absent ones with the reason."""
    entries = [entry for entry in file.entries if entry.role == role]
    if file.entries and not entries:
        why_none = f"ept.json has no entry of the {role}"
    fixed = [entry for entry in entries if entry.workload.mode == "fixed"]
    natural = [entry for entry in entries if entry.workload.mode == "natural"]
    figures = _absent(why_none if not entries else "ept.json has no workload of fixed lengths")
    if fixed:
        figures |= figures_of(_best(_longest(fixed)))
    if natural:
        figures["ept_natural"] = figures_of(_best(_longest(natural)))["ept_total"]
    else:
        figures["ept_natural"] = Quantity.missing(
            "J/token", "no workload with natural end-of-sequence" if entries else why_none
        )
    return figures


def _absent(reason: str) -> dict[str, Quantity]:
    return {name: Quantity.missing(_UNITS.get(name, "J/token"), reason) for name in EPT_FIGURES}


def figures_of(entry: EptEntry) -> dict[str, Quantity]:
    """The figures of one entry: over all its repeats, with the 95 % interval of their mean as bounds."""
    whole = _of_repeats(entry, entry.repeats)
    each = [_of_repeats(entry, [repeat]) for repeat in entry.repeats]
    figures = {name: _with_interval(whole[name], [one[name] for one in each]) for name in whole}
    figures["ept_prefill"] = _part(entry, entry.prefill, "prefill")
    figures["ept_decode"] = _part(entry, entry.decode, "decode")
    figures["ept_batch"] = Quantity(entry.batch_size, "requests")
    return figures


def _of_repeats(entry: EptEntry, repeats: Iterable[EptRepeat]) -> dict[str, Quantity]:
    """EPT of some repeats together; the five seconds are asked of all repeats of the entry together."""
    known = [repeat for repeat in repeats if repeat.energy_j is not None]
    energies = [
        Quantity(r.energy_j, "J", entry.source, r.coverage, flags=(*entry.flags, *r.flags))
        for r in known
    ]
    found = energy_per_token(
        total(energies, "J", entry.reason or "no repeat has an energy"),
        entry.duration_s,
        sum(repeat.input_tokens for repeat in known),
        sum(repeat.output_tokens for repeat in known),
        sum(repeat.requests for repeat in known),
    )
    return {
        "ept_in": found.per_input_token,
        "ept_out": found.per_output_token,
        "ept_total": found.per_token,
        "ept_request": found.per_request,
    }


def _with_interval(whole: Quantity, each: Sequence[Quantity]) -> Quantity:
    """The pooled figure with the half width of its repeats' interval around it."""
    few = ("few_repeats",) if len(each) < FEW_REPEATS else ()
    mean = mean_of_repeats(each, whole.unit)
    if whole.value is None or mean.low is None or mean.high is None:
        return whole.flagged(*few)
    half = (mean.high - mean.low) / 2
    return Quantity(
        whole.value,
        whole.unit,
        whole.source,
        whole.coverage,
        whole.value - half,
        whole.value + half,
        (*whole.flags, *few),
    )


def _part(entry: EptEntry, part: EptPart | None, name: str) -> Quantity:
    """Prefill or decode per its tokens, where they were measured apart."""
    if part is None:
        return Quantity.missing("J/token", f"{name} was not measured apart")
    energy = Quantity(part.energy_j, "J", entry.source, flags=entry.flags)
    return energy_per_token(energy, part.duration_s, part.tokens, 0, 1).per_input_token


def _longest(entries: Sequence[EptEntry]) -> list[EptEntry]:
    """The entries of the workload with the most tokens a request; ties by its hash."""
    best = max(entries, key=lambda entry: (_tokens_a_request(entry), entry.workload_hash))
    return [entry for entry in entries if entry.workload_hash == best.workload_hash]


def _tokens_a_request(entry: EptEntry) -> float:
    requests = sum(repeat.requests for repeat in entry.repeats)
    return (entry.input_tokens + entry.output_tokens) / requests if requests else 0.0


def _best(entries: Sequence[EptEntry]) -> EptEntry:
    """The entry with the least energy per token; one without a figure only if none has one."""
    return min(
        entries,
        key=lambda entry: (
            entry.per_token_j is None,
            entry.per_token_j or 0.0,
            entry.batch_size,
            entry.key,
        ),
    )


def matched(file: EptFile, *, equal_batch: bool = False) -> Matched:
    """EPT_total of student and teacher on the longest workload that both were given, by one engine.

    Fixed lengths go before answers that end by themselves, which are flagged `natural_lengths`.

    Args:
        file: the entries of a run, its teacher's among them.
        equal_batch: both at the largest batch that both have, instead of each at its own best.
    """
    roles = {
        role: [entry for entry in file.entries if entry.role == role]
        for role in ("student", "teacher")
    }
    for role, entries in roles.items():
        if not entries:
            reason = f"ept.json has no entry of the {role}" if file.entries else NO_BENCHMARK
            return _unmatched(reason)
    pairs = _common(roles["student"], roles["teacher"])
    if not pairs:
        return _unmatched("student and teacher share no workload on one engine in ept.json")
    students, teachers = pairs
    if equal_batch:
        sizes = {e.batch_size for e in students} & {e.batch_size for e in teachers}
        if not sizes:
            return _unmatched("student and teacher share no batch size in ept.json")
        students, teachers = (
            [e for e in entries if e.batch_size == max(sizes)] for entries in pairs
        )
    student, teacher = _best(students), _best(teachers)
    flags = _differences(student, teacher)
    return Matched(*(figures_of(e)["ept_total"].flagged(*flags) for e in (student, teacher)))


def _unmatched(reason: str) -> Matched:
    missing = Quantity.missing("J/token", reason)
    return Matched(missing, missing)


def _common(
    students: Sequence[EptEntry], teachers: Sequence[EptEntry]
) -> tuple[list[EptEntry], list[EptEntry]] | None:
    """The entries of both on the longest workload that one engine has run for both."""
    shared = {_asked(entry) for entry in students} & {_asked(entry) for entry in teachers}
    if not shared:
        return None
    both = [entry for entry in (*students, *teachers) if _asked(entry) in shared]
    asked = _asked(
        max(
            both,
            key=lambda e: (e.workload.mode == "fixed", _tokens_a_request(e), _asked(e)),
        )
    )
    return (
        [entry for entry in students if _asked(entry) == asked],
        [entry for entry in teachers if _asked(entry) == asked],
    )


def _asked(entry: EptEntry) -> tuple[str, str, str]:
    return entry.workload_hash, entry.engine.name, entry.engine.version


def _differences(student: EptEntry, teacher: EptEntry) -> list[str]:
    """What does not forbid the comparison and has to be known."""
    flags: list[str] = []
    if {d.uuid for d in student.devices} != {d.uuid for d in teacher.devices}:
        flags.append("other_boards")
    if student.engine.dtype != teacher.engine.dtype:
        flags.append("other_dtype")
    if student.workload.mode == "natural":
        flags.append("natural_lengths")
    return flags


def efficiency_figures(file: EptFile, om_perf: Quantity) -> dict[str, Quantity]:
    """Eff_overall of one student, each model at its best batch, and at the largest common one."""
    best, equal = matched(file), matched(file, equal_batch=True)
    return {
        "eff_overall": overall_efficiency([om_perf], [best.student], best.teacher),
        "eff_overall_equal_batch": overall_efficiency([om_perf], [equal.student], equal.teacher),
    }


def has_benchmark(figures: Mapping[str, Quantity]) -> bool:
    """Whether the figures of a model hold any energy per token, or why it was refused."""
    quantity = figures.get("ept_total")
    return quantity is not None and quantity.reason != NO_BENCHMARK
