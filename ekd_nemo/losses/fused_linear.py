"""The chunk loop of the fused-linear response loss: logits in, loss and gradients out, at once.

Tokens are taken a chunk at a time. A chunk's logits are made by one product with the head shard,
turned into the gradient of the logits in place, a tile of rows at a time (so that the temporaries
stay in the processor's cache), and used up for the gradients of hidden states and head before the
next chunk begins.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ekd_nemo.losses.collectives import group_size, max_over, sum_over
from ekd_nemo.losses.divergence import Divergence
from ekd_nemo.losses.sparse import SparseTargets, sparse_tile, take_rows
from ekd_nemo.losses.vocab import VocabRows

# Bytes of one [rows, V_local] temporary: the second-level cache on a CPU, launch-bound elsewhere.
TILE_BYTES_CPU = 1 << 20
TILE_BYTES_DEVICE = 64 << 20


@dataclass(frozen=True)
class DenseTeacher:
    """The teacher's final hidden states [T, H_t] and the true rows of its head shard."""

    hidden: Tensor
    head: Tensor
    suffix = ""


Teacher = DenseTeacher | SparseTargets


@dataclass(frozen=True)
class Terms:
    """What is added up, and with which weights.

    Attributes:
        weight_ce: of the cross-entropy in the total.
        weight_response: of the response term (with its T^2) in the total.
        divergence: the response term's divergence.
        temperature: of teacher and student in the response term.
    """

    weight_ce: float
    weight_response: float
    divergence: Divergence
    temperature: float


@dataclass(frozen=True)
class Problem:
    """One call's inputs, all without gradient.

    Attributes:
        hidden: [T, H_s].
        head: [V_true_local, H_s], the true rows of the student's shard.
        labels: [T] global ids; read at `tokens` only.
        tokens: [N] int64: positions of the valid tokens.
        teacher: None for plain cross-entropy.
        terms: weights and divergence.
        rows: the ids behind the head's rows.
        group: ranks that share the vocabulary.
        chunk_tokens: tokens a chunk; the same on every rank of the group.
    """

    hidden: Tensor
    head: Tensor
    labels: Tensor
    tokens: Tensor
    teacher: Teacher | None
    terms: Terms
    rows: VocabRows
    group: ProcessGroup | None
    chunk_tokens: int

    @property
    def acc(self) -> torch.dtype:
        """Type of everything element-wise."""
        return accumulation_type(self.hidden, self.head)

    @property
    def dense(self) -> DenseTeacher | None:
        """The teacher, if it has logits."""
        return self.teacher if isinstance(self.teacher, DenseTeacher) else None

    @property
    def values_are_whole(self) -> bool:
        """Whether a tile's response values are already summed over the group."""
        sparse = self.teacher is not None and self.dense is None
        return sparse or self.terms.divergence.sum_g is None


@dataclass(frozen=True)
class Outcome:
    """Float64 scalars in nats, over the whole vocabulary.

    Attributes:
        ce: cross-entropy.
        response: the response term with its T^2; None without a teacher.
    """

    ce: Tensor
    response: Tensor | None


@dataclass(frozen=True)
class _Chunk:
    """One chunk's logits, labels and normalisers over the whole vocabulary.

    Attributes:
        tokens: [c], their positions.
        z_s: [c, V_local]; in the end the gradient of the logits.
        z_t: [c, V_local] or None.
        ids: [c], the labels' row numbers on this rank, out of range elsewhere.
        max_s, max_t: [c], the maximum m of the logits.
        log_z_ce: [c], log sum exp(z_s - m).
        log_z_s, log_z_t: [c], log sum exp((z - m) / T).
        label: [c], the label's logit less m.
    """

    tokens: Tensor
    z_s: Tensor
    z_t: Tensor | None
    ids: Tensor
    max_s: Tensor
    log_z_ce: Tensor
    log_z_s: Tensor
    max_t: Tensor
    log_z_t: Tensor
    label: Tensor


