"""The element-wise part of the response loss in torch's own operations, a tile of rows at a time.

Tiles keep the temporaries in the processor's cache. Any device, any type, any teacher.
"""

import math

import torch
from torch import Tensor

from ekd_nemo.losses.chunk import Chunk, DenseTeacher, ElementWise, Problem, owned
from ekd_nemo.losses.collectives import group_size, sum_over
from ekd_nemo.losses.sparse import sparse_tile, take_rows

# Bytes of one [rows, V_local] temporary: the second-level cache on a CPU, launch-bound elsewhere.
TILE_BYTES_CPU = 1 << 20
TILE_BYTES_DEVICE = 64 << 20


def _tiles(p: Problem, num_tokens: int) -> list[slice]:
    """Cut a chunk's rows into small tiles; only one where a tile needs a collective."""
    if p.teacher is not None and p.values_are_whole and group_size(p.group) > 1:
        return [slice(0, num_tokens)]
    limit = TILE_BYTES_CPU if p.hidden.device.type == "cpu" else TILE_BYTES_DEVICE
    rows = max(1, limit // (max(1, p.rows.num) * p.acc.itemsize))
    return [slice(i, min(i + rows, num_tokens)) for i in range(0, num_tokens, rows)]


def max_and_sums(p: Problem, z: Tensor, temperatures: list[float]) -> tuple[Tensor, list[Tensor]]:
    """This rank's maximum [c] (-inf without rows) and sums of exp((z - max) / T) [c] for each T."""
    top = z.new_full((z.shape[0],), -math.inf, dtype=p.acc)
    sums = [torch.zeros_like(top) for _ in temperatures]
    if z.shape[1] == 0:
        return top, sums
    for tile in _tiles(p, len(z)):
        x = z[tile].to(p.acc)
        torch.amax(x, -1, out=top[tile])
        shifted = x - top[tile, None]
        for temperature, total in zip(temperatures, sums, strict=True):
            scaled = shifted if temperature == temperatures[-1] else shifted.clone()
            torch.sum(scaled.div_(temperature).exp_(), -1, out=total[tile])
    return top, sums


def to_gradient(p: Problem, chunk: Chunk, want_gradient: bool) -> Tensor:
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
    p: Problem, shifted: Tensor, chunk: Chunk, tile: slice
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
        mine, safe = owned(ids, p.rows.num)
        grad.scatter_add_(1, safe[:, None], mine[:, None].to(grad.dtype).mul_(-weight))
    return grad


TORCH = ElementWise(max_and_sums, to_gradient)
