"""Three views of one run's energy: its own, with the making of what it read, and with its share.

`E_own` is the run alone. `E_charged` adds the whole making of every cache, checkpoint or data set
that it read, as if used once; `E_amortised` adds the making divided by the counted uses. A run that made a cache for
itself and went on to train has the making in its own energy: its amortised energy leaves the others' shares out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ekd_nemo.metrics.quantity import Quantity, total
from ekd_nemo.records.identity import Input

Made = Mapping[tuple[str, str], Quantity]


@dataclass(frozen=True, slots=True)
class Charges:
    """The energies of one run with what it read, in J."""

    charged: Quantity
    amortised: Quantity


def charges_of(
    own: Mapping[str, Quantity], inputs: Mapping[str, Sequence[Input]], made: Made | None = None
) -> dict[str, Charges]:
    """Charge each run with the makers of its inputs.

    Uses are counted over the runs given; a maker's own inputs are charged to it in the same way.

    Args:
        own: E_own by run id.
        inputs: what each run read, by run id; data sets without a maker are free.
        made: energy of the making alone, by run id and kind of input, of runs that also did something else; the
            making of any other run is its whole E_own.
    """
    books = _Books(own, inputs, made or {})
    return {run: Charges(books.of(run, None, ()), books.of(run, books.uses, ())) for run in own}


class _Books:
    """Who read what of whom."""

    def __init__(
        self, own: Mapping[str, Quantity], inputs: Mapping[str, Sequence[Input]], made: Made
    ) -> None:
        self._own, self._inputs, self._made = own, inputs, made
        self.uses = Counter(pair for run in inputs for pair in self._pairs(run))

    def _pairs(self, run: str) -> list[tuple[str, str]]:
        """Maker and kind of the run's inputs, each once; a maker that only made counts once for all kinds."""
        pairs = {
            (part.run_id, part.kind if (part.run_id, part.kind) in self._made else "")
            for part in self._inputs.get(run, ())
            if part.run_id is not None
        }
        return sorted(pairs)

    def of(
        self, run: str, uses: Counter[tuple[str, str]] | None, above: tuple[str, ...]
    ) -> Quantity:
        """Own energy plus that of the makers, divided by their uses where these are given."""
        if run not in self._own:
            return Quantity.missing(
                "J", f"run {run}, which made what was read, is not among the runs"
            )
        return self._with_makers(run, self._own[run], uses, above)

    def _with_makers(
        self,
        run: str,
        own: Quantity,
        uses: Counter[tuple[str, str]] | None,
        above: tuple[str, ...],
    ) -> Quantity:
        if run in above:
            return Quantity.missing("J", f"run {run} is among the makers of what it read")
        for part in self._inputs.get(run, ()):
            if part.run_id is None and part.kind != "data":
                reason = f"the run that made the {part.kind} {part.path} is not known"
                return Quantity.missing("J", reason)
        parts = [own]
        for maker, kind in self._pairs(run):
            share = 1 if uses is None else uses[maker, kind]
            if maker != run:
                whole = self._making(maker, kind, uses, (*above, run))
                parts.append(whole if share == 1 else whole.divided_by(Quantity(share), "J"))
            elif share > 1 and (maker, kind) in self._made:
                making = self._made[maker, kind]
                parts.append(_negative(making, (share - 1) / share))
        return total(parts, "J", "")

    def _making(
        self, maker: str, kind: str, uses: Counter[tuple[str, str]] | None, above: tuple[str, ...]
    ) -> Quantity:
        """What the making of one input cost, with what was read for it."""
        if not kind:
            return self.of(maker, uses, above)
        if maker in above:
            return Quantity.missing("J", f"run {maker} is among the makers of what it read")
        return self._made[maker, kind]


def _negative(part: Quantity, share: float) -> Quantity:
    """A share of a figure, to be taken off; without bounds, which do not subtract."""
    if part.value is None:
        return part
    return Quantity(-part.value * share, part.unit, part.source, part.coverage, flags=part.flags)
