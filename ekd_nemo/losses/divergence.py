"""Divergences between teacher p and student q over a vocabulary, element-wise, with their gradient.

Each takes log-probabilities of one tile of tokens over this rank's ids and gives its local value
and g = dD/dlog q. The gradient to the logits behind q is then g - q * sum(g), the sum running over
the whole vocabulary; where that sum is known beforehand no collective is needed for it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

DivergenceKind = Literal["forward_kl", "reverse_kl", "jsd", "total_variation"]


@dataclass(frozen=True)
class Divergence:
    """One divergence.

    Attributes:
        kind: its name.
        terms: (log_q, log_p, both [rows, V_local]) -> (local value [rows], g [rows, V_local]).
        sum_g: the sum of g over the vocabulary where it is a constant, else None.
        beta: the teacher's share of the mixture; read by "jsd" only.
    """

    kind: DivergenceKind
    terms: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    sum_g: float | None = None
    beta: float = 0.5


def divergence(kind: DivergenceKind, beta: float = 0.5) -> Divergence:
    """Look up a divergence by name; `beta` is read by "jsd" only."""
    if kind == "jsd":
        return Divergence("jsd", lambda log_q, log_p: _jsd(log_q, log_p, beta), beta=beta)
    return _DIVERGENCES[kind]


def _forward_kl(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q). Source: Hinton et al. 2015, arXiv:1503.02531, section 2."""
    p = log_p.exp()
    value = torch.sub(log_p, log_q).mul_(p).sum(-1)
    return value, p.neg_()


def _reverse_kl(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q || p). Source: Gu et al. 2023 (MiniLLM), arXiv:2306.08543, section 2.

    The + q in g is left out: constants times q cancel in g - q * sum(g).
    """
    g = torch.sub(log_q, log_p).mul_(log_q.exp())
    return g.sum(-1), g


def _jsd(log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Mix beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q.

    Source: Agarwal et al. 2023 (GKD), arXiv:2306.13649, equation 1.
    """
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    g = torch.sub(log_q, log_m).mul_(log_q.exp()).mul_(1.0 - beta)
    value = torch.sub(log_p, log_m).mul_(log_p.exp()).sum(-1) * beta + g.sum(-1)
    return value, g


def _total_variation(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Half the L1 distance; the subgradient at p = q is 0.

    Source: Wen et al. 2023 (f-DISTILL), arXiv:2307.15190, section 3.
    """
    q = log_q.exp()
    gap = q - log_p.exp()
    value = gap.abs().sum(-1) * 0.5
    return value, gap.sign_().mul_(q).mul_(0.5)


_DIVERGENCES = {
    each.kind: each
    for each in (
        Divergence("forward_kl", _forward_kl, sum_g=-1.0),
        Divergence("reverse_kl", _reverse_kl),
        Divergence("total_variation", _total_variation),
    )
}
