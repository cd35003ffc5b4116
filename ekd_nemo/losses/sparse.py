"""Teachers that are known at a few ids a token only: top-k with a tail bucket, or sampled ids."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ekd_nemo.errors import DataError
from ekd_nemo.losses.collectives import sum_over
from ekd_nemo.losses.divergence import Divergence

# How far the k probabilities may add up beyond 1: float16 log-probabilities are good to 1e-2.
MASS_TOLERANCE = 1e-2


@dataclass(frozen=True)
class TopKTargets:
    """The teacher's k most probable ids of each token; the mass left out is one more bucket.

    The divergence is taken over k + 1 buckets, so it is a lower bound of the one over the whole
    vocabulary. Nothing is renormalised within k. A bucket without mass counts as the smallest
    normal number of the accumulation type.

    Attributes:
        ids: [T, k] int64 global ids, distinct in a row; -1: no entry.
        log_probs: [T, k], log of the teacher's true probabilities at the loss's temperature.
    """

    ids: Tensor
    log_probs: Tensor
    suffix = "_topk"


@dataclass(frozen=True)
class SampledTargets:
    """Ids drawn from the teacher, with the weights that make sums over them unbiased.

    Value and gradient are those of sum_i w_i (log p_i - log q_i), an unbiased estimate of the
    forward KL and of its gradient if E[sum_i w_i f(id_i)] = sum_v p_v f(v), as for ids drawn from
    p with w = 1/n. Weights must not be normalised again.

    Attributes:
        ids: [T, n] int64 global ids, repeats allowed; -1: no entry.
        weights: [T, n], at least 0.
        log_probs: [T, n], log of the teacher's probabilities at the loss's temperature.

    Source: Anshumann et al. 2025, arXiv:2503.16870, section 3.
    """

    ids: Tensor
    weights: Tensor
    log_probs: Tensor
    suffix = "_sampled"


SparseTargets = TopKTargets | SampledTargets


def check_targets(targets: SparseTargets, valid: Tensor, vocab_size: int) -> None:
    """Refuse targets that mean nothing; valid tokens only are looked at.

    Raises:
        DataError: a shape, an id, a repeated id or a mass that cannot be.
    """
    fields = {name: field for name, field in vars(targets).items() if isinstance(field, Tensor)}
    shapes = {name: tuple(field.shape) for name, field in fields.items()}
    if len(set(shapes.values())) > 1 or targets.ids.dim() != 2 or len(targets.ids) != len(valid):
        raise DataError(f"teacher targets {shapes}; accepted: all [{len(valid)}, k]")
    ids = targets.ids[valid]
    if ((ids < -1) | (ids >= vocab_size)).any():
        raise DataError(f"teacher targets hold an id outside 0 to {vocab_size - 1} (-1: no entry)")
    if isinstance(targets, SampledTargets):
        return
    ordered = ids.sort(-1).values
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise DataError("top-k targets hold the same id twice in one token")
    mass = torch.where(ids >= 0, targets.log_probs[valid].float().exp(), 0.0).sum(-1)
    if (mass > 1 + MASS_TOLERANCE).any():
        raise DataError(
            f"top-k targets hold a mass of {mass.max().item():.4f} in one token; accepted: log of "
            "true probabilities, whose sum is at most 1"
        )


def sparse_tile(
    targets: SparseTargets,
    log_q: Tensor,
    start: int,
    divergence: Divergence,
    group: ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    """Value over the whole vocabulary [rows] and gradient to this rank's logits [rows, V_local].

    Args:
        targets: of these rows.
        log_q: [rows, V_local], the student's log-probabilities.
        start: global id of column 0.
        divergence: read for top-k; samples are for the forward KL.
        group: ranks that share the vocabulary.

    Collectives: one sum of k + 1 (or n) floats a row.
    """
    num_columns = log_q.shape[1]
    local = targets.ids - start
    mine = (targets.ids >= 0) & (local >= 0) & (local < num_columns)
    # Column V_local takes what other ranks hold, so that no write needs a mask.
    columns = torch.where(mine, local, num_columns)
    grad = log_q.new_zeros((log_q.shape[0], num_columns + 1))
    torch.exp(log_q, out=grad[:, :num_columns])
    picked = torch.zeros_like(targets.log_probs, dtype=log_q.dtype)
    if num_columns:
        picked = torch.where(mine, log_q.gather(1, local.clamp(0, num_columns - 1)), picked)
    if isinstance(targets, TopKTargets):
        value = _top_k(targets, picked, columns, grad, divergence, group)
    else:
        value = _sampled(targets, picked, columns, grad, group)
    return value, grad[:, :num_columns]


def _top_k(
    targets: TopKTargets,
    picked: Tensor,
    columns: Tensor,
    grad: Tensor,
    divergence: Divergence,
    group: ProcessGroup | None,
) -> Tensor:
    """Turn `grad` from q into the gradient to the logits and return the value [rows].

    An id of the tail shares its bucket's gradient by q / q_tail; listed ids are written, not
    added: q_tail may be tiny, and adding would cancel.
    """
    floor = math.log(torch.finfo(grad.dtype).tiny)
    grad.scatter_(1, columns, 0.0)
    tail_q = grad.sum(-1, keepdim=True)
    reduced = sum_over(torch.cat([picked, tail_q], 1), group)
    present = targets.ids >= 0
    log_p = torch.where(present, targets.log_probs.to(grad.dtype), floor)
    tail_p = (1.0 - log_p.exp().sum(-1, keepdim=True)).clamp_(min=0.0)
    log_q = torch.where(present, reduced[:, :-1], floor)
    log_q = torch.cat([log_q, reduced[:, -1:].log()], 1).clamp_(min=floor)
    log_p = torch.cat([log_p, tail_p.log()], 1).clamp_(min=floor)
    value, g = divergence.terms(log_q, log_p)
    q, sum_g = log_q.exp_(), g.sum(-1, keepdim=True)
    grad.mul_(g[:, -1:] / q[:, -1:] - sum_g)
    grad.scatter_(1, columns, (g - q * sum_g)[:, :-1])
    return value


def _sampled(
    targets: SampledTargets,
    picked: Tensor,
    columns: Tensor,
    grad: Tensor,
    group: ProcessGroup | None,
) -> Tensor:
    """Turn `grad` from q into q * sum(w) - w and return the value [rows]."""
    present = targets.ids >= 0
    weights = torch.where(present, targets.weights.to(grad.dtype), 0.0)
    log_p = torch.where(present, targets.log_probs.to(grad.dtype), 0.0)
    log_q = sum_over(picked, group)
    grad.mul_(weights.sum(-1, keepdim=True))
    grad.scatter_add_(1, columns, -weights)
    return (weights * (log_p - log_q)).sum(-1)


def take_rows(targets: SparseTargets, rows: Tensor | slice) -> SparseTargets:
    """The targets of some tokens."""
    if isinstance(targets, TopKTargets):
        return TopKTargets(targets.ids[rows], targets.log_probs[rows])
    return SampledTargets(targets.ids[rows], targets.weights[rows], targets.log_probs[rows])
