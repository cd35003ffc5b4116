"""Three views of one run's energy: its own, with the making of what it read, and with its share.

`E_own` is the run alone. `E_charged` adds the whole making of every cache, checkpoint or data set
that it read, as if used once; `E_amortised` adds the making divided by the counted uses.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ekd_nemo.metrics.quantity import Quantity, total
from ekd_nemo.records.identity import Input


@dataclass(frozen=True, slots=True)
class Charges:
    """The energies of one run with what it read, in J."""

    charged: Quantity
    amortised: Quantity


def charges_of(
    own: Mapping[str, Quantity], inputs: Mapping[str, Sequence[Input]]
) -> dict[str, Charges]:
    """Charge each run with the makers of its inputs.

    Uses are counted over the runs given; a maker's own inputs are charged to it in the same way.

    Args:
        own: E_own by run id.
        inputs: what each run read, by run id; data sets without a maker are free.
    """
    uses = Counter(maker for parts in inputs.values() for maker in _makers(parts))
    return {
        run: Charges(_charged(run, own, inputs, None, ()), _charged(run, own, inputs, uses, ()))
        for run in own
    }


def _makers(parts: Sequence[Input]) -> set[str]:
    return {part.run_id for part in parts if part.run_id is not None}


def _charged(
    run: str,
    own: Mapping[str, Quantity],
    inputs: Mapping[str, Sequence[Input]],
    uses: Counter[str] | None,
    above: tuple[str, ...],
) -> Quantity:
    """Own energy plus that of the makers, divided by their uses where these are given."""
    if run in above:
        return Quantity.missing("J", f"run {run} is among the makers of what it read")
    if run not in own:
        return Quantity.missing("J", f"run {run}, which made what was read, is not among the runs")
    parts = [own[run]]
    for part in inputs.get(run, ()):
        if part.run_id is None and part.kind != "data":
            reason = f"the run that made the {part.kind} {part.path} is not known"
            return Quantity.missing("J", reason)
    for maker in sorted(_makers(inputs.get(run, ()))):
        whole = _charged(maker, own, inputs, uses, (*above, run))
        share = 1 if uses is None else uses[maker]
        parts.append(whole if share == 1 else whole.divided_by(Quantity(share), "J"))
    return total(parts, "J", "")
