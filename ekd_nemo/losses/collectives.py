"""The few collectives that the losses use; a group of `None` means that nothing is sharded.

Two of them go by the names that torch 2.6 has; 2.13 calls them deprecated.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def group_size(group: ProcessGroup | None) -> int:
    """Number of ranks that share the vocabulary (or the sequence)."""
    return 1 if group is None else group.size()


def group_rank(group: ProcessGroup | None) -> int:
    """This rank's number inside the group."""
    return 0 if group is None else group.rank()


def sum_over(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """Sum in place over the ranks of a group."""
    if group_size(group) > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
    return tensor


def max_over(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """Maximum in place over the ranks of a group."""
    if group_size(group) > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    return tensor


def gather_rows(part: Tensor, group: ProcessGroup | None) -> Tensor:
    """Join equal shards [T / ranks, H] by rank into [T, H]; no gradient."""
    if group_size(group) == 1:
        return part
    whole = part.new_empty((part.shape[0] * group_size(group), *part.shape[1:]))
    dist.all_gather_into_tensor(  # pyright: ignore[reportDeprecated]
        whole, part.contiguous(), group=group
    )
    return whole


def scatter_row_sums(whole: Tensor, group: ProcessGroup | None) -> Tensor:
    """Sum [T, H] over the ranks and keep this rank's [T / ranks, H]."""
    if group_size(group) == 1:
        return whole
    part = whole.new_empty((whole.shape[0] // group_size(group), *whole.shape[1:]))
    dist.reduce_scatter_tensor(  # pyright: ignore[reportDeprecated]
        part, whole.contiguous(), op=dist.ReduceOp.SUM, group=group
    )
    return part


def sum_over_with_gradient(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """Sum over a group of ranks that then all compute the same from it.

    The gradient passes as it is: every rank has the whole gradient of the one result already, so
    summing gradients over the ranks would count it once per rank.
    """
    if group_size(group) == 1:
        return tensor
    return cast(Callable[..., Tensor], _SumOver.apply)(tensor, group)


def gather_rows_with_gradient(part: Tensor, group: ProcessGroup | None) -> tuple[Tensor, int]:
    """Join shards of any number of rows by rank, for ranks that then all compute the same.

    Args:
        part: [N_local, H]; N_local may differ between ranks and may be 0.
        group: the ranks.

    Returns:
        [N, H] and the row at which this rank's own rows begin. The gradient of each row goes back
        to its owner as it is (see `sum_over_with_gradient`).

    Collectives: one gather of row counts, one of rows padded to the longest shard.
    """
    if group_size(group) == 1:
        return part, 0
    counts = part.new_zeros(group_size(group), dtype=torch.int64)
    counts[group_rank(group)] = len(part)
    sizes = cast(list[int], sum_over(counts, group).tolist())
    start = sum(sizes[: group_rank(group)])
    return cast(Callable[..., Tensor], _GatherRows.apply)(part, sizes, start, group), start


class _SumOver(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup) -> Tensor:
        return sum_over(tensor.clone(), group)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None]:
        return grad, None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, part: Tensor, sizes: list[int], start: int, group: ProcessGroup
    ) -> Tensor:
        ctx.rows = slice(start, start + len(part))
        longest = max(sizes)
        padded = part.new_zeros((longest, *part.shape[1:]))
        padded[: len(part)] = part
        whole = gather_rows(padded, group)
        return torch.cat([whole[i * longest : i * longest + n] for i, n in enumerate(sizes)])

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None, None, None]:
        return grad[ctx.rows], None, None, None
