"""What every loss gives back: sums and a count, never a mean."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LossParts:
    """Sums over the valid tokens (or pairs, or triplets) that one rank has seen.

    The caller divides, once, after reducing sums and counts over data and context ranks. They are
    already the same on every tensor-parallel rank.

    Attributes:
        total: scalar with a gradient, the weighted sum of the terms times the caller's scale.
        sums: term name -> detached float64 scalar: the term itself, neither weighted nor scaled.
        count: int64 scalar: how many tokens (pairs, triplets) the sums run over.
    """

    total: Tensor
    sums: dict[str, Tensor]
    count: Tensor
