"""Energy per token, overall efficiency and the two break-even counts: DESIGN.md's definitions, one function each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ekd_nemo.metrics.quantity import Quantity, weakest
from ekd_nemo.records.ept import MIN_EPT_S


@dataclass(frozen=True, slots=True)
class EnergyPerToken:
    """Energy of a whole inference benchmark over its tokens and requests, in J each.

    `per_input_token` is not the cost of prefill: the numerator is the energy of the whole benchmark.
    """

    per_input_token: Quantity
    per_output_token: Quantity
    per_token: Quantity
    per_request: Quantity


def energy_per_token(
    energy: Quantity, duration_s: float | None, input_tokens: int, output_tokens: int, requests: int
) -> EnergyPerToken:
    """EPT_in, EPT_out, EPT_total and J per request of one inference benchmark.

    Args:
        energy: energy of the whole benchmark on all devices that the model occupies, in J.
        duration_s: measured work; below 5 s every figure is refused. None: not known (imported results).
        input_tokens: prompt tokens, padding not counted.
        output_tokens: generated tokens, padding after the end of a sequence not counted.
        requests: prompts answered.
    """
    if duration_s is not None and duration_s < MIN_EPT_S:
        reason = f"only {duration_s:.3g} s of measured work, {MIN_EPT_S:g} s needed"
        energy = Quantity.missing("J", reason, energy.flags)

    def over(count: int, unit: str) -> Quantity:
        return energy.divided_by(Quantity(count), unit)

    tokens = "J/token"
    return EnergyPerToken(
        over(input_tokens, tokens),
        over(output_tokens, tokens),
        over(input_tokens + output_tokens, tokens),
        over(requests, "J/request"),
    )


def overall_efficiency(
    om_perf: Sequence[Quantity], ept_students: Sequence[Quantity], ept_teacher: Quantity
) -> Quantity:
    """Eff_overall: mean over a method's students of `OM_perf * EPT_total(teacher) / EPT_total(student)`.

    It says nothing of training energy and never ranks methods alone.

    Args:
        om_perf: one per student.
        ept_students: EPT_total of the same students, same engine and workload as the teacher's, in J/token.
        ept_teacher: EPT_total of the teacher in J/token.
    """
    if len(om_perf) != len(ept_students):
        raise ValueError(f"{len(om_perf)} OM_perf values for {len(ept_students)} students")
    if not om_perf:
        return Quantity.missing("", "no students")
    ratios: list[float] = []
    flags: list[str] = list(ept_teacher.flags)
    for performance, ept in zip(om_perf, ept_students, strict=True):
        flags.extend((*performance.flags, *ept.flags))
        gain = ept_teacher.divided_by(ept, "")
        for part in (performance, gain):
            if part.value is None:
                return Quantity.missing("", part.reason or "", flags)
        assert performance.value is not None and gain.value is not None
        ratios.append(performance.value * gain.value)
    source = weakest([ept_teacher.source, *(ept.source for ept in ept_students)])
    return Quantity(math.fsum(ratios) / len(ratios), "", source, flags=tuple(flags))


def reuses_to_break_even(cache: Quantity, live: Quantity, cached_student: Quantity) -> Quantity:
    """N*: uses after which the teacher's cache has paid for itself, `E_cache / (E_live - E_cached_student)`.

    All three at equal tokens, in J. A saving at or below 0 never pays: `n/a`.
    """
    return _break_even(cache, live, cached_student, "uses", "a cached run saves nothing")


def tokens_to_break_even(
    charged: Quantity, ept_teacher: Quantity, ept_student: Quantity
) -> Quantity:
    """T*: served tokens after which the distillation has paid, `E_charged / (EPT_teacher - EPT_student)`.

    Same workload for both EPT figures (J/token); to be shown with OM_perf beside it. It does not compare with
    fine-tuning. A saving at or below 0 never pays: `n/a`.
    """
    return _break_even(
        charged, ept_teacher, ept_student, "tokens", "the student saves nothing per token"
    )


def _break_even(
    cost: Quantity, before: Quantity, after: Quantity, unit: str, never: str
) -> Quantity:
    flags = (*cost.flags, *before.flags, *after.flags)
    for part in (cost, before, after):
        if part.value is None:
            return Quantity.missing(unit, part.reason or "", flags)
    assert cost.value is not None and before.value is not None and after.value is not None
    saving = before.value - after.value
    if saving <= 0:
        return Quantity.missing(unit, never, flags)
    return Quantity(
        cost.value / saving, unit, weakest([cost.source, before.source, after.source]), flags=flags
    )
