"""Which tokens of a microbatch take part in a loss, and in which order ranks hold them."""

from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor
from torch.distributed import ProcessGroup

from ekd_nemo.losses.collectives import group_rank, group_size
from ekd_nemo.losses.subset import token_subset
from ekd_nemo.parallel.batch import Microbatch


def subset_mask(batch: Microbatch, seed: int, ratio: float) -> Tensor:
    """[S * B] bool in the order of `Microbatch.flat_labels`: tokens that carry loss, thinned out.

    Args:
        batch: the microbatch.
        seed: of the run; the rest of the draw depends on the samples and the places in them.
        ratio: of tokens to keep.
    """
    if ratio >= 1.0:
        return batch.flat_valid
    places = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    rows = [token_subset(seed, each, places, ratio) for each in batch.sample_hashes]
    return batch.flat_valid & torch.stack(rows, dim=1).reshape(-1)


def bounded_mask(batch: Microbatch, seed: int, per_segment: int) -> Tensor:
    """[S * B] bool: tokens of every segment, about `per_segment` of those that have more."""
    numbers = batch.flat_segments
    real = numbers >= 0
    lengths = torch.bincount(numbers[real], minlength=batch.num_segments)
    ratio = torch.where(real, per_segment / lengths[numbers.clamp(min=0)], 0.0).clamp(max=1.0)
    ratio = ratio.reshape(-1, len(batch.sample_hashes))
    places = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    rows = [
        token_subset(seed, each, places, ratio[:, row])
        for row, each in enumerate(batch.sample_hashes)
    ]
    return real & torch.stack(rows, dim=1).reshape(-1)


def sequence_group(config: Any) -> ProcessGroup | None:
    """Ranks that hold other tokens of the same sequences; None without sequence parallelism."""
    group = parallel_state.get_tensor_model_parallel_group()
    return group if config.sequence_parallel and group.size() > 1 else None


def own_tokens(flat: Tensor, group: ProcessGroup | None) -> Tensor:
    """The part of a [S * B] tensor whose tokens this rank holds in a sequence group."""
    part = len(flat) // group_size(group)
    return flat[group_rank(group) * part : (group_rank(group) + 1) * part]