def accumulation_type(*tensors: Tensor) -> torch.dtype:
    """float64 where an input is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


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
    p, dense = problem, problem.dense
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
        chunk = _chunk(p, tokens, z_s, z_t)
        ce += (chunk.log_z_ce - chunk.label).sum(dtype=torch.float64)
        response += _to_gradient(p, chunk, grad_head is not None or grad_hidden is not None)
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


def _tiles(p: Problem, num_tokens: int) -> list[slice]:
    """Cut a chunk's rows into small tiles; only one where a tile needs a collective."""
    if p.teacher is not None and p.values_are_whole and group_size(p.group) > 1:
        return [slice(0, num_tokens)]
    limit = TILE_BYTES_CPU if p.hidden.device.type == "cpu" else TILE_BYTES_DEVICE
    rows = max(1, limit // (max(1, p.rows.num) * p.acc.itemsize))
    return [slice(i, min(i + rows, num_tokens)) for i in range(0, num_tokens, rows)]


def _max_and_sums(
    z: Tensor, tiles: list[slice], acc: torch.dtype, temperatures: list[float]
) -> tuple[Tensor, list[Tensor]]:
    """This rank's maximum [c] (-inf without rows) and sums of exp((z - max) / T) [c] for each T."""
    top = z.new_full((z.shape[0],), -math.inf, dtype=acc)
    sums = [torch.zeros_like(top) for _ in temperatures]
    if z.shape[1] == 0:
        return top, sums
    for tile in tiles:
        x = z[tile].to(acc)
        torch.amax(x, -1, out=top[tile])
        shifted = x - top[tile, None]
        for temperature, total in zip(temperatures, sums, strict=True):
            scaled = shifted if temperature == temperatures[-1] else shifted.clone()
            torch.sum(scaled.div_(temperature).exp_(), -1, out=total[tile])
    return top, sums


def _chunk(p: Problem, tokens: Tensor, z_s: Tensor, z_t: Tensor | None) -> _Chunk:
    """Make the normalisers over the whole vocabulary: one maximum, one sum over the group."""
    temperature = p.terms.temperature
    ids = p.labels.index_select(0, tokens) - p.rows.start
    tiles = _tiles(p, len(ids))
    scales = [1.0] if p.teacher is None or temperature == 1.0 else [1.0, temperature]
    owner = [0] * len(scales)
    top_s, sums = _max_and_sums(z_s, tiles, p.acc, scales)
    tops = [top_s]
    if z_t is not None:
        top_t, sums_t = _max_and_sums(z_t, tiles, p.acc, [temperature])
        tops, sums = [top_s, top_t], [*sums, *sums_t]
        scales, owner = [*scales, temperature], [*owner, 1]
    maxima = max_over(torch.stack(tops), p.group)
    rescaled = [
        part * torch.exp((tops[i] - maxima[i]) / t)
        for part, i, t in zip(sums, owner, scales, strict=True)
    ]
    reduced = sum_over(torch.stack([*rescaled, _label_logit(p, z_s, ids, maxima[0])]), p.group)
    log_z = reduced[:-1].log()
    return _Chunk(
        tokens=tokens,
        z_s=z_s,
        z_t=z_t,
        ids=ids,
        max_s=maxima[0],
        log_z_ce=log_z[0],
        log_z_s=log_z[owner.count(0) - 1],
        max_t=maxima[-1],
        log_z_t=log_z[-1],
        label=reduced[-1],
    )


def _owned(ids: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Mask of the labels whose row this rank holds, and row numbers safe to read [c]."""
    mine = (ids >= 0) & (ids < num_rows)
    return mine, ids.clamp(0, max(0, num_rows - 1))


def _label_logit(p: Problem, z_s: Tensor, ids: Tensor, max_s: Tensor) -> Tensor:
    """The label's logit less the maximum [c]; 0 where another rank holds the label."""
    if p.rows.num == 0:
        return torch.zeros_like(max_s)
    mine, safe = _owned(ids, p.rows.num)
    logit = z_s.gather(1, safe[:, None]).squeeze(1).to(max_s.dtype) - max_s
    return torch.where(mine, logit, 0.0)


def _to_gradient(p: Problem, chunk: _Chunk, want_gradient: bool) -> Tensor:
    """Add up the response term [scalar] and, if wanted, turn z_s into its gradient."""
    value = chunk.z_s.new_zeros((), dtype=torch.float64)
    for tile in _tiles(p, len(chunk.ids)):
        grad = softmax = None
        shifted = chunk.z_s[tile].to(p.acc) - chunk.max_s[tile, None]
        if p.teacher is not None:
            part, grad, q = _response_tile(p, shifted, chunk, tile)
            value += part.sum(dtype=torch.float64)
            grad.mul_(p.terms.weight_response * p.terms.temperature)
            softmax = q if p.terms.temperature == 1.0 else None
        if want_gradient:
            if softmax is None:
                softmax = shifted.sub_(chunk.log_z_ce[tile, None]).exp_()
            chunk.z_s[tile] = _add_ce_gradient(p, grad, softmax, chunk.ids[tile])
    return value


def _response_tile(
    p: Problem, shifted: Tensor, chunk: _Chunk, tile: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """Values [rows] of a tile, the gradient to log_q's logits and q, both [rows, V_local]."""
    temperature = p.terms.temperature
    log_q = _log_softmax(shifted, temperature, chunk.log_z_s[tile])
    if p.teacher is not None and chunk.z_t is None:
        assert not isinstance(p.teacher, DenseTeacher)
        targets = take_rows(p.teacher, chunk.tokens[tile])
        value, grad = sparse_tile(targets, log_q, p.rows.start, p.terms.divergence, p.group)
        return value, grad, log_q.exp_()
    assert chunk.z_t is not None
    shifted_t = chunk.z_t[tile].to(p.acc) - chunk.max_t[tile, None]
    log_p = _log_softmax(shifted_t, temperature, chunk.log_z_t[tile])
    return _dense_tile(p, log_q, log_p)


def _log_softmax(shifted: Tensor, temperature: float, log_z: Tensor) -> Tensor:
    """Log-probabilities at a temperature; in place where the shifted logits are not needed again."""
    if temperature == 1.0:
        return shifted.sub_(log_z[:, None])
    return (shifted / temperature).sub_(log_z[:, None])


def _dense_tile(p: Problem, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values [rows], the gradient to log_q's logits, and q in the place of log_q."""
    divergence = p.terms.divergence
    value, g = divergence.terms(log_q, log_p)
    q = log_q.exp_()
    if divergence.sum_g is not None:
        return value, g.add_(q, alpha=-divergence.sum_g), q
    both = sum_over(torch.stack([value, g.sum(-1)]), p.group)
    return both[0], g.addcmul_(q, both[1][:, None], value=-1.0), q


def _add_ce_gradient(p: Problem, grad: Tensor | None, softmax: Tensor, ids: Tensor) -> Tensor:
    """Add weight_ce * (softmax - one-hot) to a tile's gradient; `softmax` is used up."""
    weight = p.terms.weight_ce
    grad = softmax.mul_(weight) if grad is None else grad.add_(softmax, alpha=weight)
    if p.rows.num:
        mine, safe = _owned(ids, p.rows.num)
        grad.scatter_add_(1, safe[:, None], mine[:, None].to(grad.dtype).mul_(-weight))
    return grad
