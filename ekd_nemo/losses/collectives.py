"""The few collectives that the losses use; a group of `None` means that nothing is sharded."""

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
    dist.all_gather_into_tensor(whole, part.contiguous(), group=group)
    return whole


def scatter_row_sums(whole: Tensor, group: ProcessGroup | None) -> Tensor:
    """Sum [T, H] over the ranks and keep this rank's [T / ranks, H]."""
    if group_size(group) == 1:
        return whole
    part = whole.new_empty((whole.shape[0] // group_size(group), *whole.shape[1:]))
    dist.reduce_scatter_tensor(part, whole.contiguous(), op=dist.ReduceOp.SUM, group=group)
    return part
