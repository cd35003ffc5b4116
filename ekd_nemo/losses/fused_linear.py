"""The chunk loop of the fused-linear response loss: logits in, loss and gradients out, at once.

Tokens are taken a chunk at a time. A chunk's logits are made by one product with the head shard,
turned into the gradient of the logits in place by the element-wise code of the problem's choice,
and used up for the gradients of hidden states and head before the next chunk begins.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ekd_nemo.losses.chunk import Problem, make_chunk
from ekd_nemo.losses.collectives import sum_over
from ekd_nemo.losses.kernels import element_wise


@dataclass(frozen=True)
class Outcome:
    """Float64 scalars in nats, over the whole vocabulary.

    Attributes:
        ce: cross-entropy.
        response: the response term with its T^2; None without a teacher.
    """

    ce: Tensor
    response: Tensor | None


def solve(problem: Problem, grad_hidden: Tensor | None, grad_head: Tensor | None) -> Outcome:
    """Run over all chunks once.

    Args:
        problem: the inputs.
        grad_hidden: [T, H_s] zeros that receive this rank's part of the weighted sum's gradient
            (not yet summed over the group), or None.
        grad_head: [V_local, H_s] zeros in the accumulation type, or None; padding stays zero.

    Collectives: per chunk one maximum and one sum of a few floats a token, one sum of two floats a
    token more for divergences other than forward KL; at the end one sum of one float.
    """
    p, dense, part = problem, problem.dense, element_wise(problem)
    wanted = grad_head is not None or grad_hidden is not None
    ce = p.hidden.new_zeros((), dtype=torch.float64)
    response = torch.zeros_like(ce)
    student_logits = _buffer(p, p.head)
    teacher_logits = None if dense is None else _buffer(p, dense.head)
    for start in range(0, len(p.tokens), p.chunk_tokens):
        tokens = p.tokens[start : start + p.chunk_tokens]
        hidden, z_s = _logits(p.hidden, p.head, tokens, student_logits)
        z_t = None
        if dense is not None and teacher_logits is not None:
            _, z_t = _logits(dense.hidden, dense.head, tokens, teacher_logits)
        chunk = make_chunk(p, part, tokens, z_s, z_t)
        ce += (chunk.log_z_ce - chunk.label).sum(dtype=torch.float64)
        response += part.to_gradient(p, chunk, wanted)
        if grad_head is not None:
            _add_product(grad_head[: p.rows.num], z_s, hidden)
        if grad_hidden is not None:
            grad_hidden.index_copy_(0, tokens, torch.mm(z_s, p.head).to(grad_hidden.dtype))
    if p.teacher is None:
        return Outcome(ce, None)
    if not p.values_are_whole:
        sum_over(response, p.group)
    return Outcome(ce, response * p.terms.temperature**2)


def _logits(hidden: Tensor, head: Tensor, tokens: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """One chunk's hidden states in the head's type [c, H] and its logits [c, V_local]."""
    chunk = hidden.index_select(0, tokens).to(head.dtype)
    return chunk, torch.mm(chunk, head.t(), out=out[: len(tokens)])


def _buffer(p: Problem, head: Tensor) -> Tensor:
    return head.new_empty((min(p.chunk_tokens, len(p.tokens)), head.shape[0]))


def _add_product(grad_head: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
    """grad_head [V, H] += grad_logits^T [V, c] @ hidden [c, H], kept in the accumulation type."""
    if grad_head.dtype == hidden.dtype:
        grad_head.addmm_(grad_logits.t(), hidden)
    else:
        grad_head += torch.mm(grad_logits.t(), hidden)
