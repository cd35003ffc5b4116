"""The element-wise part of the response loss by Triton's kernels: cross-entropy and dense teachers.

Each logit is read once for maximum and sums, and once more for value and gradient, which is
written in its place; divergences other than forward KL need a sum over the vocabulary in between
and read once more. Nothing of the size of the logits is made beside them. The collectives are
those of `torch_chunk`, which also does sparse teachers: their gradient is q and a few ids.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor

from ekd_nemo.losses import triton_kernels
from ekd_nemo.losses.chunk import Chunk, ElementWise, Problem
from ekd_nemo.losses.collectives import sum_over
from ekd_nemo.losses.torch_chunk import TORCH

# A launch takes options of the compiler beside the kernel's own arguments.
_MAX_AND_SUMS = cast(Any, triton_kernels.max_and_sums_kernel)
_RESPONSE = cast(Any, triton_kernels.response_kernel)
# Columns that one program keeps in registers: one load of 8 half-precision numbers a thread. As
# compiled for an H100 the kernels take 24 to 40 registers a thread then, and spill none.
BLOCK_COLUMNS = 2048
MIN_BLOCK_COLUMNS = 16
NUM_WARPS = 8


def max_and_sums(p: Problem, z: Tensor, temperatures: list[float]) -> tuple[Tensor, list[Tensor]]:
    """This rank's maximum [c] (-inf without rows) and sums of exp((z - max) / T) [c] for each T."""
    num_rows, num_columns = z.shape
    if num_columns == 0:
        return TORCH.max_and_sums(p, z, temperatures)
    block, num_blocks = _blocks(num_columns)
    tops = z.new_empty((num_rows, num_blocks), dtype=p.acc)
    parts = z.new_empty((len(temperatures), num_rows, num_blocks), dtype=p.acc)
    _MAX_AND_SUMS[(num_rows * num_blocks,)](
        z,
        tops,
        parts[0],
        parts[-1],
        num_columns,
        z.stride(0),
        num_blocks,
        1.0 / temperatures[0],
        1.0 / temperatures[-1],
        TWO=len(temperatures) > 1,
        BLOCK=block,
        num_warps=NUM_WARPS,
    )
    top = tops.amax(1)
    below = tops - top[:, None]
    scaled = [part * torch.exp(below / t) for part, t in zip(parts, temperatures, strict=True)]
    return top, [part.sum(1) for part in scaled]


def to_gradient(p: Problem, chunk: Chunk, want_gradient: bool) -> Tensor:
    """Add up the response term [scalar] and, if wanted, turn z_s into its gradient."""
    if p.teacher is not None and p.dense is None:
        return TORCH.to_gradient(p, chunk, want_gradient)
    if p.teacher is None:
        if want_gradient:
            _launch(p, chunk, None, values=False, gradient=True)
        return chunk.z_s.new_zeros((), dtype=torch.float64)
    if p.terms.divergence.sum_g is not None:
        parts = _launch(p, chunk, None, values=True, gradient=want_gradient)
        return parts[0].sum(dtype=torch.float64)
    parts = _launch(p, chunk, None, values=True, gradient=False)
    both = sum_over(parts.sum(-1), p.group)
    if want_gradient:
        _launch(p, chunk, both[1], values=False, gradient=True)
    return both[0].sum(dtype=torch.float64)


def _launch(
    p: Problem, chunk: Chunk, sum_g: Tensor | None, *, values: bool, gradient: bool
) -> Tensor:
    """Run the kernel; return its values and sums of g by block [2, c, blocks], if it makes them.

    Where the sum of g is known (forward KL) the second is left as it was allocated.
    """
    z, terms, divergence = chunk.z_s, p.terms, p.terms.divergence
    num_rows, num_columns = z.shape
    block, num_blocks = _blocks(num_columns)
    parts = z.new_empty((2, num_rows, num_blocks if values else 0), dtype=p.acc)
    if num_columns == 0:
        return parts
    _RESPONSE[(num_rows * num_blocks,)](
        z,
        # What a variant of the kernel does not read is some tensor.
        z if chunk.z_t is None else chunk.z_t,
        chunk.ids,
        chunk.max_s,
        chunk.log_z_ce,
        chunk.log_z_s,
        chunk.max_t,
        chunk.log_z_t,
        chunk.max_s if sum_g is None else sum_g,
        parts[0],
        parts[1],
        num_columns,
        z.stride(0),
        z.stride(0) if chunk.z_t is None else chunk.z_t.stride(0),
        num_blocks,
        1.0 / terms.temperature,
        terms.weight_ce,
        terms.weight_response * terms.temperature,
        divergence.beta,
        math.log(divergence.beta),
        math.log1p(-divergence.beta),
        KIND="none" if p.teacher is None else divergence.kind,
        UNSCALED=terms.temperature == 1.0,
        VALUES=values,
        GRADIENT=gradient,
        BLOCK=block,
        num_warps=NUM_WARPS,
    )
    return parts


def _blocks(num_columns: int) -> tuple[int, int]:
    """Columns of a block, a power of two, and how many blocks a row takes."""
    block = min(BLOCK_COLUMNS, max(MIN_BLOCK_COLUMNS, 1 << (num_columns - 1).bit_length()))
    return block, math.ceil(num_columns / block)


TRITON = ElementWise(max_and_sums, to_gradient)
